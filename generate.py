"""Ask a trained model for descriptions.

python generate.py                            the interactive loop, with the newest run
python generate.py --title "Blue ceramic mug" --title "Caneca azul"
python generate.py --question "Fale sobre a caneca azul"
python generate.py --title Mug --attribute colour=blue --attribute brand=Velmora
python generate.py --titles titles.txt        one title a line; answers as JSONL on standard output
python generate.py --titles shop.csv --out described.csv       the same table, its descriptions filled in
python generate.py --before                   the same, with the model as it was before training
python generate.py --sources 3                lists under each answer the products that it can be checked against
python generate.py --serve                    a page in the browser, corrections kept for data_prep.py
python generate.py --candidates 8             writes eight answers to each title and keeps the truest

A word that states a fact which neither title, attributes nor the text before the prompt has is unsupported: underlined,
and named in JSONL. Who publishes such an answer should check it.
"""

import argparse
import sys
from pathlib import Path

from catalogue.clean import clean
from catalogue.fields import attribute_name
from run.cli import Parser, UsageError, integer, path, real, run_script
from run.folders import CONFIG, base_model_of, find_run, read_run, weights_of
from run.terminal import one_line
from run.titles import Answers, Asked, Titles, lines_of, plain, read_titles
from text.errors import DataError

CANDIDATES = 8
NOT_TAUGHT = "nothing in the catalogue resembles this: the model was not taught such a product"
QUICK = 2e7  # parameters: eight answers of such a model take a CPU a second or two
PRINTED_TOGETHER = 128  # titles: their answers are written in batches of like length
AT_ONCE = 32  # of them, where memory allows it


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
    parser.add_argument("--titles", type=path, metavar="FILE", help="a title a line, or a table with their columns")
    parser.add_argument("--out", type=path, metavar="FILE", help="of --titles: .csv, or JSONL [to standard output]")
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
    parser.add_argument("--serve", action="store_true", help="a page in the browser of this machine, with corrections")
    parser.add_argument("--port", type=integer(0, most=65535), default=7860, metavar="N", help="of --serve [7860]")
    parser.add_argument("--strict", action="store_true", help="leave answers out that state what nothing supports")
    parser.add_argument("--num_return_sequences", type=integer(1, most=1000), default=1, metavar="N", help="[1]")
    parser.add_argument("--seed", type=integer(0), default=42, metavar="N", help="[42]")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="[auto]")
    options = parser.parse_args(args)
    options.asked, options.attribute = None, dict(options.attribute or [])
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
    if options.out and not options.titles:
        parser.error("--out is for the answers to --titles.")
    if options.greedy and options.num_return_sequences > 1:
        parser.error("--greedy has only one answer for a title; leave --num_return_sequences out.")
    try:  # what needs no torch is said before it is loaded
        if options.titles:
            options.asked = read_titles(options.titles)
        elif options.title:
            options.asked = Titles([Asked(plain(title)) for title in options.title], ["title"])
        if options.out and options.out.exists():
            raise UsageError(f"{options.out} is there already: name another --out, or remove it.")
        if options.out and options.out.suffix.lower() not in (".csv", ".jsonl"):
            raise UsageError(f"--out writes .csv or .jsonl, and {options.out.name} is neither.")
        if not options.adapter:
            find_run(options.run, options.output_dir)
    except (UsageError, DataError) as error:
        parser.error(str(error))
    return options


def attribute(text: str) -> tuple[str, str]:
    """`colour=blue` as a name and a value."""
    name, equals, value = text.partition("=")
    if not (attribute_name(name) and equals and value.strip()):
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE, as in colour=blue.")
    return attribute_name(name), clean(plain(value))


if __name__ == "__main__":
    OPTIONS = parse()  # before torch is imported, so that --help answers at once

from collections.abc import Callable, Iterator
from dataclasses import replace

from tqdm import tqdm

from model.adapter import adapter_base, is_adapter, load_adapter
from model.errors import ModelUnavailable, UnsupportedModel
from model.lora import unwrap
from model.sample import Sampling, tokens_of
from run.asking import load_to_ask, machine_for
from run.candidates import NOTHING, Writer, Written
from run.desk import Desk
from run.loading import encoder_of
from run.serve import serve
from run.sources import Sources
from text.answer import StableText, stop_rule
from text.batch import Encoder
from text.stream import Record, given
from text.template import QA, load_template


