"""Output files that appear together: whatever kills the program, a folder holds all the older ones or all the new.

    train.jsonl  val.jsonl  ...                      the outputs of an earlier run, untouched while the next one works
    train.jsonl.new  val.jsonl.new  ...              what it writes
    switch.json                                      written last: from here on the new ones count
    train.jsonl.new -> train.jsonl, ...              renamed one by one
    (switch.json removed)                            done

Killed before `switch.json` exists, the older outputs are whole and the next run clears the `.new` files away. Killed
after, the new ones are whole: whoever opens the folder next finds `switch.json` and finishes the renames (`settle`).
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

JOURNAL = "switch.json"


@contextmanager
def together(folder: Path, names: tuple[str, ...]) -> Iterator[dict[str, Path]]:
    """Paths to write, by name. On leaving, those that were written take their names together.

    An older file whose name was not written goes at the same moment. On any exception, Ctrl-C included, the new files
    are removed and the older ones stay. Raises OSError for what the disk does.
    """
    settle(folder)
    new = {name: folder / f"{name}.new" for name in names}
    _remove(new)
    try:
        yield new
        for path in new.values():
            if path.exists():
                _to_disk(path)
        plan = {
            "take": [name for name in names if new[name].exists()],
            "drop": [name for name in names if not new[name].exists()],
        }
        draft = folder / f"{JOURNAL}.new"
        draft.write_text(json.dumps(plan) + "\n", encoding="utf-8")
        _to_disk(draft)
        draft.replace(folder / JOURNAL)
    except BaseException:
        if not (folder / JOURNAL).exists():  # else a Ctrl-C came just after it: the new files count already
            _remove(new)
            (folder / f"{JOURNAL}.new").unlink(missing_ok=True)
            raise
        settle(folder)
        raise
    try:
        settle(folder)
    except KeyboardInterrupt:
        settle(folder)
        raise


def settle(folder: Path) -> None:
    """Finish a switch of outputs that was interrupted, if there is one. Every reader of a data folder calls it first.

    Raises OSError where the folder cannot be written.
    """
    journal = folder / JOURNAL
    try:
        plan = json.loads(journal.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return
    _folder_to_disk(folder)  # the journal has its name before any other file changes it
    for name in plan["take"]:
        with suppress(FileNotFoundError):  # already done, before the interruption or by another reader
            (folder / f"{name}.new").replace(folder / name)
    for name in plan["drop"]:
        (folder / name).unlink(missing_ok=True)
    _folder_to_disk(folder)
    journal.unlink(missing_ok=True)


def _remove(paths: dict[str, Path]) -> None:
    for path in paths.values():
        path.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _folder_to_disk(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened, and its names are written through
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
