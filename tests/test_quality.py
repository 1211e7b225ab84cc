"""benchmarks/quality.py: that each contender gets what it is said to get, and that all are measured alike."""

import gzip
import json
import math
import sys

import pytest
import torch
from conftest import RECORDS, ROOT, script, tiny_gpt2, write_data

sys.path.append(str(ROOT / "benchmarks"))  # behind the root, whose data_prep.py is the one that others import

import peers
import quality

from model.muon import Muon
from text.batch import Encoder
from text.stream import RecordFile
from text.template import QA


def repeated(words: int) -> dict[str, str]:
    return {"uid": f"L{words}", "title": "Long", "content": "Soft green towel. " * (words // 3)}


@pytest.fixture
def file(tmp_path) -> RecordFile:
    long = [repeated(words) for words in (30, 300, 600, 900, 1200)]
    return RecordFile(write_data(tmp_path / "rows", [*RECORDS, *long]) / "train.jsonl")


def test_the_notebook_has_no_end_tokens_and_passes_long_records_over(tokenizer, file):
    fair = quality.fair_rows(tokenizer, file, seed=1, count=16)
    notebook = quality.notebook_rows(tokenizer, file, seed=1, count=20)
    cut = [row.uid for row in fair if row.ids[-1] != tokenizer.eos_token_id]
    assert len(fair) == 16 and {"L600", "L900", "L1200"} <= set(cut)
    assert all(len(row.ids) <= 256 and row.ids[-1] != tokenizer.eos_token_id for row in notebook)
    same = [row for row in fair if row.uid not in cut]
    assert [(row.uid, [*row.ids, tokenizer.eos_token_id]) for row in notebook[: len(same)]] == [
        (row.uid, row.ids) for row in same
    ]
    assert len(notebook) == 20  # those that were left out are replaced by the next


def test_what_a_trainer_is_given(tokenizer):
    rows = Encoder(tokenizer, QA, 256).rows(RECORDS[:2])
    short, long = sorted(rows, key=lambda row: len(row.ids))
    of_fair = peers.collator(pad=7, length=None, loss_on_prompt=False)([short, long])
    assert of_fair["input_ids"].shape == (2, len(long.ids))
    supervised = of_fair["labels"][0] != -100
    assert of_fair["labels"][0][supervised].tolist() == short.ids[short.first_supervised :]
    assert of_fair["attention_mask"].sum(dim=1).tolist() == [len(short.ids), len(long.ids)]
    of_notebook = peers.collator(pad=7, length=256, loss_on_prompt=True)([short, long])
    assert of_notebook["input_ids"].shape == (2, 256) and of_notebook["input_ids"][0, -1] == 7
    assert (of_notebook["labels"] != -100).sum(dim=1).tolist() == [len(short.ids) - 1, len(long.ids) - 1]


def test_bits_are_those_of_the_answer_alone(tokenizer):
    model, encoder, record = tiny_gpt2(len(tokenizer)), Encoder(tokenizer, QA, 256), RECORDS[3]
    (row,) = encoder.rows([record])
    with torch.no_grad():
        log_p = model(torch.tensor([row.ids])).logits[0].log_softmax(dim=-1)
    answer = range(row.first_supervised, len(row.ids) - 1)  # the last is the end token
    expected = -sum(float(log_p[i - 1, row.ids[i]]) for i in answer) / math.log(2)
    bits, characters = quality.answer_bits(model, encoder, [record])
    assert bits == [pytest.approx(expected, rel=1e-5)]
    assert characters == [len(record["content"])]


def test_what_is_held_out_was_seen_by_nobody(tmp_path, monkeypatch):
    with gzip.open(ROOT / "examples" / "catalogue.json.gz", "rt", encoding="utf-8") as lines:
        few = [line for line, _ in zip(lines, range(600), strict=False)]
    with gzip.open(tmp_path / "few.json.gz", "wt", encoding="utf-8", newline="\n") as file:
        file.writelines(few)
    monkeypatch.setattr("run.data.EXAMPLE_CATALOGUE", tmp_path / "few.json.gz")
    monkeypatch.setattr(quality, "ASSETS", tmp_path)  # without the real ones
    assert quality.write_catalogues(tmp_path / "data", ["gift", "example"], held_out=9) == ["example"]
    records = {
        (name, split): [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for name in ("english", "example")
        for split in ("train", "test")
        for path in [tmp_path / "data" / name / f"{split}.jsonl"]
    }
    train = records["english", "train"] + records["example", "train"]
    for key in ("uid", "title", "content"):
        assert not {r[key] for r in train} & {r[key] for r in records["example", "test"]}
    assert 0 < len(records["example", "test"]) <= 9
    assert len(records["example", "train"]) > 0 and len(records["example", "train"]) % quality.BATCH == 0


def result(name: str, equal: str, bits: list[float], steps: int = 4) -> dict:
    measured = {"step_seconds": 0.5, "stopped": 1.0, "chrf": 20.0, "repetition_rate": 0.05, "minutes": 0.1}
    return measured | {
        "catalogue": "gift",
        "contender": name,
        "equal": equal,
        "seed": 0,
        "steps": steps,
        "bits": bits,
        "characters": [10, 30],
    }


def test_the_table_says_who_has_fewer_bits():
    about = {"records": 2, "before": 3.0, "stopped": 0.5, "repetition_rate": 0.01}
    results = [result("fair", equal, [40.0, 80.0]) for equal in ("records", "minutes")]
    results += [result("ours", "records", [40.0, 80.0]), result("ours", "minutes", [20.0, 40.0], steps=9)]
    text = quality.table(results, about)
    assert "| fair | 4 | 0.50 | 3.000 | 100% | 20.0 | 5.0% |  |" in text
    assert "| ours | 9 | 0.50 | 1.500 | 100% | 20.0 | 5.0% |  |" in text
    assert "At equal records ours has 1.000 (1.000 to 1.000) of the bits of fair." in text
    assert "At equal minutes ours has 0.500 (0.500 to 0.500) of the bits of fair." in text


def test_an_interval_is_of_records_drawn_together():
    low, high = quality.ratio_interval([10.0, 20.0, 90.0], [20.0, 20.0, 100.0])
    assert 0.5 <= low < 120 / 140 < high <= 1.0


def test_equal_minutes_are_steps_that_fit():
    assert quality.steps_within(60, 0.5) == 120
    assert quality.steps_within(1, 30) == 2


def test_a_contest_is_timed_in_turns_and_trained_twice(monkeypatch):
    seconds = {"notebook": [2.0, 4.0, 3.0], "ours": [1.0, 0.5, 0.4]}
    done = []

    def in_a_process(spec: dict) -> dict:
        done.append((spec["contender"], spec["steps"]))
        timed = seconds[spec["contender"]].pop(0) if spec.get("timed") else 99.0  # of a whole training: unused
        return spec | {"step_seconds": timed, "bits": [1.0], "characters": [1]}

    monkeypatch.setattr(quality, "in_a_process", in_a_process)
    results = quality.contest({"catalogue": "gift"}, ["notebook", "ours"], steps=10, minutes=None, rounds=3)
    assert done[:6] == [("notebook", quality.TIMED_STEPS), ("ours", quality.TIMED_STEPS)] * 3
    assert done[6:] == [("notebook", 10), ("ours", 10), ("ours", 60)]  # 30 seconds at 0.5
    assert [(r["equal"], r["contender"], r["steps"], r["step_seconds"]) for r in results] == [
        ("records", "notebook", 10, 3.0),
        ("minutes", "notebook", 10, 3.0),
        ("records", "ours", 10, 0.5),
        ("minutes", "ours", 60, 0.5),
    ]


def test_a_step_is_timed_from_the_end_of_the_one_before():
    clock = quality.Clock()
    clock.times = [0.0, 1.0, 100.0, 102.0, 106.0]  # two steps came before, as of a plan that measures
    assert clock.step_seconds(3) == 3.0


def test_a_step_of_muon_is_one_step():
    """It takes AdamW's within its own, and torch calls the hooks of both once there was an AdamW."""
    matrix, vector = (torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (3,)))
    groups = [{"params": [matrix], "weight_decay": 0.0}, {"params": [vector], "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=1.0)
    optimizer, clock = Muon(groups, [matrix], lr=1.0), quality.Clock()
    for _ in range(3):
        matrix.grad, vector.grad = torch.ones(2, 3), torch.ones(3)
        optimizer.step()
    assert len(clock.times) == 3


@pytest.mark.parametrize("words", [("--help",), ("--only", "theirs"), ("--steps", "1"), ("--model", "nowhere")])
def test_the_command_line_loads_no_torch(words, tmp_path):
    start = "import runpy, sys; sys.argv = sys.argv[1:]\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    start += "except SystemExit as end: sys.exit(9 if 'torch' in sys.modules else end.code)\n"
    (tmp_path / "start.py").write_text(start, encoding="utf-8")
    done = script(tmp_path / "start.py", ROOT / "benchmarks" / "quality.py", *words)
    assert done.returncode == (0 if words == ("--help",) else 2), done.stderr


@pytest.mark.slow
def test_the_fair_trainer_computes_what_ours_does(gpt2_folder, tmp_path):
    """Without questions the two are one training, so whatever else differs in the figures comes from time."""
    many = [r | {"uid": f"{r['uid']}-{i}", "title": f"{r['title']} {i}"} for i in range(3) for r in RECORDS][:32]
    data = write_data(tmp_path / "data", many, val=[])
    spec = {"catalogue": "few", "data": str(data), "base": str(gpt2_folder), "lr": 1e-2, "seed": 0, "steps": 5}
    fair = quality.trained(spec | {"contender": "fair", "options": []})
    ours = quality.trained(spec | {"contender": "ours", "options": ["--question_share", "0"]})
    notebook = quality.trained(spec | {"contender": "notebook", "options": []})
    assert fair["bits"] == pytest.approx(ours["bits"], rel=1e-4)
    assert quality.bits_per_character(notebook) > 1.02 * quality.bits_per_character(fair)  # a rate of 5e-5
