"""Turn raw catalogues into data/train.jsonl, val.jsonl and test.jsonl: cleaned, without duplicates, all accounted for.

python data_prep.py trn.json.gz                            LF-Amazon; also its zip archive, or its folder
python data_prep.py products.xlsx --content_field details  a seller's export
python data_prep.py --describe feed.xml                    what a file is, before anything is written
"""

import sys
from functools import partial
from pathlib import Path

from run.cli import INTERRUPTED, Parser, integer, path, real, run_script

SMALL_INPUT_BYTES = 4 << 20  # is done before a second process has started


def parser() -> Parser:
    parser = Parser(prog="data_prep.py", description=__doc__.splitlines()[0])
    formats = "JSON, CSV, Excel, Parquet, XML feeds, also packed; a folder of them; - for standard input"
    parser.add_argument("inputs", nargs="*", type=path, metavar="INPUT", help=formats)
    parser.add_argument("--output_dir", type=path, default=Path("data"), metavar="DIR", help="where the splits go")
    parser.add_argument("--title_field", metavar="NAME", help="the field with the title; default: found by its name")
    parser.add_argument("--content_field", metavar="NAME", help="the field with the description")
    parser.add_argument("--uid_field", metavar="NAME", help="the field that names the product")
    parser.add_argument(
        "--attributes",
        type=lambda text: tuple(filter(None, map(str.strip, text.split(",")))),
        default=(),
        metavar="NAMES",
        help="fields that state facts (brand,colour,size), or auto: those that the descriptions repeat",
    )
    parser.add_argument("--encoding", metavar="NAME", help="of the inputs, such as cp1252; default: by evidence")
    parser.add_argument("--sheet", metavar="NAME", help="of a spreadsheet; default: the first")
    parser.add_argument("--describe", action="store_true", help="say what the inputs are, write nothing")
    share = real(0, most=1)
    parser.add_argument("--val_share", type=share, default=0.04, help="share of the titles kept for validation")
    parser.add_argument("--test_share", type=share, default=0.07, help="share of the titles kept for the final answer")
    parser.add_argument("--min_content_chars", type=integer(1), default=20, help="shorter descriptions are left out")
    without = partial(parser.add_argument, action="store_false")
    without("--no_near_duplicates", dest="drop_near_duplicates", help="do not look for near duplicates: they stay")
    without("--no_catalogue", dest="catalogue", help="make no catalogue.sqlite (generate.py --sources)")
    without("--no_report", dest="report", help="make no report.html")
    parser.add_argument("--tokenizer", metavar="FOLDER|ID", help="counts tokens for the report; default: an estimate")
    parser.add_argument("--workers", type=integer(1, most=256), metavar="N", help="processes; default: one a core")
    return parser


def main() -> int:
    command = parser()
    args = command.parse_args()
    if not args.inputs:
        command.error(
            "which catalogue? For example: python data_prep.py products.csv, or, with what comes along, "
            "python data_prep.py examples/catalogue.json.gz --attributes auto"
        )
    # The parsers of HTML and mojibake take a moment to load; --help and a typo do not wait for them.
    from tqdm import tqdm

    from catalogue.fields import Fields
    from catalogue.inputs import described
    from catalogue.judge import Options
    from catalogue.prepare import outputs_in, prepare
    from catalogue.sources import find_sources, size_of
    from catalogue.workers import cores

    settings = vars(args)  # what is not taken out of it here bears the name of an option
    inputs, folder, workers = (settings.pop(name) for name in ("inputs", "output_dir", "workers"))
    title, content, uid = (settings.pop(f"{name}_field") for name in ("title", "content", "uid"))
    fields = Fields(title, content, uid, settings.pop("attributes"))
    wants_description = settings.pop("describe")
    options = Options(fields=fields, **settings)
    if wants_description:
        for line in described(inputs, options):
            print(line)
        return 0
    sizes = [size_of(source) for source in find_sources(inputs, outputs_in(folder))]
    total = None if None in sizes else sum(sizes)
    if workers is None:
        workers = 1 if (total or 0) < SMALL_INPUT_BYTES else cores()
    try:
        with tqdm(total=total, unit="B", unit_scale=True, desc="preparing", file=sys.stderr, disable=None) as bar:
            counts = prepare(
                inputs,
                folder,
                options,
                workers=workers,
                progress=bar.update,
                say=lambda sentence: tqdm.write(sentence, file=sys.stdout),
            )
    except KeyboardInterrupt:
        print(f"\nInterrupted. {folder} holds no half-written file; start again when you like.", file=sys.stderr)
        return INTERRUPTED
    print("\n".join(f"{name:<26}{count:>12,}{share:>9.1%}" for name, count, share in counts.rows()))
    print(f"\n{folder} is ready. Next: python train.py{'' if folder == Path('data') else f' --data {folder}'}")
    return 0


if __name__ == "__main__":
    run_script(main)