def main(options) -> int:
    asked = options.asked.asked if options.asked else None
    adapters = [adapter_folder(name, options) for name in options.adapter or ()]
    if adapters:
        run, weights, source = run_around(adapters[0]), adapters[0], options.base or adapter_base(adapters[0])
        bases = {Path(adapter_base(folder)).resolve(): folder for folder in adapters}
        if len(bases) > 1 and not options.base:
            belong = ", ".join(f"{folder} to {adapter_base(folder)}" for folder in bases.values())
            raise UsageError(f"Not one base: {belong}. Name the one for all with --base.")
        if len(adapters) > 1 and not sys.stdin.isatty():
            raise UsageError("Several adapters are for the interactive loop; name one to answer titles from a pipe.")
    else:
        run = find_run(options.run, options.output_dir)
        weights = weights_of(run)
        source = base_model_of(run) if options.before else weights
    trained_with = read_run(run)["options"] if run else {}
    data = options.data or Path(trained_with.get("data_dir", "data"))
    four_bit = options.load_in_4bit or trained_with.get("load_in_4bit", False)
    sources = Sources(data, options.sources, options.grounded)
    claims = sources.claims()
    if claims is None and (options.strict or (options.candidates or 1) > 1):
        raise UsageError(f"--candidates and --strict judge by the catalogue, and there is none in {data}: name --data.")
    if claims and (unknown := options.attribute.keys() - sources.attributes):
        known = ", ".join(sorted(sources.attributes)) or "none"
        print(f"(its catalogue has no attribute {', '.join(sorted(unknown))}; it has: {known})", file=sys.stderr)
    machine = machine_for(run, options.device, base_model_of(run) if run else source)
    template = load_template(weights, default=QA)
    many = len(asked or ()) > 1 or options.num_return_sequences > 1 or not (asked or sys.stdin.isatty())
    wanted = AT_ONCE if many else options.candidates or CANDIDATES
    model, encoder, machine, at_once = load_to_ask(
        source, template, machine, four_bit, answers=wanted, new_tokens=options.max_new_tokens
    )
    if adapters:
        load_adapter(model, weights)
    copies = options.num_return_sequences
    quick = many or machine.device.type == "cuda" or model.num_parameters() <= QUICK
    # Several answers to one title are wanted for their variety, and a greedy one for being that.
    one_is_wanted = options.greedy or copies > 1
    candidates = options.candidates or (CANDIDATES if quick and not one_is_wanted else 1)
    several = claims is not None and candidates > 1 and not options.greedy
    sampling = Sampling(
        max_new_tokens=options.max_new_tokens,
        greedy=options.greedy,
        temperature=options.temperature or (1.0 if several else 0.7),
        top_k=options.top_k,
        top_p=options.top_p,
        repetition_penalty=options.repetition_penalty,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        seed=options.seed,
    )
    writer = Writer(model, encoder, sampling, claims, candidates, at_once)
    if options.serve:

        def base() -> Writer:  # its own memory, so only once somebody wants to see it
            found = load_to_ask(base_model_of(run), template, machine, four_bit, new_tokens=options.max_new_tokens)
            return replace(writer, model=found[0], encoder=found[1])

        return serve(Desk(writer, base, sources, machine, run / "corrections.jsonl"), options.port)
    with machine.autocast():
        if asked is None and sys.stdin.isatty():
            print("(/sources: what to check it against; sair, quit or Ctrl-D to leave)", file=sys.stderr)
            return converse(writer, options.attribute, copies, sources, adapters, options.strict)
        asked = [Asked(line) for line in lines_of(sys.stdin.read())] if asked is None else asked
        if not asked:
            raise UsageError("There is no title to answer.")
        records = [title.record(sources.attributes, options.attribute) for title in asked]
        if options.titles:
            with Answers(options.out, options.asked) as answers:
                answer_all(writer, records, copies, sources, options.strict, answers.write)
        elif len(records) == copies == 1:
            answer_aloud(writer, records[0], 0, sources, options.strict)
        else:
            answer_all(writer, records, copies, sources, options.strict, None)
    return 0


