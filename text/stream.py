"""Records in an order that is a function of (seed, epoch, position), read from disk as they are needed.

Nothing here grows with the catalogue: the byte offset of every line lies in a file of its own, mapped into memory, and
the shuffle is a keyed permutation that computes where position i goes instead of storing it. So to resume is to set
one integer, and every process of a larger run sees the same order.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np

from text.errors import DataError

Record = dict  # {"uid", "title", "content"}: texts; and "attributes": {name: text} where a product has some


def given(record: Record) -> str:
    """All that a model is told of a product: its title, or the question about it, and the values of its attributes."""
    return " ".join([record["title"], *record.get("attributes", {}).values()])


class RecordFile:
    """A JSONL file of records with random access: `len(file)`, `file[i]` -> a `Record`."""

    def __init__(self, path: Path, may_be_empty: bool = False):
        """Raises `DataError` when `path` does not exist or, unless it may, holds no record."""
        if not path.is_file():
            raise DataError(f"{path} does not exist. Make it: python data_prep.py INPUT --output_dir {path.parent}")
        self.path = path
        self._offsets = line_offsets(path)
        self._file = path.open("rb")
        if len(self) == 0 and not may_be_empty:
            raise DataError(f"{path} holds no record. Prepare it again: python data_prep.py INPUT")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> Record:
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        self._file.seek(start)
        try:
            record = json.loads(self._file.read(end - start))
            texts = {key: str(record[key]) for key in ("uid", "title", "content")}
            attributes = record.get("attributes") or {}
            if not all(isinstance(value, str) for value in attributes.values()):
                raise TypeError("attributes are texts")
            return texts | ({"attributes": attributes} if attributes else {})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise DataError(
                f"{self.path}, record {index + 1}: not an object with uid, title and content. "
                "Prepare the file again: python data_prep.py INPUT"
            ) from None

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def fingerprint(self) -> str:
        """SHA-256 of the content: one second a gigabyte, and no correction in the middle of it goes unseen."""
        self._file.seek(0)
        return hashlib.file_digest(self._file, "sha256").hexdigest()

    def close(self) -> None:
        self._file.close()


class WithReplay:
    """The records of `new`, and behind them as many of `old` as are a `share` of both: drawn once, by `seed`.

    For fine-tuning on `new` a model that was trained on `old`: what is seen now and then again is forgotten less. An
    epoch is one pass over all of them, so a step has as many records as without, and its order is a function of (seed,
    epoch, position) as well. Where `old` has too few, they come several times.
    """

    def __init__(self, new: RecordFile, old: RecordFile, share: float, seed: int):
        self.new, self.old, self.path = new, old, new.path
        self.replayed = max(1, round(len(new) * share / (1 - share)))
        self._order = Permutation(len(old), key=f"replay:{seed}")

    def __len__(self) -> int:
        return len(self.new) + self.replayed

    def __getitem__(self, index: int) -> Record:
        if index < len(self.new):
            return self.new[index]
        if index >= len(self):
            raise IndexError(index)
        return self.old[self._order[(index - len(self.new)) % len(self.old)]]

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))


Records = RecordFile | WithReplay


def line_offsets(path: Path) -> np.ndarray:
    """Byte offset of each line and of the end of the file, (lines + 1,) int64, mapped from `<path>.index`.

    The index is written once, 8 bytes a line, and made again when the size or time of the file has changed. In a
    folder that cannot be written it is kept in memory instead.
    """
    stat = path.stat()
    key = [stat.st_size, stat.st_mtime_ns]
    index = path.with_name(path.name + ".index")
    try:
        stored = np.memmap(index, dtype="<i8", mode="r")
        if len(stored) > 2 and stored[:2].tolist() == key and stored[-1] == stat.st_size:
            return stored[2:]
    except (FileNotFoundError, ValueError):  # absent, empty, or cut short
        pass

    with path.open("rb", buffering=1 << 20) as file:
        offsets = np.fromiter(accumulate(map(len, file), initial=0), dtype="<i8")
    temporary = index.with_name(f"{index.name}.{os.getpid()}.tmp")
    try:
        np.concatenate([np.array(key, dtype="<i8"), offsets]).tofile(temporary)
        temporary.replace(index)
    except OSError:
        temporary.unlink(missing_ok=True)
    return offsets


class Permutation:
    """A bijection of `range(size)` that looks random, in O(1) memory: `permutation[i]` for any i, in any order.

    A four-round Feistel network over the smallest power of four that holds `size`, walking the cycle until the value
    falls inside (at most four steps on average): Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002.
    """

    def __init__(self, size: int, key: str):
        self.size = size
        self._half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._mask = (1 << self._half_bits) - 1
        digest = hashlib.blake2b(key.encode(), digest_size=32).digest()
        self._keys = [int.from_bytes(digest[i : i + 8], "little") for i in range(0, 32, 8)]

    def __getitem__(self, position: int) -> int:
        value = position
        while True:
            left, right = value >> self._half_bits, value & self._mask
            for key in self._keys:
                left, right = right, left ^ (_mix(right ^ key) & self._mask)
            value = left << self._half_bits | right
            if value < self.size:
                return value


def _mix(value: int) -> int:
    """A 64-bit hash: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31


def steps_per_epoch(records: int, records_per_step: int) -> int:
    """The last step of an epoch takes what is left over: nothing is dropped."""
    return -(-records // records_per_step)


def records_of_steps(
    file: Records, records_per_step: int, seed: int, first_step: int, last_step: int
) -> Iterator[list[Record]]:
    """The records of each optimizer step from `first_step` up to, not including, `last_step`."""
    per_epoch = steps_per_epoch(len(file), records_per_step)
    for step in range(first_step, last_step):
        epoch, step_of_epoch = divmod(step, per_epoch)
        order = Permutation(len(file), key=f"{seed}:{epoch}")
        start = step_of_epoch * records_per_step
        yield [file[order[i]] for i in range(start, min(start + records_per_step, len(file)))]
