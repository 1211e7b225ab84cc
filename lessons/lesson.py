"""What the lessons share: a prediction, the project's own commands, edits of a copy, the curves, the result.

A lesson is a file whose docstring is its text, in five paragraphs: title, what to do, what to predict, what is seen
(its {numbers} are filled in), why. A translation is lessons/<language>/<lesson>.md, of as many paragraphs.
Nothing in the tree is changed: edits are made in a temporary copy of it, so a lesson may be killed at any time. Runs
and pictures are in checkpoints/lessons.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from run.cli import Parser, UsageError, run_script
from run.metrics import points_of, read_metrics
from run.sayings import language
from run.terminal import one_line

WORK = Path("checkpoints", "lessons")  # from ROOT, where every command is run
DATA = WORK / "data"
RECIPE = Path("lessons", "lessons.toml")
FOLDERS = ("run", "catalogue", "text", "model", "lessons", "examples")
SAID = {
    "en": {
        "ask": "Your prediction, in a line: ",
        "predicted": "You predicted: {0}",
        "edit": "In a copy of {0}, instead of:",
        "becomes": "this:",
        "curves": "Curves: {0}",
        "otherwise": "Not seen in this run: {0}",
    },
    "pt": {
        "ask": "Sua previsão, em uma linha: ",
        "predicted": "Você previu: {0}",
        "edit": "Em uma cópia de {0}, em vez de:",
        "becomes": "isto:",
        "curves": "Curvas: {0}",
        "otherwise": "Não se viu neste treino: {0}",
    },
}


class Edit(NamedTuple):
    """`old` in a file of the tree, where it stands once, becomes `new`."""

    file: str
    old: str
    new: str

    def made_in(self, text: str) -> str:
        """Raises `UsageError` unless `old` is there once: the file has changed since the lesson was written."""
        if text.count(self.old) != 1:
            raise UsageError(f"{self.file} has {text.count(self.old)} places like {one_line(self.old)!r}, not one.")
        return text.replace(self.old, self.new)


class Lab:
    """What an experiment is made with."""

    def __init__(self, lesson: str, said: dict[str, str], seen: str, prediction: str):
        self.lesson, self.said, self.seen, self.prediction = lesson, said, seen, prediction

    def see(self, **numbers) -> None:
        """Say what has come out, beside the prediction. To be followed by what is asserted of it."""
        print(f"\n{self.seen.format(**numbers)}")
        if self.prediction:
            print(self.said["predicted"].format(self.prediction))

    def train(self, name: str, *options, edits: tuple[Edit, ...] = (), data: Path = DATA, fails: bool = False) -> Path:
        """train.py with lessons.toml and `options` as the run `name` of this lesson, in place of an earlier one.

        `fails`: it is to end with an error. Returns its folder.
        """
        run = WORK / f"{self.lesson}-{name}"
        shutil.rmtree(ROOT / run, ignore_errors=True)
        self.command(
            "train.py", "--recipe", RECIPE, "--data", data, "--run_name", run.name, *options, edits=edits, fails=fails
        )
        return run

    def command(self, script: str, *args, edits: tuple[Edit, ...] = (), fails: bool = False) -> str:
        """A script of the project, in a process of its own, from a copy that holds the edits. Returns what it said."""
        for edit in edits:
            print(f"\n{self.said['edit'].format(edit.file)}\n{indented(edit.old)}")
            print(f"{self.said['becomes']}\n{indented(edit.new)}")
        print("\n$", one_line(" ".join(["python", script, *map(str, args)])), flush=True)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as copy:
            place = edited_copy(Path(copy), edits) if edits else ROOT
            done = subprocess.run(
                [sys.executable, str(place / script), *map(str, args)],
                cwd=ROOT,
                env=os.environ | {"HF_HUB_OFFLINE": "1"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
            )
        if bool(done.returncode) != fails:
            error = UsageError(f"It ended with exit code {done.returncode}: {done.stderr[-1500:]}")
            error.exit_code = done.returncode or 1
            raise error
        return done.stdout

    def losses(self, run: Path, key: str = "loss") -> list[float]:
        """What the log has under `key`, step by step."""
        return [value for _, value in points_of(read_metrics(ROOT / run / "metrics.jsonl"), key)]

    def curves(self, *runs: Path) -> None:
        """Their losses in one picture."""
        picture = WORK / f"{self.lesson}.png"
        self.command("plot.py", *runs, "--out", picture)
        print(self.said["curves"].format(picture))

    def answer_loss(self, run: Path, records: list[dict]) -> float:
        """Of a run's final model, in nats per token of the answers and their ends, as evaluate.py measures it."""
        from model.attention import use_flat_attention  # with torch, which takes seconds
        from model.loss import mean_loss
        from run.loading import load
        from text.batch import flat_batches
        from text.template import load_template

        final = ROOT / run / "final"
        model, encoder = load(final, load_template(final), max_length=256)
        use_flat_attention(model)
        return mean_loss(model, flat_batches(encoder.rows(records), token_budget=1024))

    def records(self, split: str, count: int) -> list[dict]:
        """The first `count` records of the prepared example catalogue."""
        with (ROOT / DATA / f"{split}.jsonl").open(encoding="utf-8", newline="\n") as file:
            return [json.loads(line) for line in islice(file, count)]

    def data(self, name: str, train: list[dict], val: list[dict], test: list[dict]) -> Path:
        """A data folder with these records."""
        folder = WORK / f"{self.lesson}-{name}"
        shutil.rmtree(ROOT / folder, ignore_errors=True)
        (ROOT / folder).mkdir(parents=True)
        for split, records in (("train", train), ("val", val), ("test", test)):
            text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            (ROOT / folder / f"{split}.jsonl").write_text(text, encoding="utf-8", newline="\n")
        return folder


