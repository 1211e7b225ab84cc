"""Before and after: the base model and the trained one on products that neither was trained on.

    python evaluate.py                    the newest run, on 300 records of data/test.jsonl
    python evaluate.py --run NAME --max_samples 1000
    python evaluate.py --compare Qwen/Qwen2.5-0.5B TinyLlama/TinyLlama_v1.1 google-bert/bert-base-cased --lora

Both models are loaded from the disk, one after the other, and get the same records, the same prompts and the same
greedy decoding. The table is printed and saved in the run's folder, as metrics.json, evaluation.md and report.html.
`--compare` puts bases side by side: as they come, and after the same few steps of train.py, each in a process of its
own.
"""

from pathlib import Path

from run.cli import Parser, UsageError, integer, path, run_script
from run.folders import CONFIG, base_model_of, find_run, read_run, weights_of


def parse(args: list[str] | None = None):
    parser = Parser(prog="evaluate.py", usage="python evaluate.py [options]", description="Before and after training.")
    parser.add_argument("--run", metavar="NAME|PATH", help="the run; default: the newest in --output_dir")
    parser.add_argument("--output_dir", type=path, default=Path("checkpoints"), metavar="FOLDER", help="[checkpoints]")
    parser.add_argument("--data_dir", "--data", type=path, metavar="FOLDER", help="default: the run's own")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="[test]")
    parser.add_argument("--max_samples", type=integer(1), default=300, metavar="N", help="held-out records [300]")
    parser.add_argument("--max_new_tokens", type=integer(1), default=220, metavar="N", help="[220]")
    parser.add_argument(
        "--batch_size", type=integer(1, most=4096), default=32, metavar="N", help="answers written at once [32]"
    )
    parser.add_argument(
        "--candidates", type=integer(1, most=256), default=8, metavar="N", help="of the trained model, tries [8]"
    )
    parser.add_argument("--grounded", action="store_true", help="ask with a text before the prompt too")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="[auto]")
    parser.add_argument("--facts", type=path, metavar="FILE", help="facts of the titles; default: the example's")
    parser.add_argument(
        "--compare", nargs="+", metavar="MODEL", help="bases side by side, before and after --max_steps"
    )
    parser.add_argument("--max_steps", type=integer(1), metavar="N", help="with --compare: steps for each [100]")
    parser.add_argument("--lora", action="store_true", help="with --compare: adapters instead of every weight")
    parser.add_argument("--load_in_4bit", action="store_true", help="with --compare --lora: the bases in NF4")
    parser.add_argument("--template", metavar="NAME|FILE", help="with --compare: the prompt, as train.py takes it [qa]")
    parser.add_argument("--language", choices=("en", "pt"), help="with --compare: of the prompt [en]")
    options = parser.parse_args(args)
    if options.compare and options.run:
        parser.error("give --run or --compare, not both.")
    training = ("lora", "load_in_4bit", "template", "language", "max_steps")
    if not options.compare and (named := [name for name in training if getattr(options, name)]):
        parser.error(f"--{named[0]} is for the training of --compare.")
    options.template, options.language = options.template or "qa", options.language or "en"
    for named in (options.facts, options.data_dir):  # what needs no torch is said before it is loaded
        if named and not named.exists():
            raise UsageError(f"{named} does not exist.")
    if not options.compare:
        find_run(options.run, options.output_dir)
    return options


if __name__ == "__main__":
    OPTIONS = parse()  # before torch is imported, so that --help answers at once

import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping
from types import MappingProxyType

from sacrebleu import corpus_chrf

from catalogue.claims import Claims, marked
from catalogue.index import FILE_NAME, Catalogue
from catalogue.inventions import KnownFacts
from model.attention import use_flat_attention
from model.load import context_length
from model.loss import mean_loss
from model.sample import Sampling
from run.asking import load_to_ask, machine_for
from run.candidates import Prompt, Writer
from run.config import TrainConfig, from_json
from run.data import open_split
from run.device import Machine
from run.files import write_json
from run.micro_batch import with_less_when_full
from run.report import METRICS, ROWS, cell_of, write_report
from text.answer import shortened
from text.batch import Row, flat_batches
from text.copied import longest_copied
from text.metrics import bootstrap, distinct_n, fact_rates, load_facts, repetition_rate
from text.question import held_out_questions
from text.stream import Record, RecordFile, given
from text.template import Template, load_template

TRAIN = Path(__file__).parent / "train.py"
SHOWN_CHARS = 240  # of an answer in a table
TOKENS_AT_ONCE = 4096  # for the loss, without gradients
MOST_TRAINING = 500_000  # records in which copied spans are looked for: 14,000 took 0.2 s
SAMPLES = 12  # in the report
ALONE = {"unchecked": True}  # one answer, all that the model says
EXAMPLE_FACTS = Path(__file__).parent / "examples" / "facts.json.gz"

