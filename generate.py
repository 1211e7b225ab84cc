"""Ask a trained model for descriptions.

python generate.py                            the interactive loop, with the newest run
python generate.py --title "Blue ceramic mug" --title "Caneca azul"
python generate.py --question "Fale sobre a caneca azul"
python generate.py --titles titles.txt        one title a line; answers as JSONL on standard output
python generate.py --before                   the same, with the model as it was before training
python generate.py --sources 3                lists under each answer the products that it can be checked against
"""

import sys
from pathlib import Path

from run.cli import Parser, UsageError, integer, real, run_script


def parse(args: list[str] | None = None):
    parser = Parser(prog="generate.py", usage="python generate.py [options]", description="Descriptions from titles.")
    parser.add_argument("--run", metavar="NAME|PATH", help="the run to ask; default: the newest in --output_dir")
    parser.add_argument("--output_dir", type=Path, default=Path("checkpoints"), metavar="FOLDER", help="[checkpoints]")
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
    parser.add_argument("--titles", type=Path, metavar="FILE", help="a title a line; JSONL goes to standard output")
    parser.add_argument("--sources", type=integer(0, most=1000), default=0, metavar="K", help="list K products [0]")
    parser.add_argument("--grounded", action="store_true", help="put the nearest product's content into the prompt")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="with the catalogue; default: the run's own data")
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token, as with --temperature 0")
    parser.add_argument("--temperature", type=real(0, most=100), default=0.7, metavar="X", help="low is safe [0.7]")
    parser.add_argument("--top_k", type=integer(0), default=50, metavar="N", help="of the N likeliest; 0: all [50]")
    parser.add_argument("--top_p", type=real(1e-6, most=1), default=0.95, metavar="X", help="of that share [0.95]")
    parser.add_argument("--repetition_penalty", type=real(0.1, most=10), default=1.0, metavar="X", help="[1.0]")
    parser.add_argument("--no_repeat_ngram_size", type=integer(0), metavar="N", help="0: may repeat [4; greedy 0]")
    parser.add_argument("--max_new_tokens", type=integer(1), default=220, metavar="N", help="[220]")
    parser.add_argument("--num_return_sequences", type=integer(1, most=1000), default=1, metavar="N", help="[1]")
    parser.add_argument("--seed", type=integer(0), default=42, metavar="N", help="[42]")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="[auto]")
    options = parser.parse_args(args)
    options.greedy |= options.temperature < 0.01  # smaller ones overflow
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
    return options


if __name__ == "__main__":
    OPTIONS = parse()  # before torch is imported, so that --help answers at once

import json
from collections.abc import Iterator

from catalogue.index import Catalogue, Product
from model.adapter import adapter_base, is_adapter, load_adapter
from model.errors import ModelUnavailable, UnsupportedModel
from model.load import context_length
from model.lora import unwrap
from model.sample import Sampling, generate, tokens_of
from run.device import pick_machine
from run.folders import CONFIG, base_model_of, find_run, read_run, weights_of
from run.loading import encoder_of, load
from text.answer import StableText, decode, stop_rule
from text.batch import Encoder
from text.errors import DataError
from text.template import QA, load_template