def edited_copy(folder: Path, edits: tuple[Edit, ...]) -> Path:
    """The code of the tree in `folder`, with the edits. Raises `UsageError` when one of them does not fit."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, folder)
    for edit in edits:
        file = folder / edit.file
        file.write_text(edit.made_in(file.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
    return folder


def indented(code: str) -> str:
    """For the screen: its lines as they stand to one another, four to the right."""
    return textwrap.indent(textwrap.dedent(code).rstrip(), " " * 4)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def paragraphs_of(text: str) -> list[str]:
    """Title, what to do, what to predict, what is seen, why."""
    return re.split(r"\n\s*\n", text.strip(), maxsplit=4)


def text_of(file: Path, english: str, language: str) -> list[str]:
    """The lesson's text in that language where it has been translated, else in English."""
    translated = file.parent / language / f"{file.stem}.md"
    return paragraphs_of(translated.read_text(encoding="utf-8") if translated.is_file() else english)


def teach(file: str, english: str, experiment: Callable[[Lab], None]) -> None:
    """The lesson in `file`: what to do, the prediction, the `experiment`, what is seen, and why."""
    parser = Parser(prog=Path(file).name, description=paragraphs_of(english)[0])
    parser.add_argument("--lang", choices=tuple(SAID), default=language(), help="default: the system's")
    lang = parser.parse_args().lang
    run_script(_teach, Path(file), text_of(Path(file), english, lang), experiment, SAID[lang])


def _teach(file: Path, text: list[str], experiment: Callable[[Lab], None], said: dict[str, str]) -> int:
    title, what, question, seen, why = text
    print(f"{title}\n\n{what}\n\n{question}\n")
    prediction = ""
    with suppress(EOFError):  # Ctrl-D: none
        prediction = input(said["ask"]) if sys.stdin.isatty() else ""
    lab = Lab(file.stem[:2], said, seen, prediction)
    if not (ROOT / DATA / "train.jsonl").exists():
        lab.command("data_prep.py", Path("examples", "catalogue.json.gz"), "--attributes", "auto", "--output_dir", DATA)
    try:
        experiment(lab)
    except AssertionError as error:
        print(said["otherwise"].format(traceback.extract_tb(error.__traceback__)[-1].line), file=sys.stderr)
        return 1
    print(f"\n{why}")
    return 0
