"""What tells a claim, what taking claims back does, and what is a source, measured on held-out titles.

python benchmarks/claims.py                     the newest run of the example catalogue
python benchmarks/claims.py --strangers FILE    also: how many titles of another catalogue find a source in this one
python benchmarks/claims.py --of FILE           also: false alarms on that catalogue's own held-out descriptions
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from catalogue.claims import Claims
from catalogue.index import Catalogue
from catalogue.inventions import KnownFacts
from catalogue.judge import Options
from catalogue.prepare import prepare
from evaluate import EXAMPLE_FACTS
from model.sample import Sampling
from run.asking import load_to_ask, machine_for
from run.candidates import Prompt, Writer
from run.cli import run_script
from run.data import open_split
from run.folders import base_model_of, find_run, read_run, weights_of
from text.metrics import contains, load_facts
from text.stream import given
from text.template import load_template

ALL = Options(val_share=0.0, test_share=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", help="default: the newest in checkpoints/")
    parser.add_argument("--strangers", type=Path, metavar="FILE")
    parser.add_argument("--of", type=Path, metavar="FILE")
    parser.add_argument("--show", type=int, default=10, metavar="N", help="examples of what is unsupported [10]")
    args = parser.parse_args()
    run = find_run(args.run, Path("checkpoints"))
    data = Path(read_run(run)["options"]["data_dir"])
    test, facts = open_split(data, "test"), load_facts(EXAMPLE_FACTS)
    known, catalogue = KnownFacts(facts, open_split(data, "train")), Catalogue(data)
    claims = Claims(catalogue)
    records = [record for record in map(test.__getitem__, range(len(test))) if known.knows(record)][:300]
    asked = records + known.short_titles(records)[:300]

    template, machine = load_template(weights_of(run)), machine_for(run, "auto", base_model_of(run))
    model, encoder, machine, at_once = load_to_ask(weights_of(run), template, machine, answers=32)
    ids = encoder.prompts([template.asked(record) for record in asked])
    prompts = [Prompt(ids[i], [given(record)], i) for i, record in enumerate(asked)]
    writer = Writer(model, encoder, Sampling(greedy=True), claims, 1, at_once)
    with machine.autocast():
        answers, checked = (
            [answer.text for answer in replace(writer, unchecked=unchecked).write(prompts)]
            for unchecked in (True, False)
        )
    print(f"{len(records)} held-out titles and {len(asked) - len(records)} short ones, greedy answers of {run}\n")
    for name, part in (("full titles", slice(0, len(records))), ("short ones", slice(len(records), None))):
        detector(name, asked[part], answers[part], known, claims)
    alarms = [bool(claims.unsupported(record["content"], [given(record)])) for record in records]
    print(f"false alarms on their own descriptions: {sum(alarms)} of {len(alarms)}\n")

    for name, texts in (("greedy", answers), ("greedy, checked", checked)):
        pairs = list(zip(records, texts, strict=False))  # the full titles come first
        said = [its for record, text in pairs for its in known.facts_said(record, text)]
        invented = [bool(known.inventions(record, text)) for record, text in pairs]
        print(f"{name:<16} facts {sum(said) / len(said):.1%}, inventions {sum(invented) / len(invented):.1%}")
    print()
    sources(catalogue, records, facts, args.strangers)
    if args.of:
        own_false_alarms(args.of, args.show)


def detector(name: str, asked: list[dict], answers: list[str], known: KnownFacts, claims: Claims) -> None:
    pairs = list(zip(asked, answers, strict=True))
    true = [bool(known.inventions(record, text)) for record, text in pairs]
    said = [bool(claims.unsupported(text, [given(record)])) for record, text in pairs]
    both = sum(a and b for a, b in zip(true, said, strict=True))
    recall, precision = both / max(1, sum(true)), both / max(1, sum(said))
    print(f"{name}: {sum(true)} invent, {sum(said)} are told, recall {recall:.1%}, precision {precision:.1%}")


def sources(catalogue: Catalogue, records: list[dict], facts: dict, strangers: Path | None) -> None:
    """A source is right when it is a product of the same kind."""
    forms = {}  # singular and plural of a kind have their first letters in common
    for entry in facts.values():
        forms.setdefault(entry["facts"]["kind"][:6].casefold(), set()).add(entry["facts"]["kind"])
    right = found = 0
    for record in records:
        own = facts[record["uid"]]["facts"]["kind"]
        kinds = forms[own[:6].casefold()] | {own}
        near = catalogue.nearest(given(record), 3)
        found += bool(near)
        hits = [any(contains(product.content, kind) for kind in kinds) for product in near]
        right += sum(hits) / max(1, len(hits))
    print(f"sources: {found} of {len(records)} titles have some, {right / found:.1%} of them of the same kind")
    if strangers:
        with tempfile.TemporaryDirectory() as folder:
            prepare([strangers], Path(folder), ALL)
            other = open_split(Path(folder), "train")
            titles = [other[i]["title"] for i in range(min(500, len(other)))]
            other.close()
        some = [title for title in titles if catalogue.nearest(title, 3)]
        print(f"of {len(titles)} titles of {strangers.name} {len(some)} find a source here, such as {some[:3]}")


def own_false_alarms(file: Path, shown: int) -> None:
    """Of a catalogue whose facts nobody knows: descriptions that a shop wrote, judged by the others of the shop."""
    with tempfile.TemporaryDirectory() as folder:
        prepare([file], Path(folder), Options(val_share=0.0, test_share=0.2))
        claims, held_out = Claims(Catalogue(Path(folder))), open_split(Path(folder), "test")
        found = [
            (r, claims.unsupported(r["content"], [given(r)])) for r in map(held_out.__getitem__, range(len(held_out)))
        ]
        held_out.close()
    some = [(record, its) for record, its in found if its]
    print(f"\n{file.name}: {len(some)} of {len(found)} held-out descriptions state what their title does not")
    for record, its in some[:shown]:
        print(f"  {record['title'][:60]}: {', '.join(claim.text for claim in its[:8])}")


if __name__ == "__main__":
    run_script(main)