def answer_all(
    writer: Writer, records: list[Record], copies: int, sources: Sources, strict: bool, out: Callable | None
) -> None:
    """Give every answer in its order, some at a time, to `out` (number, entry), or print it. A title that the model
    cannot take gets none, and that is said; `strict`: nor does one whose answers all state what nothing supports.

    Stops when nobody reads them any more.
    """
    window, left_out = writer.window, 0
    asked = [(i, record) for i, record in enumerate(records) for _ in range(copies)]
    bar = tqdm(total=len(asked), desc="answering", leave=False, disable=None)
    for first in range(0, len(asked), PRINTED_TOGETHER):
        some = asked[first : first + PRINTED_TOGETHER]
        found = {i: sources.nearest(record) for i, record in some}
        contexts = {i: sources.context(products) for i, products in found.items()}
        titles = [writer.encoder.template.asked(record) for _, record in some]
        prompts = writer.encoder.prompts(titles, [contexts[i] for i, _ in some], window)
        fitting = [k for k, (_, record) in enumerate(some) if record["title"]]
        texts = [[given(some[k][1]), contexts[some[k][0]]] for k in fitting]
        written = writer.write([prompts[k] for k in fitting], texts, [first + k for k in fitting])
        answers = dict(zip(fitting, written, strict=True))
        for k, (i, record) in enumerate(some):
            products, answer = found[i], answers.get(k, NOTHING)
            entry = {**record, "answer": answer.text, "stopped": answer.stopped}
            if writer.claims:
                entry["unsupported"] = [claim._asdict() for claim in answer.unsupported]
            if answer is NOTHING:
                entry["error"] = no_answer(record["title"], window)
            elif strict and answer.unsupported:
                entry |= {"answer": "", "error": left_out_for(record["title"], answer)}
                left_out += 1
            elif writer.claims and not products:
                entry["note"] = NOT_TAUGHT
            if "error" in entry:
                tqdm.write(entry["error"], file=sys.stderr)
            if sources.count:
                entry["sources"] = [
                    {"uid": p.uid, "title": p.title, "matched": p.matched} for p in products[: sources.count]
                ]
            if sources.grounded:
                entry["grounded_on"] = products[0].uid if products else None
            if out:
                out(i, entry)
                continue
            if "note" in entry:
                tqdm.write(f"({entry['note']})", file=sys.stderr)
            bar.clear()
            show(answer if entry["answer"] else NOTHING)
            bar.refresh()
            if (first + k + 1) % copies == 0:
                sources.show(products)
        if getattr(sys.stdout, "left", False):
            break
        bar.update(len(some))
    bar.close()
    if left_out:
        print(f"{left_out} of {len(asked)} answers left out: they state what nothing supports.", file=sys.stderr)


def show(answer: Written) -> None:
    """On a line of its own, unsupported words underlined."""
    spans = [(claim.start, claim.start + len(claim.text)) for claim in answer.unsupported]
    text = " ".join(answer.text.split()) if not spans else answer.text.replace("\n", " ")
    write = getattr(sys.stdout, "write_marked", None)
    write(f"{text}\n", spans) if write else print(text)


def left_out_for(title: str, answer: Written) -> str:
    words = ", ".join(dict.fromkeys(claim.text for claim in answer.unsupported))
    return one_line(f"No answer for {title[:60]}: every try states what nothing supports ({words}).")


def no_answer(title: str, window: int) -> str:
    if not title:
        return "No answer: the row has no title, or cannot be read."
    return f"No answer: longer than the {window:,} tokens that the model sees: {one_line(title[:60])} ..."


