"""Ask a trained model for descriptions.

python generate.py                            the interactive loop, with the newest run
python generate.py --title "Blue ceramic mug" --title "Caneca azul"
python generate.py --question "Fale sobre a caneca azul"
python generate.py --titles titles.txt        one title a line; answers as JSONL on standard output
python generate.py --before                   the same, with the model as it was before training
"""

import sys
from pathlib import Path

from run.cli import Parser, UsageError, run_script


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
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token")
    parser.add_argument("--temperature", type=float, default=0.7, metavar="X", help="lower is safer [0.7]")
    parser.add_argument("--top_k", type=int, default=50, metavar="N", help="draw from the N likeliest; 0: all [50]")
    parser.add_argument("--top_p", type=float, default=0.95, metavar="X", help="and from this share of them [0.95]")
    parser.add_argument("--repetition_penalty", type=float, default=1.0, metavar="X", help="above 1 avoids words [1.0]")
    parser.add_argument("--no_repeat_ngram_size", type=int, default=4, metavar="N", help="0: may repeat [4]")
    parser.add_argument("--max_new_tokens", type=int, default=220, metavar="N", help="[220]")
    parser.add_argument("--num_return_sequences", type=int, default=1, metavar="N", help="answers for each title [1]")
    parser.add_argument("--seed", type=int, default=42, metavar="N", help="[42]")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="[auto]")
    options = parser.parse_args(args)
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
    if options.temperature <= 0:
        parser.error("--temperature must be above 0; for the likeliest token every time use --greedy.")
    if not 0 < options.top_p <= 1 or options.repetition_penalty <= 0:
        parser.error("--top_p lies above 0 and up to 1, --repetition_penalty above 0.")
    if min(options.max_new_tokens, options.num_return_sequences) < 1 or min(options.top_k, options.seed) < 0:
        parser.error("--max_new_tokens and --num_return_sequences are at least 1, --top_k and --seed at least 0.")
    return options


if __name__ == "__main__":
    OPTIONS = parse()  # before torch is imported, so that --help answers at once

import json
from collections.abc import Iterator

from model.adapter import adapter_base, is_adapter, load_adapter
from model.load import load_model, load_tokenizer
from model.lora import unwrap
from model.sample import Sampling, generate, tokens_of
from run.checkpoint import CONFIG, base_model_of, find_run, read_json, weights_of
from run.device import pick_machine
from text.answer import StableText, decode, stop_rule
from text.batch import Encoder
from text.template import QA, fit_tokenizer, load_template


def main(options) -> int:
    titles = read_titles(options.titles) if options.titles else options.title
    machine, adapters = pick_machine(options.device), [adapter_folder(name, options) for name in options.adapter or ()]
    if adapters:
        weights, four_bit = adapters[0], options.load_in_4bit
        source = options.base or adapter_base(weights)
    else:
        run = find_run(options.run, options.output_dir)
        weights = weights_of(run)
        source = base_model_of(run) if options.before else weights
        four_bit = options.load_in_4bit or read_json(run / CONFIG)["options"].get("load_in_4bit", False)
    model = load_model(source, four_bit=four_bit, compute_dtype=machine.dtype).to(machine.device)
    if adapters:
        load_adapter(model, weights)
    encoder = encoder_for(weights, source)
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

    if titles is None and sys.stdin.isatty():
        print(f"{source}  (sair, quit or Ctrl-D to leave)", file=sys.stderr)
        return converse(model, encoder, sampling, copies, adapters)
    if titles is None:
        titles = list(filter(None, map(str.strip, sys.stdin)))
    if not titles:
        raise UsageError("There is no title to answer.")

    if len(titles) == copies == 1 and not options.titles:
        for piece in answer_pieces(model, encoder, titles[0], sampling, number=0):
            print(piece, end="", flush=True)
        print()
        return 0
    prompts = [prompt for prompt in encoder.prompts(titles) for _ in range(copies)]
    answers = generate(model, prompts, encoder.end_token, sampling, stop_rule=stop_rule(tokenizer, template.stop))
    for i, answer in enumerate(answers):
        text = decode(tokenizer, answer.ids, template.stop)
        entry = {"title": titles[i // copies], "answer": text, "stopped": answer.stopped}
        print(json.dumps(entry, ensure_ascii=False) if options.titles else " ".join(text.split()))
    return 0


def converse(model, encoder: Encoder, sampling: Sampling, copies: int, adapters: list[Path]) -> int:
    """The interactive loop: a title or a question in, an answer streamed out; /2 goes on with the second adapter."""
    for number, folder in enumerate(adapters, start=1):
        print(f"/{number}  {folder}", file=sys.stderr)
    asked = 0
    try:
        while (title := input("\nTitle or question> ").strip()).lower() not in ("sair", "quit", "exit"):
            if title in (f"/{number + 1}" for number in range(len(adapters))):
                folder = adapters[int(title[1:]) - 1]
                encoder = switch_adapter(model, encoder, folder)
                print(f"Now with {folder}.")
                continue
            for _ in range(copies if title else 0):
                for piece in answer_pieces(model, encoder, title, sampling, number=asked):
                    print(piece, end="", flush=True)
                print()
                asked += 1
    except (EOFError, KeyboardInterrupt):
        print()
    return 0


def switch_adapter(model, encoder: Encoder, folder: Path) -> Encoder:
    """Another adapter over the same base, which stays in memory; returns the encoder with its template."""
    unwrap(model)
    load_adapter(model, folder)
    return encoder_for(folder, model.name_or_path)


def encoder_for(weights: Path, source: str | Path) -> Encoder:
    """The template of `weights`, before and after training the same, with the tokenizer of `source`."""
    tokenizer, template = load_tokenizer(source), load_template(weights, default=QA)
    fit_tokenizer(tokenizer, template)
    return Encoder(tokenizer, template, max_length=0)


def adapter_folder(name: str, options) -> Path:
    """The folder of an adapter: itself, or what a LoRA run of that name or path saved. Raises `UsageError`."""
    folder = Path(name) if is_adapter(name) else weights_of(find_run(name, options.output_dir))
    if not is_adapter(folder):
        raise UsageError(f"{name} holds a whole model, not an adapter: use --run {name}.")
    return folder


def answer_pieces(model, encoder: Encoder, title: str, sampling: Sampling, number: int) -> Iterator[str]:
    """The answer as it is written, in pieces that can be printed as they come."""
    stop = encoder.template.stop
    text, rule = StableText(encoder.tokenizer, stop), stop_rule(encoder.tokenizer, stop)
    for (token,) in tokens_of(model, encoder.prompts([title]), encoder.end_token, sampling, [number], rule):
        yield text.feed(token)
    yield text.rest()


def read_titles(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as UTF-8 text: {error}") from None
    return [line.strip() for line in lines if line.strip()]


if __name__ == "__main__":
    run_script(main, OPTIONS)