# of --compare
COMPARED = [
    ("bits_per_character", "bits per character", ".3f"),
    ("unknown", "unknown tokens", ".1%"),
    ("chrf", "chrF", ".1f"),
    ("stopped", "stopped by itself", ".0%"),
    ("trainable_parameters", "trainable parameters", ",d"),
    ("answer_tokens_per_second", "answer tokens/s in training", ",.0f"),
    ("peak_memory_bytes", "peak memory in training, bytes", ",d"),
]


def main(options) -> int:
    if options.compare:
        return compare(options)
    run = find_run(options.run, options.output_dir)
    config = from_json(read_run(run)["options"], str(run / CONFIG))
    data = options.data_dir or Path(config.data_dir)
    file = open_split(data, options.split)
    records = [file[i] for i in range(min(len(file), options.max_samples))]
    facts = load_facts(options.facts or EXAMPLE_FACTS)
    training_titles = [record["title"] for record in open_split(data, "train")]
    known = KnownFacts(facts, open_split(data, "train") if any(record["uid"] in facts for record in records) else ())
    claims = Claims(Catalogue(data)) if (data / FILE_NAME).is_file() else None
    machine, weights = machine_for(run, options.device, base_model_of(run)), weights_of(run)
    template = load_template(weights)
    print(f"{run}: {len(records)} held-out records of {file.path}, greedy answers, {machine.name}")

    results: dict[str, dict] = {}
    answers: dict[str, list[str]] = {}
    for column, source in (("before", base_model_of(run)), ("after", weights)):
        print(f"{column}: {source}")
        ways: dict[str, dict] = {column: ALONE}
        if column == "after" and claims:
            ways["after, checked"] = {}
            if options.candidates > 1:
                ways[f"after, {options.candidates} tries"] = {"candidates": options.candidates}
        others = other_questions(records, known, options) if column == "after" else {}
        asked = [*records, *itertools.chain.from_iterable(others.values())]
        numbers, written = measure(source, template, asked, len(records), config, machine, options, claims, ways)
        for name, its in written.items():
            texts = iter(its)
            answers[name] = list(itertools.islice(texts, len(records)))
            results[name] = numbers if name == column else {}
            results[name] |= fact_rates(records, answers[name], facts, training_titles)
            to_others = {way: list(itertools.islice(texts, len(some))) for way, some in others.items()}
            results[name] |= invention_rates(records, answers[name], others, to_others, known, claims)

    # Descriptions of one catalogue share sentences: what the held-out ones share tells how much is no memorising.
    results["catalogue"] = {}
    count_copied(results, answers | {"catalogue": [r["content"] for r in records]}, open_split(data, "train"))
    report = markdown(results, records, answers, options.split, claims)
    head = {"split": options.split, "records": len(records), "device": machine.name}
    write_json(run / METRICS, head | results | {"samples": some_of(records, answers)})
    (run / "evaluation.md").write_text(report, encoding="utf-8")
    page = write_report(run, data)
    print("\n" + report + f"\nSaved {run / METRICS}, {run / 'evaluation.md'} and {page}.")
    return 0


def measure(
    source: str | Path,
    template: Template,
    asked: list[Record],
    count: int,
    config: TrainConfig,
    machine: Machine,
    options,
    claims: Claims | None = None,
    ways: Mapping[str, dict] = MappingProxyType({"": ALONE}),
) -> tuple[dict[str, float], dict[str, list[str]]]:
    """One model, loaded from the disk: its numbers on the first `count` of what is `asked`, and in each of `ways`
    (what `Writer` is told; the first is the model alone) its answers to all of it. It is gone from the device when the
    next comes."""
    model, encoder, machine, at_once = load_to_ask(
        source,
        template,
        machine,
        config.load_in_4bit,
        answers=options.batch_size,
        new_tokens=options.max_new_tokens,
        max_length=config.max_length,
    )
    records = asked[:count]
    tokenizer, rows = encoder.tokenizer, encoder.rows(records)
    questions = encoder.rows(held_out_questions(records, template.held_out))

    def loss_of(rows: list[Row]) -> float:
        longest = max(len(row.ids) for row in rows)
        return with_less_when_full(lambda tokens: mean_loss(model, flat_batches(rows, tokens)), TOKENS_AT_ONCE, longest)

    use_flat_attention(model)
    with machine.autocast():
        loss, question_loss = loss_of(rows), loss_of(questions)
    supervised = [token for row in rows for token in row.ids[row.first_supervised :]]
    characters = sum(row.characters for row in rows)

    sampling = Sampling(max_new_tokens=options.max_new_tokens, greedy=True, temperature=1.0)
    contexts, written = [record.get("context", "") for record in asked], {}
    ids = encoder.prompts([template.asked(record) for record in asked], contexts, context_length(model.config))
    prompts = [
        Prompt(ids[i], [given(record), context], i)
        for i, (record, context) in enumerate(zip(asked, contexts, strict=True))
    ]
    for name, way in ways.items():
        writer = Writer(model, encoder, sampling, claims, rows=at_once, **way)
        with machine.autocast():
            written[name] = list(writer.write(prompts))
    alone = written[next(iter(ways))][:count]
    stopped, texts = sum(answer.stopped for answer in alone) / count, [answer.text for answer in alone]
    return {
        "loss": loss,
        "question_loss": question_loss,
        "perplexity": math.exp(loss),
        # of the answer and its end token; characters, unlike tokens, are the same for every tokenizer
        "bits_per_character": loss * len(supervised) / math.log(2) / max(1, characters),
        # what a tokenizer has no token for costs next to nothing, and cannot be read back; GPT-2's has one for all
        "unknown": supervised.count(tokenizer.unk_token_id) / max(1, len(supervised))
        if tokenizer.unk_token_id != tokenizer.eos_token_id
        else 0.0,
        "chrf": corpus_chrf(texts, [[record["content"] for record in records]]).score,
        "distinct_2": distinct_n(texts, 2),
        "repetition_rate": repetition_rate(texts, 4),
        "stopped": stopped,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }, {name: [answer.text for answer in its] for name, its in written.items()}


