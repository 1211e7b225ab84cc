"""Ask a trained model for descriptions.

python generate.py                            the interactive loop, with the newest run
python generate.py --title "Blue ceramic mug" --title "Caneca azul"
python generate.py --question "Fale sobre a caneca azul"
python generate.py --title Mug --attribute colour=blue --attribute brand=Velmora
python generate.py --titles titles.txt        one title a line; answers as JSONL on standard output
python generate.py --titles shop.csv --out described.csv       the same table, its descriptions filled in; .xlsx, .jsonl
python generate.py --before                   the same, with the model as it was before training
python generate.py --sources 3                lists under each answer the products that it can be checked against
python generate.py --serve                    a page in the browser, corrections kept for data_prep.py
python generate.py --candidates 8             writes eight answers to each title and keeps the truest

A word that states a fact which neither title, attributes nor the text before the prompt has is unsupported: underlined,
and named in JSONL. Who publishes such an answer should check it. Where a file of answers was interrupted, the same
command goes on.
"""

import argparse
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from catalogue.clean import clean
from catalogue.fields import Fields, attribute_name
from run.cli import Parser, UsageError, integer, path, real, run_script
from run.folders import CONFIG, base_model_of, find_run, read_run, weights_of
from run.titles import Asked, Titles, check_out, lines_of, plain, read_titles, title_of
from text.errors import DataError

CANDIDATES = 8
QUICK = 2e7  # parameters: eight answers of such a model take a CPU a second or two
AT_ONCE = 32  # answers of a file, where memory allows it


