"""Turn a raw catalogue into data/train.jsonl, val.jsonl and test.jsonl: cleaned, without duplicates, all accounted for.

python data_prep.py trn.json.gz
"""

import sys
from pathlib import Path

from run.cli import INTERRUPTED, Parser, run_script


def parser() -> Parser:
    parser = Parser(prog="data_prep.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "inputs",
        nargs="*",
        type=Path,
        metavar="INPUT",
        help='catalogue with one JSON object a line, "title" and "content" in each (trn.json, .json.gz, .jsonl)',
    )
    parser.add_argument("--output_dir", type=Path, default=Path("data"), metavar="DIR", help="where the splits go")
    parser.add_argument("--val_share", type=float, default=0.04, help="share of the titles kept for validation")
    parser.add_argument("--test_share", type=float, default=0.07, help="share of the titles kept for the final answer")
    parser.add_argument("--min_content_chars", type=int, default=20, help="shorter descriptions are left out")
    return parser


def main() -> int:
    options = parser()
    args = options.parse_args()
    if not args.inputs:
        options.error(
            "which catalogue? Give a file with one JSON object a line, for example\n"
            "  python data_prep.py trn.json.gz\n"
            "  python data_prep.py examples/catalogue.json.gz"
        )
    # The parsers of HTML and mojibake take a moment to load; --help and a typo do not wait for them.
    from tqdm import tqdm

    from text.prepare import prepare

    total = sum(path.stat().st_size for path in args.inputs if path.is_file())
    try:
        with tqdm(total=total, unit="B", unit_scale=True, desc="preparing", file=sys.stderr, disable=None) as bar:
            counts = prepare(
                args.inputs,
                args.output_dir,
                val_share=args.val_share,
                test_share=args.test_share,
                min_content_chars=args.min_content_chars,
                progress=bar.update,
            )
    except KeyboardInterrupt:
        print(
            f"\nInterrupted. {args.output_dir} holds no half-written file; start again when you like.", file=sys.stderr
        )
        return INTERRUPTED
    print(table(counts.lines, counts.kept, counts.reasons))
    where = "" if args.output_dir == Path("data") else f" --data {args.output_dir}"
    print(f"\n{args.output_dir} is ready. Next: python train.py{where}")
    return 0


def table(lines: int, kept: dict[str, int], reasons: dict[str, int]) -> str:
    """Where the lines went: one row for each split and each reason that occurred, with its count and share."""
    rows = [("lines read", lines), ("kept", sum(kept.values()))]
    rows += [(f"  {split}", count) for split, count in kept.items()]
    rows += [("left out", sum(reasons.values()))]
    rows += [(f"  {reason}", count) for reason, count in reasons.items() if count]
    return "\n".join(f"{name:<26}{count:>12,}{count / max(lines, 1):>9.1%}" for name, count in rows)


if __name__ == "__main__":
    run_script(main)