def compare(options) -> int:
    """Each base before any training, and after the same steps on the same records: one table, and samples."""
    folder = options.output_dir / f"compare-{time.strftime('%Y%m%d-%H%M%S')}"
    data, steps = options.data_dir or Path("data"), options.max_steps or 100
    commands = []
    for number, name in enumerate(options.compare, start=1):
        command = [sys.executable, TRAIN, "--model", name, "--run_name", str(number), "--max_steps", str(steps)]
        command += ["--output_dir", folder, "--data", data, "--device", options.device]
        command += ["--template", options.template, "--language", options.language]
        commands.append([*command, *(f"--{flag}" for flag in ("lora", "load_in_4bit") if getattr(options, flag))])
    for command in commands:  # before the first is trained, each says whether it can be: plans cost seconds
        if planned := subprocess.run([*command, "--dry_run"]).returncode:
            return planned  # train.py has said why
    file = open_split(data, options.split)
    records = [file[i] for i in range(min(len(file), options.max_samples))]
    lines, samples = [], []
    for number, (name, command) in enumerate(zip(options.compare, commands, strict=True), start=1):
        if failed := subprocess.run(command).returncode:
            return failed
        run = folder / str(number)
        config, weights = from_json(read_run(run)["options"], str(run / CONFIG)), weights_of(run)
        machine, template = machine_for(run, options.device, base_model_of(run)), load_template(weights)
        log = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        for when, source in (("before", base_model_of(run)), (f"after {steps} steps", weights)):
            results, written = measure(source, template, records, len(records), config, machine, options)
            (answers,) = written.values()
            results |= {key: log[-1][key] for key in ("answer_tokens_per_second", "peak_memory_bytes")}
            shown = [key for key, *_ in COMPARED[: 4 if when == "before" else None]]
            cells = [format(results[key], form) if key in shown else "" for key, _, form in COMPARED]
            lines.append(f"| {name} | {when} | {' | '.join(cells)} |")
            samples += [
                f"* {name}, {when}, {table_cell(r['title'])}: {table_cell(a)}"
                for r, a in zip(records[:2], answers, strict=False)
            ]
    head = ["base", "when", *(label for _, label, _ in COMPARED)]
    table = [f"| {' | '.join(head)} |", "|---|---|" + "---:|" * len(COMPARED), *lines]
    report = "\n".join([f"## Bases on {len(records)} records of {options.split}", "", *table, "", *samples]) + "\n"
    (folder / "comparison.md").write_text(report, encoding="utf-8")
    print(f"\n{report}\nSaved {folder / 'comparison.md'}.")
    return 0


def other_questions(records: list[Record], known: KnownFacts, options) -> dict[str, list[Record]]:
    """The products whose facts are known, asked in other ways; {} without any."""
    cut_down = known.cut_down(records)
    others = {"inventions_short": known.short_titles(records)[: options.max_samples], "cut_down": cut_down}
    if options.grounded:
        others["grounded"] = [r | {"attributes": {}, "context": r["content"]} for r in cut_down]
        whole = [record for record in records if known.knows(record)]
        texts = [*whole[1:], *whole[:1]]
        others["misled"] = [r | {"context": other["content"]} for r, other in zip(whole, texts, strict=True)]
    return others if cut_down else {}


