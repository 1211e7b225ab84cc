"""The data folder of a run: three files of records, and the bundled catalogue where there is none yet."""

from pathlib import Path

from catalogue.outputs import settle
from text.stream import RecordFile


def open_split(folder: Path, split: str, may_be_empty: bool = False) -> RecordFile:
    """`split`.jsonl of a data folder, once a switch of its files that was interrupted is finished.

    Raises `DataError` when it does not exist or, unless it may, holds no record.
    """
    settle(folder)
    return RecordFile(folder / f"{split}.jsonl", may_be_empty)