def parse(args: list[str] | None = None):
    parser = Parser(prog="generate.py", usage="python generate.py [options]", description="Descriptions from titles.")
    parser.add_argument("--run", metavar="NAME|PATH", help="the run to ask; default: the newest in --output_dir")
    parser.add_argument("--output_dir", type=path, default=Path("checkpoints"), metavar="FOLDER", help="[checkpoints]")
    parser.add_argument("--adapter", action="append", metavar="FOLDER", help="an adapter or LoRA run, instead of --run")
    parser.add_argument("--base", metavar="MODEL", help="put the adapters on this base, not on the one they name")
    parser.add_argument("--load_in_4bit", action="store_true", help="the base in NF4; a run in 4-bit needs no reminder")
    parser.add_argument("--before", action="store_true", help="ask the base model, as it was before training")
    parser.add_argument(
        "--title",
        "--question",
        action="append",
        metavar="TEXT",
        help="a title or a question; may be given several times",
    )
    parser.add_argument("--titles", type=path, metavar="FILE", help="a title a line, or a table; -: standard input")
    parser.add_argument("--title_field", metavar="NAME", help="of --titles: the column with the title")
    parser.add_argument("--content_field", metavar="NAME", help="of --titles: the column to fill")
    parser.add_argument("--out", type=path, metavar="FILE", help="of --titles: .csv .xlsx .jsonl [JSONL on the screen]")
    parser.add_argument("--same_columns", action="store_true", help="of --out: no column but those of the table")
    parser.add_argument(
        "--attribute", type=attribute, action="append", metavar="NAME=VALUE", help="a fact of the titles: colour=blue"
    )
    parser.add_argument("--sources", type=integer(0, most=1000), default=0, metavar="K", help="list K products [0]")
    parser.add_argument("--grounded", action="store_true", help="put the nearest product's content into the prompt")
    parser.add_argument("--data", type=path, metavar="FOLDER", help="with the catalogue; default: the run's own data")
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token, as with --temperature 0")
    parser.add_argument("--temperature", type=real(0, most=100), metavar="X", help="[0.7; several tries: 1]")
    parser.add_argument("--top_k", type=integer(0), default=50, metavar="N", help="of the N likeliest; 0: all [50]")
    parser.add_argument("--top_p", type=real(1e-6, most=1), default=0.95, metavar="X", help="of that share [0.95]")
    parser.add_argument("--repetition_penalty", type=real(0.1, most=10), default=1.0, metavar="X", help="[1.0]")
    parser.add_argument("--no_repeat_ngram_size", type=integer(0), metavar="N", help="0: may repeat [4; greedy 0]")
    parser.add_argument("--max_new_tokens", type=integer(1), default=220, metavar="N", help="[220]")
    parser.add_argument(
        "--candidates", type=integer(1, most=256), metavar="N", help="tries at each answer [8; one title: if quick]"
    )
    parser.add_argument("--unchecked", action="store_true", help="what the model says, also what nothing supports")
    parser.add_argument("--serve", action="store_true", help="a page in the browser of this machine, with corrections")
    parser.add_argument("--port", type=integer(0, most=65535), default=7860, metavar="N", help="of --serve [7860]")
    parser.add_argument("--strict", action="store_true", help="leave answers out that state what nothing supports")
    parser.add_argument("--num_return_sequences", type=integer(1, most=1000), default=1, metavar="N", help="[1]")
    parser.add_argument("--seed", type=integer(0), default=42, metavar="N", help="[42]")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="[auto]")
    parser.add_argument(
        "--lang", choices=("en", "pt"), help="of the loop and the page; default: the system's, the browser's"
    )
    options = parser.parse_args(args)
    options.asked, given = None, options.attribute or []
    options.attribute = dict(given)
    if twice := [name for name, count in Counter(name for name, _ in given).items() if count > 1]:
        values = " and ".join(value for name, value in given if name == twice[0])
        parser.error(f"--attribute {twice[0]} is given more than once ({values}). One value may hold all of it.")
    options.greedy |= options.temperature is not None and options.temperature < 0.01  # smaller ones overflow
    if options.no_repeat_ngram_size is None:
        options.no_repeat_ngram_size = 0 if options.greedy else 4
    if options.title and not all(map(str.strip, options.title)):
        parser.error("--title is empty.")
    if options.adapter and (options.run or options.before):
        parser.error("give --adapter or --run, and --before only with a run.")
    if len(options.adapter or ()) > 1 and (options.title or options.titles):
        parser.error("several adapters are for the interactive loop; name one to answer --title or --titles.")
    if options.base and not options.adapter:
        parser.error("--base says on what an --adapter is put; there is none.")
    if options.title and options.titles:
        parser.error("give --title or --titles, not both.")
    if options.serve and (options.title or options.titles or options.adapter or options.before):
        parser.error("--serve asks on its page: leave titles, --adapter and --before out.")
    if options.serve and options.num_return_sequences > 1:
        parser.error("--serve has a slider for the number of answers: leave --num_return_sequences out.")
    of_titles = ("out", "title_field", "content_field", "same_columns")
    if not options.titles and (named := [name for name in of_titles if getattr(options, name)]):
        parser.error(f"--{named[0]} is for the answers to --titles.")
    if options.greedy and options.num_return_sequences > 1:
        parser.error("--greedy has only one answer for a title; leave --num_return_sequences out.")
    try:  # what needs no torch is said before it is loaded
        if options.titles:
            options.asked = read_titles(options.titles, Fields(options.title_field, options.content_field))
        elif options.title:
            options.asked = Titles([Asked(title_of(plain(title))) for title in options.title], ["title"])
        if options.out:
            check_out(options.out)
        if not options.adapter:
            find_run(options.run, options.output_dir)
    except (UsageError, DataError) as error:
        parser.error(str(error))
    return options


def attribute(text: str) -> tuple[str, str]:
    """`colour=blue` as a name and a value."""
    name, equals, value = text.partition("=")
    if not (attribute_name(name) and equals and clean(plain(value))):
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE, as in colour=blue.")
    return attribute_name(name), clean(plain(value))


if __name__ == "__main__":
    OPTIONS = parse()  # before torch is imported, so that --help answers at once

import json

from catalogue.claims import Claim
from catalogue.index import Product
from model.adapter import adapter_base, load_adapter
from model.sample import Sampling
from run.answers import Answers, account, entries_of, progress, show
from run.asking import load_to_ask, machine_for
from run.candidates import Writer, Written
from run.desk import Desk
from run.device import Machine
from run.loop import Loop, adapter_folder
from run.sayings import language
from run.serve import serve
from run.sources import Sources
from text.template import QA, Template, load_template


