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
from collections.abc import Iterable, Iterator
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
    journal, draft = folder / JOURNAL, folder / f"{JOURNAL}.new"
    _remove(new.values())
    try:
        yield new
        plan = {"take": [], "drop": []}
        for name, path in new.items():
            plan["take" if path.exists() else "drop"].append(name)
        for name in plan["take"]:
            _to_disk(new[name])
        draft.write_text(json.dumps(plan) + "\n", encoding="utf-8")
        _to_disk(draft)
        draft.replace(journal)
        settle(folder)
    except BaseException:
        if journal.exists():  # the new files count already
            settle(folder)
        else:
            _remove([*new.values(), draft])
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
    _to_disk(folder)  # the journal has its name before any other file changes it
    for name in plan["take"]:
        with suppress(FileNotFoundError):  # already done, before the interruption or by another reader
            (folder / f"{name}.new").replace(folder / name)
    _remove(folder / name for name in plan["drop"])
    _to_disk(folder)
    journal.unlink(missing_ok=True)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return  # there a folder cannot be opened, and its names are written through
    # fsync wants a descriptor that may write on Windows, and one that may not for a folder elsewhere
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
