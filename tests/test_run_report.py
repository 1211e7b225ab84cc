"""The report of a run, the curves of several, what is copied, and where else the log is shown."""

import json
import random
import sys
from types import SimpleNamespace

import pytest
from conftest import RECORDS, script, write_data
from test_report import EVIL, Tags

from catalogue.claims import repeated
from catalogue.index import write_catalogue
from evaluate import count_copied, some_of
from plot import plot
from run.files import read_json, write_json
from run.metrics import minutes_of, read_metrics
from run.report import curve, write_report
from run.trackers import MissingPackage, check_tracker, open_tracker
from text.copied import longest_copied
from text.stream import RecordFile

LOG = [
    {"step": 10, "loss": 5.25, "val_loss": 5.5, "learning_rate": 1e-3, "grad_norm": 2.0, "seconds": 30.0,
     "answer_tokens": 700, "answer_tokens_per_second": 23.3, "peak_memory_bytes": 3 * 2**20,
     "planned_adds_bytes": 2**21, "training_adds_bytes": 2**20, "memory_before_training_bytes": 2**21},
    {"step": 20, "loss": None, "learning_rate": 5e-4, "grad_norm": None, "seconds": 90.0, "answer_tokens": 1300},
]  # fmt: skip


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "<b>a"
    folder.mkdir(parents=True)
    saved = {"options": {"model_name_or_path": "pocket", "data_dir": "d"}, "base_model": "base", "base_weights": ""}
    write_json(folder / "train_config.json", saved | {"versions": {"torch": "2"}, "data": {}, "ranks": 1})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in LOG), encoding="utf-8")
    return folder


@pytest.fixture
def data(tmp_path):
    folder = write_data(tmp_path / "data", RECORDS)
    write_catalogue(folder / "catalogue.sqlite", folder / "train.jsonl")
    return folder


def written(run, data) -> tuple[str, Tags]:
    page = write_report(run, data).read_text(encoding="utf-8")
    tags = Tags(page)
    assert not tags.tags & {"script", "link", "img", "iframe"} and "url(" not in page and "@import" not in page
    return page, tags


def test_a_run_without_an_evaluation_says_so_and_names_the_command(run, data):
    page, tags = written(run, data)
    assert "not been measured yet" in tags.text and "evaluate.py --run" in tags.text and "<b>a" in tags.text
    assert "2:00" in tags.text and "2.0k" in tags.text and "5.5000" in tags.text  # minutes, answer tokens, last val
    assert "not logged" in tags.text  # the last data_wait
    assert page.count("<svg") == 4 and "nan" not in tags.text


def test_text_of_a_model_or_of_data_stays_text(run, data):
    long = "<script>alert(1)</script>" * 4000  # 100,000 characters
    write_json(run / "before.json", {EVIL.replace("\ud83d", ""): "\x1b[31m<img src=x onerror=y>\x00", long: long})
    write_json(run / "after.json", {long: "\u202e<b>"})
    page, tags = written(run, data)
    assert tags.text.count(long) == 2 and '<script>alert("1")</script>' in tags.text and "<img src=x" in tags.text
    assert not set(page) & {"\x1b", "\x00", "\u202e"}


def test_what_is_measured_stands_on_the_page_with_its_interval(run, data):
    results = {"before": {"loss": 8.0}, "after": {"loss": 2.125, "verbatim": 0.5, "verbatim_interval": [0.25, 0.75]}}
    texts = {"catalogue": "A red mug from Zorvex.", "after": "A blue mug from Zorvex, 999 ml."}
    samples = [{"given": "Blue Mug", "texts": texts}]
    write_json(run / "metrics.json", {"split": "test", "records": 4, **results, "samples": samples})
    page, tags = written(run, data)
    assert "50.0% (25.0% to 75.0%)" in tags.text and "2.1250" in tags.text and "not been measured" not in tags.text
    assert page.count("<mark>Zorvex</mark>") == 1 and "<mark>999 ml</mark>" in page  # not in the catalogue's own text
    assert '<span class="hit">blue</span> <span class="hit">mug</span>' in page
    (data / "catalogue.sqlite").unlink()
    page, tags = written(run, data)
    assert "<mark>" not in page and "not marked" in tags.text


def test_a_training_run_ends_with_its_report(train, data, gpt2_folder, tmp_path, capsys):
    assert train("--model", gpt2_folder, "--run_name", "a", "--max_steps", 3) == 0
    folder = tmp_path / "runs" / "a"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert str(folder / "report.html") in capsys.readouterr().out
    assert dict(read_json(folder / "plan.json"))["steps"].startswith("3 of 16 records") and "3 of 16 records" in page
    assert set(read_json(folder / "after.json")) == set(read_json(folder / "before.json")) != set()
    train("--resume", folder, "--max_steps", 5)
    log = read_metrics(folder / "metrics.jsonl")
    assert len(minutes_of(log)) == len(log) and list(minutes_of(log).values()) == sorted(minutes_of(log).values())
    assert "5 of 16 records" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("noise", [b"no index at all" * 999, None])
def test_a_damaged_index_ends_no_training_in_an_error(train, data, gpt2_folder, tmp_path, capsys, noise):
    index = data / "catalogue.sqlite"
    whole = index.read_bytes()  # damaged at its head, or in the middle, where it opens and fails when it is asked
    index.write_bytes(noise or whole[:4096] + b"\xff" * (len(whole) - 4096))
    assert train("--model", gpt2_folder, "--run_name", "a", "--max_steps", 2) == 0
    told = capsys.readouterr()
    assert told.err.count("marks no unsupported claims") == 1 and "Prepare the data again" in told.err
    page = (tmp_path / "runs" / "a" / "report.html").read_text(encoding="utf-8")
    assert "not marked" in page and "<h2>Curves" in page and 'class="answers"' in page