def converse(
    writer: Writer, attributes: dict[str, str], copies: int, sources: Sources, adapters: list[Path], strict: bool
) -> int:
    """The interactive loop: a title or a question in, an answer out, as it is written if there is one try at it.

    /sources [K] lists what it can be checked against, /2 goes on with the second adapter.
    """
    for number, folder in enumerate(adapters, start=1):
        print(f"/{number}  {folder}", file=sys.stderr)
    asked, now = 0, 0
    try:
        while (title := plain(input("\nTitle or question> "))).lower() not in ("sair", "quit", "exit"):
            if title in (f"/{number + 1}" for number in range(len(adapters))):
                try:
                    writer = replace(writer, encoder=switch_adapter(writer.model, adapters[int(title[1:]) - 1]))
                    now = int(title[1:]) - 1
                except (ModelUnavailable, UnsupportedModel, DataError) as error:
                    print(error, file=sys.stderr)
                    writer = replace(writer, encoder=switch_adapter(writer.model, adapters[now]))
                print(f"Now with {adapters[now]}.")
                continue
            if title.split()[:1] == ["/sources"]:
                print(sources.switch(title.removeprefix("/sources").strip()), file=sys.stderr)
                continue
            if title.startswith("/"):
                numbers = f", /1 to /{len(adapters)} (adapters)" if len(adapters) > 1 else ""
                print(f"{title.split()[0]} is no command; there are /sources{numbers} and sair.", file=sys.stderr)
                continue
            try:
                for _ in range(copies if title else 0):
                    answer_aloud(writer, Asked(title).record(set(), attributes), asked, sources, strict)
                    asked += 1
            except KeyboardInterrupt:  # of this answer; at the prompt it ends the loop
                print("\n(stopped; Ctrl-D leaves)", file=sys.stderr)
    except (EOFError, KeyboardInterrupt):
        print()
    return 0


def answer_aloud(writer: Writer, record: Record, number: int, sources: Sources, strict: bool) -> None:
    """Print the answer to one title, and its sources if they are wanted: as it is written if there is one try at it,
    and then what of it nothing supports."""
    products, window, title = sources.nearest(record), writer.window, record["title"]
    context = sources.context(products)
    prompts = writer.encoder.prompts([writer.encoder.template.asked(record)], [context], window)
    if len(prompts[0]) >= window:
        return print(no_answer(title, window), file=sys.stderr)
    if writer.claims and not products:
        print(f"({NOT_TAUGHT})", file=sys.stderr)
    if writer.tries > 1 or strict:
        (answer,) = writer.write(prompts, [[given(record), context]], [number])
        if strict and answer.unsupported:
            return print(left_out_for(title, answer), file=sys.stderr)
        show(answer)
    else:
        written = ""
        for piece in answer_pieces(writer, prompts, number):
            print(piece, end="", flush=True)
            written += piece
        print()
        if writer.claims and (claims := writer.claims.unsupported(written, [given(record), context])):
            print(f"(nothing supports: {', '.join(dict.fromkeys(c.text for c in claims))})", file=sys.stderr)
    sources.show(products)


def switch_adapter(model, folder: Path) -> Encoder:
    """Another adapter over the same base, which stays in memory; returns the encoder with its template."""
    unwrap(model)
    load_adapter(model, folder)
    return encoder_of(model.name_or_path, load_template(folder, default=QA))


def adapter_folder(name: str, options) -> Path:
    """The folder of an adapter: itself, or what a LoRA run of that name or path saved. Raises `UsageError`."""
    folder = Path(name) if is_adapter(name) else weights_of(find_run(name, options.output_dir))
    if not is_adapter(folder):
        raise UsageError(f"{name} holds a whole model, not an adapter: use --run {name}.")
    return folder


def run_around(folder: Path) -> Path | None:
    """The run that saved an adapter; None for an adapter from elsewhere."""
    return folder.parent if (folder.parent / CONFIG).is_file() else None


def answer_pieces(writer: Writer, prompts: list[list[int]], number: int) -> Iterator[str]:
    """The answer to the one prompt as it is written, in pieces that can be printed as they come."""
    encoder, stop = writer.encoder, writer.encoder.template.stop
    text, rule = StableText(encoder.tokenizer, stop), stop_rule(encoder.tokenizer, stop)
    for (token,) in tokens_of(writer.model, prompts, encoder.end_token, writer.sampling, [number], rule):
        yield text.feed(token)
    yield text.rest()


if __name__ == "__main__":
    run_script(main, OPTIONS)
