"""Output files that appear together: whatever kills the program, a folder holds all the older ones or all the new.

    train.jsonl  val.jsonl  ...                      the outputs of an earlier run, untouched while the next one works
    train.jsonl.new  val.jsonl.new  ...              what it writes
    switch.json                                      written last: from here on the new ones count
    train.jsonl.new -> train.jsonl, ...              renamed one by one
    (switch.json removed)                            done

One process writes at a time, and nothing but the names below is ever touched, whatever `switch.json` says.

Killed before `switch.json` exists, the older outputs are whole and the next run clears the `.new` files away. Killed
after, the new ones are whole: whoever opens the folder next finds `switch.json` and finishes the renames (`settle`).
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from text.errors import DataError

SPLITS = ("train", "val", "test")
OUTPUTS = (
    *(f"{split}.jsonl" for split in SPLITS),
    "rejects.jsonl",
    "report.json",
    "catalogue.sqlite",
    "report.html",
)
JOURNAL, LOCK = "switch.json", ".lock"


@contextmanager
def together(folder: Path) -> Iterator[dict[str, Path]]:
    """Paths to write the OUTPUTS to, by name. On leaving, those that were written take their names together.

    An older file whose name was not written goes at the same moment. On any exception, Ctrl-C included, the new files
    are removed and the older ones stay. Raises DataError when another process is writing here, or a folder has the
    name of an output; OSError for what the disk does.
    """
    new = {name: folder / f"{name}.new" for name in OUTPUTS}
    journal, draft = folder / JOURNAL, folder / f"{JOURNAL}.new"
    with _alone_in(folder, seconds=0):
        for path in (*new.values(), draft, journal, *map(folder.joinpath, OUTPUTS)):
            if path.is_dir():
                raise DataError(f"{path} is a folder, and a file of that name is written here: move it away.")
        with suppress(DataError):  # a damaged one says nothing, and its files are written anew
            _finish(folder)
        journal.unlink(missing_ok=True)
        _remove(new.values())
        try:
            yield new
            plan = {"take": [], "drop": []}
            for name, path in new.items():
                plan["take" if path.exists() else "drop"].append(name)
            for name in plan["take"]:
                sync(new[name])
            draft.write_text(json.dumps(plan) + "\n", encoding="utf-8")
            sync(draft)
            draft.replace(journal)
            _finish(folder)
        except BaseException:
            if journal.exists():  # the new files count already
                _finish(folder)
            else:
                _remove([*new.values(), draft])
            raise


def settle(folder: Path) -> None:
    """Finish a switch of outputs that was interrupted, if there is one. Every reader of a data folder calls it first.

    Raises DataError for a damaged journal, OSError where the folder cannot be written.
    """
    if (folder / JOURNAL).is_file():
        with _alone_in(folder, seconds=60):  # a writer who lives is done with it in a moment
            _finish(folder)


def _finish(folder: Path) -> None:
    journal = folder / JOURNAL
    if not journal.is_file():
        return
    take, drop = _read(journal)
    sync(folder)  # the journal has its name before any other file changes it
    for name in take:
        with suppress(FileNotFoundError):  # taken already, before the interruption
            (folder / f"{name}.new").replace(folder / name)
    _remove(folder / name for name in drop)
    sync(folder)
    journal.unlink()


def _read(journal: Path) -> tuple[list[str], list[str]]:
    """The names to take and to drop. A data folder may come from anywhere: only OUTPUTS are ever touched."""
    try:
        plan = json.loads(journal.read_text(encoding="utf-8"))
        take, drop = plan["take"], plan["drop"]
        if set(take) | set(drop) <= set(OUTPUTS):
            return take, drop
    except (KeyError, TypeError, ValueError, RecursionError):
        pass
    raise DataError(f"{journal} is damaged. Prepare the data once more: python data_prep.py FILE")


@contextmanager
def _alone_in(folder: Path, seconds: float) -> Iterator[None]:
    path = folder / LOCK
    if path.is_symlink():
        raise DataError(f"{path} is a link, which it never is here: delete it.")
    try:
        lock = FileLock(path).acquire(timeout=seconds)
    except Timeout:
        raise DataError(
            f"Data is being prepared into {folder} by another process: wait for it, or give another folder."
        ) from None
    with lock:
        yield


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the disk take what the system still holds of a file or folder."""
    if path.is_dir() and os.name != "posix":
        return  # there a folder cannot be opened, and its names are written through
    # fsync wants a descriptor that may write on Windows, and one that may not for a folder elsewhere
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
