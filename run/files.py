"""Folders and files that are whole or absent, whatever ends the program or fills the disk.

A folder is written under a hidden name, flushed to the disk and renamed, so whatever bears its own name is whole. What
the death of a process leaves behind bears a hidden name too, and goes at the next start (`clear_leftovers`).
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from catalogue.outputs import sync
from run.units import size

MANIFEST = "manifest.json"


class DiskFull(OSError):
    """There is not enough room for what will be saved."""

    exit_code = 6

    def __str__(self) -> str:
        return str(self.args[0])


class DamagedCheckpoint(RuntimeError):
    """A file of a saved folder is missing, or not the bytes that were saved."""

    exit_code = 2


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Write into the folder that this yields; it becomes `path` once everything in it is on the disk, or never.

    A manifest with the size and SHA-256 of each file goes in last. Raises `DiskFull` when there is no more room; what
    was at `path` before is then still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        entries = {f.relative_to(temporary).as_posix(): {"size": f.stat().st_size, "sha256": sha256(f)} for f in files}
        write_json(temporary / MANIFEST, entries)
        for entry in (*temporary.rglob("*"), temporary):
            sync(entry)
        put_in_place(temporary, path)
    except Exception as error:
        number = re.search(r"os error (\d+)", str(error))  # of a compiled writer, which has it as text
        if not is_disk_full(error) and number:
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        if not is_disk_full(error):
            raise
        raise DiskFull(
            f"{path}: the disk is full, and this was not saved. What was saved before is whole. "
            "Free some space and go on with --resume, or choose another disk with --output_dir."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`. A folder of that name steps aside first and goes last.

    No system can exchange two folders in one operation that Python offers, so there is a moment in which neither is at
    `path`; `clear_leftovers` puts the old one back when the process died in it.
    """
    old = path.with_name(f".{path.name}.old")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.replace(old)
    try:
        temporary.replace(path)
        sync(path.parent)
    except OSError:
        if old.exists() and not path.exists():
            old.replace(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Delete a folder so that it is never half there under its own name."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.replace(hidden)
    except OSError:  # Windows, while somebody has a file of it open: it goes after a later save
        return
    shutil.rmtree(hidden, ignore_errors=True)


def clear_leftovers(run: Path) -> None:
    """Remove what killed saves left in a run. Only the process that holds the run's lock may call this."""
    for old in run.glob(".*.old"):
        path = run / old.name.removeprefix(".").removesuffix(".old")
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.replace(path)
    for temporary in run.glob(".*.tmp"):
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def verify(folder: Path) -> None:
    """Raises `DamagedCheckpoint`, naming the file, when `folder` is not what its manifest says."""
    manifest = folder / MANIFEST
    entries = read_json(manifest)
    try:
        # Compared as text too, so that there is no byte of the manifest that may change.
        whole = bool(entries) and json_text(entries) == manifest.read_text(encoding="utf-8")
        whole = whole and all(name.isprintable() for name in entries)  # they are named on the screen
        for name, entry in entries.items() if whole else ():
            file = folder / name
            if not file.is_file() or file.stat().st_size != entry["size"] or sha256(file) != entry["sha256"]:
                raise DamagedCheckpoint(f"{file} is missing or damaged.")
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        whole = False
    if not whole:
        raise DamagedCheckpoint(f"{manifest} is missing or damaged.")


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_disk_full(error: Exception) -> bool:
    """Whether the disk, or this user's part of it, is full. Compiled writers pass the system's number on as text."""
    full = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), 112}  # 112: Windows' ERROR_DISK_FULL
    if isinstance(error, OSError) and not isinstance(error, DiskFull):
        return error.errno in full or getattr(error, "winerror", None) in full
    number = re.search(r"(?:os error|code:) (\d+)", str(error))
    return bool(number) and int(number[1]) in full


def json_text(value) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def write_json(path: Path, value) -> None:
    write_text(path, json_text(value))


def write_text(path: Path, text: str) -> None:
    """The file is replaced in one operation: at every moment it is the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path):
    """Raises `DamagedCheckpoint` when the file is absent or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise DamagedCheckpoint(f"{path} is missing or damaged.") from None


def check_free_space(folder: Path, needed: int) -> int:
    """Free bytes on the disk that `folder` is, or will be, on. Raises `DiskFull` when they are fewer than `needed`."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise DiskFull(
            f"{existing}: {size(free)} free, and saving this model takes {size(needed)}. "
            "Free some space, or choose another disk with --output_dir."
        )
    return free
