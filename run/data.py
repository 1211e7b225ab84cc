"""The data of a run: three files of records, read from the disk as they are needed; the bundled catalogue else."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from catalogue.fields import AUTO, Fields
from catalogue.judge import Options
from catalogue.outputs import settle
from catalogue.prepare import prepare
from run.cli import UsageError
from run.session import Session
from run.state import TrainState
from text.batch import Encoder, StepBatch, step_batches
from text.context import with_contexts
from text.question import with_questions
from text.stream import Record, RecordFile, Records, WithReplay, records_of_steps

EXAMPLE_OPTIONS = Options(fields=Fields(attributes=(AUTO,)))
EXAMPLE_CATALOGUE = Path(__file__).parent.parent / "examples" / "catalogue.json.gz"


@dataclass(frozen=True)
class Data:
    train: Records
    val: RecordFile
    test: RecordFile
    fingerprints: dict[str, str]  # of what is trained and validated on, by file name


def open_data(session: Session) -> Data:
    """Collective. The files in `--data`; in the default folder, while it is empty, the bundled catalogue's. With
    `--replay` some records of another folder are among those that are trained on.

    Raises `DataError` when one is missing or holds nothing, `UsageError` when a run that goes on was trained on others.
    """
    config, folder, ranks = session.config, Path(session.config.data_dir), session.ranks
    ranks.from_main(lambda: settle(folder))
    if ranks.from_main(lambda: config.data_dir == "data" and not (folder / "train.jsonl").exists()):
        print(f"No prepared data in {folder}: preparing the bundled example catalogue. Yours: data_prep.py FILE")
        ranks.from_main(lambda: prepare([EXAMPLE_CATALOGUE], folder, EXAMPLE_OPTIONS))
    train, val, test = (open_split(folder, split, may_be_empty=split != "train") for split in ("train", "val", "test"))
    named = {file.path.name: file for file in (train, val)}
    if config.replay:
        named["replay"] = old = open_split(Path(config.replay), "train")
        train = WithReplay(train, old, config.replay_share, config.seed)
    now = ranks.from_main(lambda: {name: file.fingerprint() for name, file in named.items()})
    if not session.is_new and (saved := session.saved["data"]) != now:
        changed = ", ".join(name for name in now if saved.get(name) != now[name])
        at = f"{folder} and {config.replay}: point --data and --replay" if config.replay else f"{folder}: point --data"
        raise UsageError(f"{session.folder} is trained on another {changed} than the one in {at} at that one.")
    return Data(train, val, test, now)


def open_split(folder: Path, split: str, may_be_empty: bool = False) -> RecordFile:
    """`split`.jsonl of a data folder, once a switch of its files that was interrupted is finished.

    Raises `DataError` when it does not exist or, unless it may, holds no record.
    """
    settle(folder)
    return RecordFile(folder / f"{split}.jsonl", may_be_empty)


def asked_records(
    session: Session, data: Data, encoder: Encoder, first_step: int, last_step: int
) -> Iterator[list[Record]]:
    """The records of each step after `first_step`, of all ranks, as they are asked: some by a question, some behind a
    text."""
    config = session.config
    steps = records_of_steps(data.train, session.records_per_step, config.seed, first_step, last_step)
    steps = with_questions(steps, encoder.template.questions, config.question_share, config.seed, first_step)
    return with_contexts(steps, data.train, config.context_share, config.seed, first_step)


def make_train_loader(
    session: Session, data: Data, encoder: Encoder, state: TrainState, total_steps: int
) -> Iterator[StepBatch]:
    """This rank's part of the batch of each step that is left, made a few steps ahead in a thread.

    What a step holds follows from its number alone, so a resumed run needs no more than `state.step`.
    """
    ranks = session.ranks
    steps = asked_records(session, data, encoder, state.step, total_steps)
    on_gpu = session.machine.device.type == "cuda"
    return step_batches(steps, encoder, state.micro_batch_tokens, ranks.rank, ranks.size, pin_memory=on_gpu)
