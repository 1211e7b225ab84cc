"""Turn raw catalogues into data/train.jsonl, val.jsonl and test.jsonl: cleaned, without duplicates, all accounted for.

python data_prep.py trn.json.gz                            LF-Amazon; also its zip archive, or its folder
python data_prep.py products.csv --content_field details   a seller's export
"""

import sys
from pathlib import Path

from run.cli import INTERRUPTED, Parser, run_script

SMALL_INPUT_BYTES = 4 << 20  # is done before a second process has started


def parser() -> Parser:
    parser = Parser(prog="data_prep.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "inputs",
        nargs="*",
        type=Path,
        metavar="INPUT",
        help="JSON lines, a JSON array, .csv or .tsv, also in .gz or .zip; a folder of them; - for standard input",
    )
    parser.add_argument("--output_dir", type=Path, default=Path("data"), metavar="DIR", help="where the splits go")
    parser.add_argument("--title_field", metavar="NAME", help="the field with the title; default: found by its name")
    parser.add_argument("--content_field", metavar="NAME", help="the field with the description")
    parser.add_argument("--uid_field", metavar="NAME", help="the field that names the product")
    parser.add_argument("--encoding", metavar="NAME", help="of the inputs, such as cp1252; default: UTF-8")
    parser.add_argument("--val_share", type=float, default=0.04, help="share of the titles kept for validation")
    parser.add_argument("--test_share", type=float, default=0.07, help="share of the titles kept for the final answer")
    parser.add_argument("--min_content_chars", type=int, default=20, help="shorter descriptions are left out")
    parser.add_argument("--no_near_duplicates", action="store_true", help="do not look for near duplicates: they stay")
    parser.add_argument("--no_catalogue", action="store_true", help="make no catalogue.sqlite (generate.py --sources)")
    parser.add_argument("--no_report", action="store_true", help="make no report.md and report.html")
    parser.add_argument("--tokenizer", metavar="FOLDER|ID", help="counts tokens for the report; default: an estimate")
    parser.add_argument("--workers", type=int, metavar="N", help="processes; default: one for each CPU core")
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

    from catalogue.fields import Fields
    from catalogue.judge import Options
    from catalogue.prepare import OUTPUTS, latin1_hint, prepare
    from catalogue.sources import find_sources
    from catalogue.workers import cores

    outputs = [args.output_dir / name for name in OUTPUTS]
    sizes = [source.size for source in find_sources(args.inputs, outputs)]
    total = None if None in sizes else sum(sizes)
    workers = args.workers if args.workers is not None else 1 if (total or 0) < SMALL_INPUT_BYTES else cores()
    try:
        with tqdm(total=total, unit="B", unit_scale=True, desc="preparing", file=sys.stderr, disable=None) as bar:
            counts = prepare(
                args.inputs,
                args.output_dir,
                Options(
                    val_share=args.val_share,
                    test_share=args.test_share,
                    min_content_chars=args.min_content_chars,
                    drop_near_duplicates=not args.no_near_duplicates,
                    fields=Fields(args.title_field, args.content_field, args.uid_field),
                    encoding=args.encoding,
                    catalogue=not args.no_catalogue,
                    report=not args.no_report,
                    tokenizer=args.tokenizer,
                ),
                workers=workers,
                progress=bar.update,
                say=lambda sentence: tqdm.write(sentence, file=sys.stdout),
            )
    except KeyboardInterrupt:
        print(
            f"\nInterrupted. {args.output_dir} holds no half-written file; start again when you like.", file=sys.stderr
        )
        return INTERRUPTED
    print(table(counts.lines, counts.kept, counts.reasons))
    if hint := latin1_hint(counts):
        print(f"\n{hint}")
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