def invention_rates(
    records: list[Record],
    answers: list[str],
    others: dict[str, list[Record]],
    to_others: dict[str, list[str]],
    known: KnownFacts,
    claims: Claims | None,
) -> dict[str, float | tuple[float, float]]:
    """Shares of the answers that state what they were not given, by the catalogue and, where they are known, by the
    facts; and, asked in `others` ways, of the facts that are said. With the intervals of 95 %."""
    counted: dict[str, list[tuple[str, bool]]] = {}  # uids of the products, and what is counted of each
    pairs = list(zip(records, answers, strict=True))
    if claims:
        counted["unsupported"] = [(r["uid"], bool(claims.unsupported(text, [given(r)]))) for r, text in pairs]
    counted["inventions"] = [(r["uid"], bool(known.inventions(r, text))) for r, text in pairs if known.knows(r)]
    for way, some in others.items():
        pairs = list(zip(some, to_others[way], strict=True))
        if way in ("cut_down", "grounded"):
            counted[way] = [(r["uid"], said) for r, text in pairs for said in known.facts_said(r, text)]
        else:
            counted[way] = [(r["uid"], bool(known.inventions(r, text))) for r, text in pairs]
    rates = {}
    for name, its in counted.items():
        if its:
            products, values = zip(*its, strict=True)
            rates |= {name: sum(values) / len(values), f"{name}_interval": bootstrap(values, products)}
    return rates


def count_copied(results: dict[str, dict], answers: dict[str, list[str]], train: RecordFile) -> None:
    """Add to `results` what the answers copy from at most MOST_TRAINING records of `train`, spread evenly."""
    stride = math.ceil(len(train) / MOST_TRAINING)
    contents = (train[i]["content"] for i in range(0, len(train), stride))
    lengths = iter(longest_copied(list(itertools.chain.from_iterable(answers.values())), contents))
    for column, texts in answers.items():
        copied = list(itertools.islice(lengths, len(texts)))
        whole = [bool(text.split()) and words == len(text.split()) for words, text in zip(copied, texts, strict=True)]
        results[column] |= {
            "copied_words": sum(copied) / len(copied),
            "copied_words_interval": bootstrap(copied),
            "copied_most": max(copied),
            "verbatim": sum(whole) / len(whole),
            "verbatim_interval": bootstrap(whole),
            "copied_from": len(range(0, len(train), stride)),
        }


def some_of(records: list[Record], answers: dict[str, list[str]]) -> list[dict]:
    """SAMPLES of the records, spread evenly, with the answers to each: for the report."""
    count = min(SAMPLES, len(records))
    chosen = [len(records) * i // count for i in range(count)]
    own = ({"catalogue": records[i]["content"]} | {column: answers[column][i] for column in answers} for i in chosen)
    return [{"given": given(records[i]), "texts": texts} for i, texts in zip(chosen, own, strict=True)]


def markdown(
    results: dict[str, dict], records: list[Record], answers: dict[str, list[str]], split: str, claims: Claims | None
) -> str:
    """The table, and a few answers side by side with what the catalogue says; what nothing supports is marked."""
    columns = list(results)
    lines = [f"## {len(records)} records of {split}, before and after", ""]
    lines += ["| | " + " | ".join(columns) + " | better |", "|---|" + "---:|" * len(columns) + "---|"]
    for key, label, form, better in ROWS:
        if any(key in results[column] for column in columns):
            lines.append(f"| {label} | {' | '.join(cell_of(results[c], key, form) for c in columns)} | {better} |")
    if "fact_titles" in results["after"]:
        known, brands = results["after"]["fact_titles"], results["after"]["unseen_brands"]
        lines += ["", f"Facts are known of {known} of the titles; {brands} of their brands stand in no training title."]
    columns = list(answers)
    lines += ["", "| title | " + " | ".join(columns) + " | catalogue |", "|---" * (len(columns) + 2) + "|"]
    for i in range(min(5, len(records))):
        texts = [shortened(answers[column][i], SHOWN_CHARS) for column in columns]
        marks = [claims.unsupported(text, [given(records[i])]) if claims else [] for text in texts]
        written = [marked(text, its, escaped) for text, its in zip(texts, marks, strict=True)]
        lines.append(f"| {' | '.join([table_cell(given(records[i])), *written, table_cell(records[i]['content'])])} |")
    return "\n".join(lines) + "\n"


def table_cell(text: str) -> str:
    """Text as a cell of a Markdown table: one line, nothing in it taken for markup."""
    return escaped(shortened(text, SHOWN_CHARS))


def escaped(text: str) -> str:
    for mark in "\\`*_<>|[]":
        text = text.replace(mark, f"&#{ord(mark)};")
    return text


if __name__ == "__main__":
    run_script(main, OPTIONS)