def main(options) -> int:
    titles = read_titles(options.titles) if options.titles else options.title
    machine, adapters = pick_machine(options.device), [adapter_folder(name, options) for name in options.adapter or ()]
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
    model, encoder = load(source, load_template(weights, default=QA), 0, machine, four_bit)
    if adapters:
        load_adapter(model, weights)
    tokenizer, template = encoder.tokenizer, encoder.template
    sampling = Sampling(
        max_new_tokens=options.max_new_tokens,
        greedy=options.greedy,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        repetition_penalty=options.repetition_penalty,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        seed=options.seed,
    )
    copies = options.num_return_sequences
    for title, prompt in zip(titles or [], encoder.prompts(titles or [""]), strict=False):
        if len(prompt) >= context_length(model.config):
            print(f"Too long for this model, so it gets no answer: {title[:60]}...", file=sys.stderr)

    if titles is None and sys.stdin.isatty():
        print(f"{source}  (/sources: what to check it against; sair, quit or Ctrl-D to leave)", file=sys.stderr)
        return converse(model, encoder, sampling, copies, sources, adapters)
    if titles is None:
        titles = piped_titles()
    if not titles:
        raise UsageError("There is no title to answer.")

    if len(titles) == copies == 1 and not options.titles:
        answer_aloud(model, encoder, titles[0], sampling, 0, sources)
        return 0
    window = context_length(model.config)
    found = [sources.nearest(title) for title in titles]
    prompts = encoder.prompts(titles, [sources.context(products) for products in found], window)
    prompts = [prompt for prompt in prompts for _ in range(copies)]
    answers = generate(model, prompts, encoder.end_token, sampling, stop_rule=stop_rule(tokenizer, template.stop))
    for i, answer in enumerate(answers):
        text = decode(tokenizer, answer.ids, template.stop)
        products = found[i // copies]
        entry = {"title": titles[i // copies], "answer": text, "stopped": answer.stopped}
        if options.sources:
            entry["sources"] = [{"uid": p.uid, "title": p.title, "matched": p.matched} for p in products]
        if options.grounded:
            entry["grounded_on"] = products[0].uid if products else None
        print(json.dumps(entry, ensure_ascii=False) if options.titles else " ".join(text.split()))
        if not options.titles and (i + 1) % copies == 0:
            sources.show(products)
    return 0


def converse(model, encoder: Encoder, sampling: Sampling, copies: int, sources: "Sources", adapters: list[Path]) -> int:
    """The interactive loop: a title or a question in, an answer streamed out.

    /sources [K] lists what it can be checked against, /2 goes on with the second adapter.
    """
    for number, folder in enumerate(adapters, start=1):
        print(f"/{number}  {folder}", file=sys.stderr)
    asked, now = 0, 0
    try:
        while (title := input("\nTitle or question> ").strip()).lower() not in ("sair", "quit", "exit"):
            if title in (f"/{number + 1}" for number in range(len(adapters))):
                try:
                    encoder = switch_adapter(model, adapters[int(title[1:]) - 1])
                    now = int(title[1:]) - 1
                except (ModelUnavailable, UnsupportedModel, DataError) as error:
                    print(error, file=sys.stderr)
                    encoder = switch_adapter(model, adapters[now])
                print(f"Now with {adapters[now]}.")
                continue
            if title.split()[:1] == ["/sources"]:
                print(sources.switch(title.removeprefix("/sources").strip()), file=sys.stderr)
                continue
            if title.startswith("/"):
                numbers = f", /1 to /{len(adapters)} (adapters)" if len(adapters) > 1 else ""
                print(f"{title.split()[0]} is no command; there are /sources{numbers} and sair.", file=sys.stderr)
                continue
            for _ in range(copies if title else 0):
                answer_aloud(model, encoder, title, sampling, asked, sources)
                asked += 1
    except (EOFError, KeyboardInterrupt):
        print()
    return 0


def answer_aloud(model, encoder: Encoder, title: str, sampling: Sampling, number: int, sources: "Sources") -> None:
    """Print the answer to `title` as it is written, and its sources if they are wanted."""
    products = sources.nearest(title)
    prompts = encoder.prompts([title], [sources.context(products)], context_length(model.config))
    for piece in answer_pieces(model, encoder, prompts, sampling, number):
        print(piece, end="", flush=True)
    print()
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


def answer_pieces(model, encoder: Encoder, prompts: list[list[int]], sampling: Sampling, number: int) -> Iterator[str]:
    """The answer to the one prompt as it is written, in pieces that can be printed as they come."""
    stop = encoder.template.stop
    text, rule = StableText(encoder.tokenizer, stop), stop_rule(encoder.tokenizer, stop)
    for (token,) in tokens_of(model, prompts, encoder.end_token, sampling, [number], rule):
        yield text.feed(token)
    yield text.rest()


def piped_titles() -> list[str]:
    try:
        return list(filter(None, map(str.strip, sys.stdin)))
    except UnicodeDecodeError as error:
        raise UsageError(f"Standard input is not UTF-8 text: {error}") from None


class Sources:
    """What of the catalogue is shown under an answer, and what of it is put before a prompt."""

    def __init__(self, folder: Path, count: int, grounded: bool):
        """`count` products are listed, 0: none. Raises DataError when a catalogue is needed and there is none."""
        self._folder, self._count, self._grounded = folder, count, grounded
        self._catalogue = Catalogue(folder) if count or grounded else None

    def nearest(self, title: str) -> list[Product]:
        count = max(self._count, 1 if self._grounded else 0)
        return self._catalogue.nearest(title, count) if count else []

    def context(self, products: list[Product]) -> str:
        """What is put before the prompt, "" for nothing; says so."""
        if not self._grounded:
            return ""
        if not products:
            print("(grounded: nothing in the catalogue matches; the model answers by itself)", file=sys.stderr)
            return ""
        print(f"(grounded on {products[0].uid}: {products[0].title})", file=sys.stderr)
        return products[0].content

    def show(self, products: list[Product]) -> None:
        if not self._count:
            return
        if not products:
            print("  This answer has no source: nothing in the catalogue matches.")
        for number, product in enumerate(products[: self._count], start=1):
            print(f"  [{number}] {product.uid}  {product.title}  (matched: {', '.join(product.matched)})")

    def switch(self, count: str) -> str:
        """Turn the list on or off, or set its length; returns what to say."""
        if count and not count.isdecimal():
            return "/sources turns the list of sources on and off, /sources 5 makes it five products long."
        try:
            self._catalogue = self._catalogue or Catalogue(self._folder)
        except DataError as error:
            return str(error)
        self._count = int(count) if count else 0 if self._count else 3
        return f"Sources: the {self._count} nearest products." if self._count else "Sources: off."


def read_titles(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as UTF-8 text: {error}") from None
    return [line.strip() for line in lines if line.strip()]


if __name__ == "__main__":
    run_script(main, OPTIONS)