@dataclass(frozen=True)
class Model:
    """What is asked, by where it lies."""

    source: str | Path  # a model, or the base of the adapters
    weights: Path  # with the template
    adapters: list[Path]  # the first one is put on
    run: Path | None  # that trained it
    template: Template
    four_bit: bool

    @property
    def name(self) -> str:
        return str(self.adapters[0] if self.adapters else self.source)

    @property
    def base(self) -> str | Path:
        """As it was before training."""
        return base_model_of(self.run) if self.run else self.source


def main(options) -> int:
    in_loop = options.asked is None and (options.serve or sys.stdin.isatty())
    model = choose_model(options, in_loop)
    asked = [] if in_loop else options.asked.asked if options.asked else list(map(Asked, lines_of(sys.stdin.read())))
    if not (in_loop or asked):
        raise UsageError("There is no title to answer.")
    trained_on = read_run(model.run)["options"].get("data_dir", "data") if model.run else "data"
    sources = Sources(options.data or Path(trained_on), options.sources, options.grounded)
    machine = machine_for(model.run, options.device, model.base)
    writer, machine = make_writer(options, model, sources, machine, len(asked))
    records = [title.record(sources.attributes, options.attribute) for title in asked]
    if sources.attributes and any(title.row and not title.own for title in asked):
        names = {attribute_name(column) for column in options.asked.columns} & sources.attributes
        known, given = ", ".join(sorted(sources.attributes)), ", ".join(sorted(names)) or "none"
        print(f"(attributes of its catalogue: {known}; columns of the table that are: {given})", file=sys.stderr)
    copies = options.num_return_sequences

    def load_base() -> Writer:  # its own memory, so only once somebody wants to see it
        base, encoder, _, _ = load_to_ask(model.base, model.template, machine, model.four_bit)
        return Writer(base, encoder, writer.sampling, None, rows=1)

    if options.serve:
        corrections = model.run / "corrections.jsonl"
        desk = Desk(writer, load_base, sources, machine, corrections, options.strict)
        return serve(desk, options.port, options.lang)
    with machine.autocast():
        if in_loop:
            speech, adapters = options.lang or language(), model.adapters
            loop = Loop(writer, sources, options.strict, speech, model.name, adapters, load_base, options.output_dir)
            return loop.run(options.attribute, copies)
        if len(records) == copies == 1 and not options.titles:
            Loop(writer, sources, options.strict, "en").answer(records[0])
            return 0
        numbered = [(i * copies + k, asked[i], records[i]) for i in range(len(asked)) for k in range(copies)]
        if options.out:
            how = {"model": model.name, "data": str(sources.folder), "copies": copies, "candidates": writer.tries}
            how |= {"strict": options.strict, "sources": options.sources, "grounded": options.grounded}
            how |= {"attributes": options.attribute, "unchecked": options.unchecked, **asdict(writer.sampling)}
            answers = Answers(options.out, options.asked, how, options.same_columns)
            into_file(writer, numbered, sources, options, answers)
        else:
            on_screen(writer, numbered, sources, options.strict, copies, as_json=bool(options.titles))
    return 0


def choose_model(options, in_loop: bool) -> Model:
    """Raises `UsageError` for adapters that cannot be asked in turn."""
    if not options.adapter:
        run = find_run(options.run, options.output_dir)
        weights, adapters, source = weights_of(run), [], base_model_of(run) if options.before else weights_of(run)
    else:
        adapters = [adapter_folder(name, options.output_dir) for name in options.adapter]
        bases = {Path(adapter_base(folder)).resolve(): folder for folder in adapters}
        if len(bases) > 1 and not options.base:
            belong = ", ".join(f"{folder} to {adapter_base(folder)}" for folder in bases.values())
            raise UsageError(f"Not one base: {belong}. Name the one for all with --base.")
        if len(adapters) > 1 and not in_loop:
            raise UsageError("Several adapters are for the interactive loop; name one to answer titles from a pipe.")
        weights, source = adapters[0], options.base or adapter_base(adapters[0])
        run = weights.parent if (weights.parent / CONFIG).is_file() else None  # None: it comes from elsewhere
    four_bit = options.load_in_4bit or bool(run and read_run(run)["options"].get("load_in_4bit", False))
    return Model(source, weights, adapters, run, load_template(weights, default=QA), four_bit)


