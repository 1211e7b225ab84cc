"""Ask a trained model for descriptions.

python generate.py                            the interactive loop, with the newest run
python generate.py --title "Blue ceramic mug" --title "Caneca azul"
python generate.py --question "Fale sobre a caneca azul"
python generate.py --titles titles.txt        one title a line; answers as JSONL on standard output
python generate.py --before                   the same, with the model as it was before training
python generate.py --sources 3                lists under each answer the products that it can be checked against
python generate.py --candidates 8             writes eight answers to each title and keeps the truest

A word that states a fact which neither the title nor the text before the prompt has is unsupported: it is underlined,
and named in JSONL. Who publishes such an answer should check it.
"""

import argparse
import sys
from pathlib import Path

from catalogue.encoding import evident_encoding, looks_like_cp1252
from run.cli import Parser, UsageError, integer, path, real, run_script
from run.folders import CONFIG, base_model_of, find_run, read_run, weights_of
from run.terminal import one_line

CANDIDATES = 8
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
    parser.add_argument("--titles", type=path, metavar="FILE", help="a title a line; JSONL goes to standard output")
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
    parser.add_argument("--strict", action="store_true", help="leave answers out that state what nothing supports")
    parser.add_argument("--num_return_sequences", type=integer(1, most=1000), default=1, metavar="N", help="[1]")
    parser.add_argument("--seed", type=integer(0), default=42, metavar="N", help="[42]")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="[auto]")
    options = parser.parse_args(args)
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
    if options.greedy and options.num_return_sequences > 1:
        parser.error("--greedy has only one answer for a title; leave --num_return_sequences out.")
    try:  # what needs no torch is said before it is loaded
        if options.titles:
            options.title = read_titles(options.titles)
        elif options.title:
            options.title = [as_text(title) for title in options.title]
        if not options.adapter:
            find_run(options.run, options.output_dir)
    except UsageError as error:
        parser.error(str(error))
    return options


def read_titles(file: Path) -> list[str]:
    """UTF-8, UTF-16, or what looks like cp1252, which is said. Raises `UsageError` when the file cannot be read."""
    try:
        raw = file.read_bytes()
        return lines_of(raw.decode(evident_encoding(raw)))
    except UnicodeDecodeError as error:
        if not looks_like_cp1252(raw):
            raise UsageError(f"{file} cannot be read: it is no UTF-8 text ({error.reason}): save it so.") from None
        print(f"{file} is no UTF-8: read as cp1252.", file=sys.stderr)
        return lines_of(raw.decode("cp1252"))
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None


def lines_of(text: str) -> list[str]:
    """The titles in a text, one a line; bytes that are no text show as U+FFFD."""
    return [title for line in text.split("\n") if (title := as_text(line))]


