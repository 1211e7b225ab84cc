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

from model.load import load_model, load_tokenizer
from model.sample import Sampling, generate, tokens_of
from run.checkpoint import base_model_of, find_run, weights_of
from run.device import pick_machine
from text.answer import StableText, decode, stop_rule
from text.batch import Encoder
from text.template import fit_tokenizer, load_template


def main(options) -> int:
    titles = read_titles(options.titles) if options.titles else options.title
    run = find_run(options.run, options.output_dir)
    weights = weights_of(run)
    source = base_model_of(run) if options.before else weights
    model, tokenizer = load_model(source), load_tokenizer(source)
    model.to(pick_machine(options.device).device)
    template = load_template(weights)  # the run's own, before and after
    fit_tokenizer(tokenizer, template)
    encoder = Encoder(tokenizer, template, max_length=0)
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
        return converse(model, encoder, sampling, copies)
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


def converse(model, encoder: Encoder, sampling: Sampling, copies: int) -> int:
    """The interactive loop: a title or a question in, an answer streamed out."""
    asked = 0
    try:
        while (title := input("\nTitle or question> ").strip()).lower() not in ("sair", "quit", "exit"):
            for _ in range(copies if title else 0):
                for piece in answer_pieces(model, encoder, title, sampling, number=asked):
                    print(piece, end="", flush=True)
                print()
                asked += 1
    except (EOFError, KeyboardInterrupt):
        print()
    return 0


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