def test_a_curve_leaves_out_what_is_no_number_and_stands_a_flat_one():
    assert "Nothing was logged" in curve("x", [("", [], "")])
    assert curve("<i>", [("", [(5, 2.0)], "")]).count("<circle") == 1 and "<i>" not in curve("<i>", [("", [], "")])


def test_minutes_add_up_and_an_old_log_has_none():
    assert minutes_of(LOG) == {10: 0.5, 20: 2.0}
    assert minutes_of([LOG[0], {"step": 20, "loss": 1.0}]) == {} == minutes_of([])


def test_the_longest_copied_span_is_that_of_all_pairs():
    draw = random.Random(1)
    for _ in range(200):
        answers, contents = ([" ".join(draw.choices("abc", k=draw.randrange(9))) for _ in range(4)] for _ in "xy")
        assert longest_copied(answers, contents) == [longest_by_trying(answer, contents) for answer in answers]
    assert longest_copied(["A blue Mug", ""], ["my a BLUE mug is", "blue"]) == [3, 0]


def longest_by_trying(answer: str, contents: list[str]) -> int:
    words = answer.split()
    spans = [words[i:j] for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
    return max((len(s) for s in spans for text in contents if f" {' '.join(s)} " in f" {text} "), default=0)


def test_an_answer_that_stands_in_training_is_counted_and_an_empty_one_is_not(data):
    results, whole = {"after": {}}, RECORDS[0]["content"]
    count_copied(results, {"after": [whole, "", "A blue mug from nowhere"]}, RecordFile(data / "train.jsonl"))
    after = results["after"]
    assert (after["verbatim"], after["copied_most"], after["copied_from"]) == (1 / 3, len(whole.split()), len(RECORDS))
    assert after["copied_words"] == (len(whole.split()) + 3) / 3
    samples = some_of(RECORDS, {"after": ["x"] * len(RECORDS)})
    assert samples[0] == {"given": "Blue Mug", "texts": {"catalogue": whole, "after": "x"}}


def test_what_an_answer_repeats_of_its_title():
    found = repeated("The Blue Mug, 0,35 l", "the mugs are blue and hold 350 ml")
    assert [claim.text for claim in found] == ["mugs", "blue", "350 ml"]


def test_curves_of_two_runs_in_one_picture(run, tmp_path):
    other = run.with_name("b $x$")
    run.rename(other.with_name("a"))
    figure = plot({other.with_name("a"): LOG, other: [{"step": 1, "loss": 2.0}]})
    left, right = figure.axes
    assert [text.get_text() for text in left.get_legend().get_texts()][::2] == ["a", r"b \$x\$ (no minutes logged)"]
    assert [list(line.get_xdata()) for line in right.lines] == [[0.5], [0.5]]  # the null loss at step 20 is no point
    args = ("--output_dir", tmp_path / "runs", "--out", tmp_path / "c.svg")
    assert script("plot.py", "a", *args).returncode == 0 and (tmp_path / "c.svg").stat().st_size > 1000


@pytest.mark.parametrize("args", [["none"], ["a", "--out", "x.doc"], []])
def test_what_cannot_be_plotted_is_a_sentence(args, tmp_path):
    result = script("plot.py", *args, "--output_dir", tmp_path)
    assert result.returncode == 2 and "Traceback" not in result.stderr


def test_a_missing_tracker_is_a_sentence_before_training(monkeypatch, train, data, gpt2_folder, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackage, match="pip install wandb") as error:
        train("--model", gpt2_folder, "--report_to", "wandb")
    assert error.value.exit_code == 3 and not (tmp_path / "runs").exists()
    check_tracker("none")


def test_wandb_gets_the_numbers_of_each_entry(monkeypatch, train, data, gpt2_folder, tmp_path):
    logged, begun = [], []
    run = SimpleNamespace(log=lambda numbers, step: logged.append((step, numbers)))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **how: begun.append(how) or run))
    assert train("--model", gpt2_folder, "--run_name", "a", "--max_steps", 2, "--report_to", "wandb") == 0
    entries = read_metrics(tmp_path / "runs" / "a" / "metrics.jsonl")
    assert [(step, numbers["loss"]) for step, numbers in logged] == [(e["step"], e["loss"]) for e in entries]
    assert begun[0]["id"] == "a" and begun[0]["resume"] == "allow"


def test_a_wandb_that_does_not_begin_is_a_sentence(monkeypatch, tmp_path):
    def init(**how):
        raise RuntimeError("no account")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with pytest.raises(MissingPackage, match="no account"):
        open_tracker("wandb", tmp_path)


def test_tensorboard_gets_the_numbers_of_each_entry(monkeypatch, tmp_path):
    shown, folders = [], []
    writer = SimpleNamespace(add_scalar=lambda *what: shown.append(what), flush=lambda: shown.append("flush"))
    module = SimpleNamespace(SummaryWriter=lambda folder: folders.append(folder) or writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    open_tracker("tensorboard", tmp_path)({"step": 3, "loss": 2.0, "grad_norm": None})
    assert shown == [("loss", 2.0, 3), "flush"] and folders == [str(tmp_path / "tensorboard")]