def make_writer(options, chosen: Model, sources: Sources, machine: Machine, titles: int) -> tuple[Writer, Machine]:
    """The model in memory, in the precision that fits, and how its answers are written: by tries where there is a
    catalogue to judge them. `titles`: how many are known, 0 in the loop."""
    claims, copies = sources.claims(), options.num_return_sequences
    if claims is None and (options.strict or (options.candidates or 1) > 1):
        where = f"there is none in {sources.folder}: name --data."
        raise UsageError(f"--candidates and --strict judge by the catalogue, and {where}")
    if claims and (unknown := options.attribute.keys() - sources.attributes):
        known = ", ".join(sorted(sources.attributes)) or "none"
        print(f"(its catalogue has no attribute {', '.join(sorted(unknown))}; it has: {known})", file=sys.stderr)
    many = titles * copies > 1
    model, encoder, machine, at_once = load_to_ask(
        chosen.source,
        chosen.template,
        machine,
        chosen.four_bit,
        answers=AT_ONCE if many else options.candidates or CANDIDATES,
        new_tokens=options.max_new_tokens,
    )
    if chosen.adapters:
        load_adapter(model, chosen.weights)
    quick = many or machine.device.type == "cuda" or model.num_parameters() <= QUICK
    # Several answers to one title are wanted for their variety, and a greedy one for being that.
    one_is_wanted = options.greedy or copies > 1
    candidates = options.candidates or (CANDIDATES if quick and not one_is_wanted else 1)
    tries = candidates if claims else 1
    sampling = Sampling(
        max_new_tokens=options.max_new_tokens,
        greedy=options.greedy,
        temperature=options.temperature or (1.0 if tries > 1 and not options.greedy else 0.7),
        top_k=options.top_k,
        top_p=options.top_p,
        repetition_penalty=options.repetition_penalty,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        seed=options.seed,
    )
    # Into a file as many at once whatever is left of it: alike shapes have alike last digits, so one that was
    # interrupted becomes what it would have been.
    rows = at_once if options.out else min(at_once, tries * copies * max(1, titles))
    return Writer(model, encoder, sampling, claims, candidates, rows, options.unchecked), machine


def into_file(writer: Writer, numbered: list[tuple], sources: Sources, options, answers: Answers) -> None:
    """The answers that are not there yet, and then the file; says how many titles got none, and why."""
    done = len(answers.entries)
    if done:
        print(f"{answers.part} has {done:,} of {len(numbered):,} answers: going on there.", file=sys.stderr)
    try:
        for entry in progress(entries_of(writer, numbered[done:], sources, options.strict), done, len(numbered)):
            answers.add(entry)
    except KeyboardInterrupt:
        have = f"{len(answers.entries):,} of {len(numbered):,} answers"
        print(f"\n{have} are kept in {answers.part}; the same command goes on there.", file=sys.stderr)
        raise
    answers.finish(options.num_return_sequences)
    print(f"{account(answers.entries)} Saved {options.out}.", file=sys.stderr)


def on_screen(
    writer: Writer, numbered: list[tuple], sources: Sources, strict: bool, copies: int, as_json: bool
) -> None:
    """Every answer as soon as those before it are there. Stops when nobody reads them any more."""
    entries = []
    bar = progress(entries_of(writer, numbered, sources, strict), 0, len(numbered))
    for entry in bar:
        entries.append(entry)
        if as_json:
            bar.write(json.dumps(entry, ensure_ascii=False), file=sys.stdout)
        else:
            bar.clear()
            if said := entry.get("error") or (f"({entry['note']})" if "note" in entry else ""):
                print(said, file=sys.stderr)
            unsupported = [Claim(**claim) for claim in entry.get("unsupported", ())] if entry["answer"] else []
            show(Written(entry["answer"], entry["stopped"], unsupported))
            if len(entries) % copies == 0:
                sources.show([Product(content="", **found) for found in entry.get("sources", ())])
            bar.refresh()
        if getattr(sys.stdout, "left", False):
            return
    if any("error" in entry for entry in entries):
        print(account(entries), file=sys.stderr)


if __name__ == "__main__":
    run_script(main, OPTIONS)
