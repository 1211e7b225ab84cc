"""What the projects that this began as lose on the way, counted on prepared data (docs/SEED.md).

    python benchmarks/seed.py                                     the example catalogue, pocket's own tokenizer
    python benchmarks/seed.py --data FOLDER --tokenizer FOLDER    other records; a tokenizer from a folder, as GPT-2's
    python benchmarks/seed.py --run RUN                           also: a trained model, asked in other words

The rows are those of training (text/batch.py), the other way is computed from the same records.
"""

import argparse
import re
import sys
import unicodedata
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

MAX_LENGTH = 256  # tokens, of the projects and of the defaults here


def parse(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "data", metavar="FOLDER", help="prepared data [data]")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="default: one that is trained on the data, as pocket's")
    parser.add_argument("--run", metavar="RUN", help="a trained run, asked in its own prompt and in others")
    return parser.parse_args(args)


def count_tokens(records: list[dict], tokenizer) -> None:
    """What is dropped, padded and supervised, by the tokens of the default prompt."""
    from text.batch import Encoder
    from text.template import QA

    whole = Encoder(tokenizer, QA, 1 << 20).rows(records)
    kept = [row for row in whole if len(row.ids) <= MAX_LENGTH]
    cut = Encoder(tokenizer, QA, MAX_LENGTH).rows(records)
    columns, tokens, prompts = (
        MAX_LENGTH * len(kept),
        sum(len(row.ids) for row in kept),
        sum(row.first_supervised for row in kept),
    )
    said, said_by_kept = (sum(len(row.ids) - row.first_supervised for row in rows) for rows in (cut, kept))
    print(f"records                                      {len(whole):>12,}")
    print(f"over {MAX_LENGTH} tokens: dropped there, cut here      {share(len(whole) - len(kept), len(whole))}")
    print(f"answer tokens that are trained on only here  {share(said - said_by_kept, said)}")
    print(f"padding, of all that is computed there       {share(columns - tokens, columns)}")
    print(f"prompt, of the tokens under the loss there   {share(prompts, tokens)}")


def count_accents(records: list[dict]) -> None:
    """What is another text without its accents, as `encode("ascii", "ignore")` leaves it."""
    words = [re.findall(r"\w+", f"{record['title']} {record['content']}".casefold()) for record in records]
    known = set().union(*words)
    lost = {word for word in known if plain(word) != word}
    print(
        f"records that lose a letter or its accent     {share(sum(not lost.isdisjoint(w) for w in words), len(words))}"
    )
    met = sorted(word for word in lost if plain(word) in known)
    print(f"words that become another word               {len(met):>12,} of {len(lost):,}: {', '.join(met[:6])}")


def ask_in_other_words(name: str, data: Path) -> None:
    """The loss on the held-out answers, nats a token, behind each of the prompts."""
    from model.attention import use_flat_attention
    from model.loss import mean_loss
    from run.asking import load_to_ask, machine_for
    from run.data import open_split
    from run.folders import base_model_of, find_run, weights_of
    from text.batch import Encoder, flat_batches
    from text.template import TEMPLATES, Template, load_template

    weights, records = weights_of(find_run(name)), list(islice(open_split(data, "test"), 300))
    own = load_template(weights)
    model, encoder, _, _ = load_to_ask(weights, own, machine_for(None, "auto", base_model_of(find_run(name))))
    use_flat_attention(model)
    prompts = {"that of its training": own, "the bare title": Template("bare", "{title}\n", "{content}")}
    prompts |= {f"{name} {language}": template for (name, language), template in TEMPLATES.items() if template != own}
    for words, template in prompts.items():
        rows = Encoder(encoder.tokenizer, template, MAX_LENGTH).rows(records)
        print(f"loss behind {words:<33}{mean_loss(model, flat_batches(rows, 4096)):>12.3f}")


def plain(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def share(part: int, whole: int) -> str:
    return f"{part:>12,} ({part / max(1, whole):.1%})"


def main(options: argparse.Namespace) -> None:
    from model.load import POCKET_VOCABULARY, load_tokenizer
    from run.data import open_split
    from text.bpe import train_bpe
    from text.template import QA

    records = list(open_split(options.data, "train"))
    texts = (QA.prompt_for(QA.asked(record)) + QA.answer_for(record["content"]) for record in records)
    trained = load_tokenizer(options.tokenizer) if options.tokenizer else train_bpe(texts, POCKET_VOCABULARY)
    count_tokens(records, trained)
    count_accents(records)
    if options.run:
        ask_in_other_words(options.run, options.data)


if __name__ == "__main__":
    main(parse())
