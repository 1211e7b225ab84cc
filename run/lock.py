"""One run, one writer: a lock file that names its holder, so that a stale one is recognised."""

import json
import os
import socket
import weakref
from pathlib import Path

import psutil
from filelock import FileLock

from run.cli import UsageError
from run.files import clear_leftovers

FILE_NAME = "lock.json"


class RunLock:
    """Held from here on until the object goes, at the latest with the process.

    A process is named by its number and its start time: the number alone may belong to another one by now. A lock of
    a process that is no more is taken over, and the leftovers of its saves are removed. Raises `UsageError` when
    somebody else trains into the run. The empty `.lock` beside the runs stays there; it stands for no run.
    """

    def __init__(self, run: Path):
        me = {"pid": os.getpid(), "started": psutil.Process().create_time(), "host": socket.gethostname()}
        path = run / FILE_NAME
        with FileLock(run.parent / ".lock"):  # for a moment only: two processes must not take over a stale lock at once
            refuse_if_held(run, read_holder(path), me)
            path.write_text(json.dumps(me), encoding="utf-8")
        self._release = weakref.finalize(self, release, path, me)
        clear_leftovers(run)


def refuse_if_held(run: Path, holder: dict | None, me: dict) -> None:
    """Raises `UsageError` when `holder` is somebody else who lives, or who cannot be asked."""
    if holder is not None and holder["host"] != me["host"]:
        raise UsageError(
            f"{run} is in use by process {holder['pid']} of the machine {holder['host']}. "
            f"If nothing runs there any more, delete {run / FILE_NAME}."
        )
    if holder is not None and holder["pid"] != me["pid"] and is_alive(holder):
        raise UsageError(
            f"Process {holder['pid']} is training into {run}. Stop it first, or choose another --run_name."
        )


def release(path: Path, me: dict) -> None:
    if read_holder(path) == me:
        path.unlink(missing_ok=True)


def read_holder(path: Path) -> dict | None:
    """Who holds the lock; None when the file says nothing that can be understood, as after a power failure."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return {"pid": int(holder["pid"]), "started": float(holder["started"]), "host": str(holder["host"])}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def is_alive(holder: dict) -> bool:
    try:
        # Clocks are set, and start times are rounded: within two seconds it is the same process.
        return abs(psutil.Process(holder["pid"]).create_time() - holder["started"]) < 2
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False
    except psutil.AccessDenied:  # somebody else's process, so a process
        return True