def as_text(argument: str) -> str:
    """What a shell or a pipe gave, without the marks of bytes that are not UTF-8."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip()


if __name__ == "__main__":
    OPTIONS = parse()  # before torch is imported, so that --help answers at once

import json
from collections.abc import Iterator
from dataclasses import replace

from tqdm import tqdm

from catalogue.claims import Claims
from catalogue.index import FILE_NAME, Catalogue, Product
from model.adapter import adapter_base, is_adapter, load_adapter
from model.errors import ModelUnavailable, UnsupportedModel
from model.lora import unwrap
from model.sample import Sampling, tokens_of
from run.asking import load_to_ask, machine_for
from run.candidates import NOTHING, Writer, Written
from run.loading import encoder_of
from text.answer import StableText, stop_rule
from text.batch import Encoder
from text.errors import DataError
from text.template import QA, load_template


def main(options) -> int:
    titles = options.title
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
    machine = machine_for(run, options.device, base_model_of(run) if run else source)
    template = load_template(weights, default=QA)
    many = len(titles or ()) > 1 or options.num_return_sequences > 1 or not (titles or sys.stdin.isatty())
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
    with machine.autocast():
        if titles is None and sys.stdin.isatty():
            print("(/sources: what to check it against; sair, quit or Ctrl-D to leave)", file=sys.stderr)
            return converse(writer, copies, sources, adapters, options.strict)
        titles = lines_of(sys.stdin.read()) if titles is None else titles
        if not titles:
            raise UsageError("There is no title to answer.")
        if len(titles) == copies == 1 and not options.titles:
            answer_aloud(writer, titles[0], 0, sources, options.strict)
        else:
            answer_all(writer, titles, copies, sources, options.strict, as_json=bool(options.titles))
    return 0


def answer_all(writer: Writer, titles: list[str], copies: int, sources: "Sources", strict: bool, as_json: bool) -> None:
    """Print every answer in its order, some at a time; a title that the model cannot take gets none, and that is said.

    `strict`: nor does one whose answers all state what nothing supports. Stops when nobody reads them any more.
    """
    window, asked, left_out = writer.window, [title for title in titles for _ in range(copies)], 0
    bar = tqdm(total=len(asked), desc="answering", leave=False, disable=None)
    for first in range(0, len(asked), PRINTED_TOGETHER):
        some = asked[first : first + PRINTED_TOGETHER]
        found = {title: sources.nearest(title) for title in some}
        contexts = {title: sources.context(products) for title, products in found.items()}
        prompts = writer.encoder.prompts(some, [contexts[title] for title in some], window)
        fitting = [i for i, prompt in enumerate(prompts) if len(prompt) < window]
        texts = [[some[i], contexts[some[i]]] for i in fitting]
        written = writer.write([prompts[i] for i in fitting], texts, [first + i for i in fitting])
        answers = dict(zip(fitting, written, strict=True))
        for i, title in enumerate(some):
            products, answer = found[title], answers.get(i, NOTHING)
            entry = {"title": title, "answer": answer.text, "stopped": answer.stopped}
            if writer.claims:
                entry["unsupported"] = [claim._asdict() for claim in answer.unsupported]
            if answer is NOTHING:
                entry["error"] = no_answer(title, window)
            elif strict and answer.unsupported:
                entry |= {"answer": "", "error": left_out_for(title, answer)}
                left_out += 1
            if "error" in entry:
                tqdm.write(entry["error"], file=sys.stderr)
            if sources.count:
                entry["sources"] = [{"uid": p.uid, "title": p.title, "matched": p.matched} for p in products]
            if sources.grounded:
                entry["grounded_on"] = products[0].uid if products else None
            if as_json:
                tqdm.write(json.dumps(entry, ensure_ascii=False), file=sys.stdout)
            else:
                bar.clear()
                show(answer if entry["answer"] else NOTHING)
                bar.refresh()
            if not as_json and (first + i + 1) % copies == 0:
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
    return f"No answer: longer than the {window:,} tokens that the model sees: {one_line(title[:60])} ..."


def converse(writer: Writer, copies: int, sources: "Sources", adapters: list[Path], strict: bool) -> int:
    """The interactive loop: a title or a question in, an answer out, as it is written if there is one try at it.

    /sources [K] lists what it can be checked against, /2 goes on with the second adapter.
    """
    for number, folder in enumerate(adapters, start=1):
        print(f"/{number}  {folder}", file=sys.stderr)
    asked, now = 0, 0
    try:
        while (title := as_text(input("\nTitle or question> "))).lower() not in ("sair", "quit", "exit"):
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
                    answer_aloud(writer, title, asked, sources, strict)
                    asked += 1
            except KeyboardInterrupt:  # of this answer; at the prompt it ends the loop
                print("\n(stopped; Ctrl-D leaves)", file=sys.stderr)
    except (EOFError, KeyboardInterrupt):
        print()
    return 0


def answer_aloud(writer: Writer, title: str, number: int, sources: "Sources", strict: bool) -> None:
    """Print the answer to `title`, and its sources if they are wanted: as it is written if there is one try at it, and
    then what of it nothing supports."""
    products, window = sources.nearest(title), writer.window
    context = sources.context(products)
    prompts = writer.encoder.prompts([title], [context], window)
    if len(prompts[0]) >= window:
        return print(no_answer(title, window), file=sys.stderr)
    if writer.claims and not sources.known(title):
        print("(nothing in the catalogue resembles this: the model was not taught such a product)", file=sys.stderr)
    if writer.tries > 1 or strict:
        (answer,) = writer.write(prompts, [[title, context]], [number])
        if strict and answer.unsupported:
            return print(left_out_for(title, answer), file=sys.stderr)
        show(answer)
    else:
        written = ""
        for piece in answer_pieces(writer, prompts, number):
            print(piece, end="", flush=True)
            written += piece
        print()
        if writer.claims and (claims := writer.claims.unsupported(written, [title, context])):
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


class Sources:
    """What of the catalogue is shown under an answer, and what of it is put before a prompt."""

    def __init__(self, folder: Path, count: int, grounded: bool):
        """`count` products are listed, 0: none. Raises DataError when a catalogue is needed and there is none."""
        self._folder, self.count, self.grounded = folder, count, grounded
        self._catalogue = Catalogue(folder) if count or grounded or (folder / FILE_NAME).is_file() else None

    def claims(self) -> Claims | None:
        """What judges answers; None without a catalogue."""
        return Claims(self._catalogue) if self._catalogue else None

    def known(self, title: str) -> bool:
        """Whether some product's title shares a word with `title`, other than numbers."""
        return bool(self._catalogue and self._catalogue.nearest(title, 1))

    def nearest(self, title: str) -> list[Product]:
        count = max(self.count, 1 if self.grounded else 0)
        return self._catalogue.nearest(title, count) if count else []

    def context(self, products: list[Product]) -> str:
        """What is put before the prompt, "" for nothing; says so."""
        if not self.grounded:
            return ""
        if not products:
            print("(grounded: nothing in the catalogue matches; the model answers by itself)", file=sys.stderr)
            return ""
        print(f"(grounded on {products[0].uid}: {products[0].title})", file=sys.stderr)
        return products[0].content

    def show(self, products: list[Product]) -> None:
        if not self.count:
            return
        if not products:
            print("  This answer has no source: nothing in the catalogue matches.")
        for number, product in enumerate(products[: self.count], start=1):
            print(f"  [{number}] {product.uid}  {product.title}  (matched: {', '.join(product.matched)})")

    def switch(self, count: str) -> str:
        """Turn the list on or off, or set its length; returns what to say."""
        try:
            wanted = integer(0, most=1000)(count) if count else 0 if self.count else 3
        except (ValueError, argparse.ArgumentTypeError):
            return "/sources turns the list of sources on and off, /sources 5 makes it five products long."
        try:
            self._catalogue = self._catalogue or Catalogue(self._folder)
        except DataError as error:
            return str(error)
        self.count = wanted
        return f"Sources: the {self.count} nearest products." if self.count else "Sources: off."


if __name__ == "__main__":
    run_script(main, OPTIONS)
