"""docs/WALKTHROUGH.md quotes the code, shows pictures of it, and asks: all three are held to what they speak of."""

import math
import re
import sys

import pytest
from conftest import ROOT

from run.config import TrainConfig, with_model_defaults
from run.data import EXAMPLE_CATALOGUE, EXAMPLE_OPTIONS
from run.plan import SOME_STEPS
from text.batch import Encoder, step_batch
from text.bpe import train_bpe
from text.context import with_contexts
from text.question import with_questions
from text.stream import RecordFile, records_of_steps
from text.template import QA

PAGE = (ROOT / "docs" / "WALKTHROUGH.md").read_text(encoding="utf-8")
WORDS = (ROOT / "docs" / "GLOSSARY.md").read_text(encoding="utf-8")
QUOTES = [  # (file, lines): a fenced block of Python names its file in the first line
    (block.split("\n")[0].removeprefix("# "), [line.strip() for line in block.split("\n")[1:] if line.strip()])
    for block in re.findall(r"^```python\n(.*?)\n```", PAGE, re.DOTALL | re.MULTILINE)
]


@pytest.fixture
def draw(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import draw

    yield draw
    del sys.modules["draw"]


def code_of(name: str) -> list[str]:
    """The lines of a file, without white space around them and without empty ones."""
    lines = (ROOT / name).read_text(encoding="utf-8").split("\n")
    return [line.strip() for line in lines if line.strip()]


def runs_of(lines: list[str]) -> list[list[str]]:
    """What stands between the lines `...`, where something is left out."""
    runs = [[]]
    for line in lines:
        runs.append([]) if line == "..." else runs[-1].append(line)
    return runs


def place_of(lines: list[str], code: list[str], start: int) -> int:
    """Where `lines` follow one another in `code`, at `start` or behind it. Raises `ValueError` when they do not."""
    for place in range(start, len(code) - len(lines) + 1):
        if code[place : place + len(lines)] == lines:
            return place
    raise ValueError(f"not quoted as it stands: {lines}")


def test_what_is_quoted_stands_in_the_file_in_the_order_of_the_page():
    ends: dict[str, int] = {}
    for name, lines in QUOTES:
        code, end = code_of(name), 0 if name != "train.py" else ends.get(name, 0)
        for run in runs_of(lines):
            end = place_of(run, code, end) + len(run)
        ends[name] = end
    assert {"train.py", "lessons/plain_loop.py", "model/loss.py", "run/plan.py", "text/batch.py"} <= set(ends)


def test_the_whole_loop_is_quoted():
    code = code_of("train.py")
    begin = next(i for i, line in enumerate(code) if line.startswith("def forward_backward"))
    quoted = {line for name, lines in QUOTES if name == "train.py" for line in lines}
    assert [line for line in code[begin : code.index("return INTERRUPTED") + 1] if line not in quoted] == []


def test_the_schedule_that_is_drawn_is_that_of_the_plan_on_the_page(draw):
    config = with_model_defaults(TrainConfig(), from_scratch=True)
    warmup = math.ceil(config.warmup_ratio * draw.STEPS)
    assert f"steps          {draw.STEPS:,} of 16 records" in PAGE
    assert f"up from 0 to {config.learning_rate:.1e} at step {warmup + 1}, then down to 0" in PAGE
    assert abs(draw.STEPS - SOME_STEPS) <= 1


def test_pictures_are_what_the_script_draws_and_are_shown(draw):
    drawn = draw.pictures()
    there = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "pictures").glob("*")}
    assert there == drawn, "draw them anew: python docs/draw.py"
    shown = re.findall(r"!\[[^]]+\]\(pictures/([^)]+)\)", PAGE)
    in_order = ["supervised.svg", "flat.svg", "schedule.svg", "attention.svg", "checkpoint.svg"]
    assert shown == in_order and set(shown) == set(drawn)


@pytest.mark.slow
def test_pictures_and_numbers_are_those_of_the_first_step(draw, tmp_path):
    from catalogue.prepare import prepare

    prepare([EXAMPLE_CATALOGUE], tmp_path, EXAMPLE_OPTIONS)
    file = RecordFile(tmp_path / "train.jsonl")
    tokenizer = train_bpe(map(QA.text_of, file), 4096, QA.phrases)
    steps = with_contexts(with_questions(records_of_steps(file, 16, 42, 0, 1), QA.questions, 0.2, 42), file, 0.05, 42)
    rows = sorted(Encoder(tokenizer, QA, 256).rows(next(steps)), key=lambda row: -len(row.ids))
    assert sorted((row.first_supervised, len(row.ids)) for row in rows) == sorted(draw.FIRST_STEP)
    assert [len(row.ids) for row in rows] == [length for _, length in draw.FIRST_STEP]

    shortest = rows[-1]
    assert (shortest.first_supervised, len(shortest.ids)) == (draw.RECORD_PROMPT, draw.RECORD_LENGTH)
    for place, token in draw.RECORD:
        begins, _, ends = token.replace("\\n", "\n").partition("…")  # what is between is left out in the picture
        piece = tokenizer.decode([shortest.ids[place]])
        assert piece == begins or (ends and piece.startswith(begins) and piece.endswith(ends.strip())), piece

    tokens, longest, supervised = sum(len(r.ids) for r in rows), len(rows[0].ids), step_batch(rows, 4096).supervised
    halves = [len(batch.targets) for batch in step_batch(rows, 1024).prepared]
    records = [len(batch.lengths) for batch in step_batch(rows, 1024).prepared]
    for said in (
        f"T = {tokens:,} tokens",
        f"16 x {longest} = {16 * longest:,} places",
        f"S = {supervised} of them",
        f"{records[0]} records with {halves[0]} supervised tokens, and {records[1]} with {halves[1]}",
        f"{len(shortest.ids)} to {longest} tokens",
    ):
        assert said in " ".join(PAGE.split()), said


def test_twenty_questions_have_their_folded_answers():
    asked = re.findall(r"^\*\*(\d+)\. ", PAGE, re.MULTILINE)
    assert asked == [str(number) for number in range(1, 21)]
    answers = re.findall(r"<details><summary>Answer</summary>\n\n(.+?)\n\n</details>", PAGE, re.DOTALL)
    assert len(answers) == PAGE.count("<details>") == 20


def test_words_are_sorted_and_say_where_they_stand():
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", WORDS, re.MULTILINE)[1:]
    words = [row[0] for row in rows]
    assert len(words) >= 25 and words == sorted(words, key=str.casefold)
    assert len(rows) == WORDS.count("\n| ") - 1
    for word, _, where in rows:
        files = re.findall(r"`([\w./]+)`", where)
        assert files and all((ROOT / file).is_file() for file in files), word
