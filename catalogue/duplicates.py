"""Exact and near duplicates among millions of records, in little memory.

Near duplicates are contents of which at least THRESHOLD of the sets of three consecutive words are shared (Jaccard
similarity; capitals and punctuation do not count). MinHash with locality-sensitive hashing names the few earlier
records that could be so near; only those are compared, exactly. So what is dropped is a near duplicate for certain,
and one at the threshold is found with a probability of 99.7 % (1 - (1 - 0.9^7)^9), an equal text always.

docs/LOG.md has the measurement behind THRESHOLD.
"""

import re
import zlib
from hashlib import blake2b

import numpy as np

from catalogue.workers import interrupts_held

THRESHOLD = 0.9
BANDS, ROWS = 9, 7  # 63 minima in 9 bands: two texts are compared when all 7 minima of any band agree

# A character of Chinese or Japanese, which are written without spaces, or a word of any other script.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")

_MIX = [np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)]  # SplitMix64's
_POWERS = np.array([pow(0x9E3779B97F4A7C15, i, 1 << 64) for i in range(BANDS * ROWS)], dtype=np.uint64)


def digest(text: str) -> bytes:
    """8 bytes, the same on every machine. Two texts out of 2.25 million share one with a probability of 1.4e-7."""
    return blake2b(text.encode("utf-8"), digest_size=8).digest()


def shingles(text: str) -> np.ndarray:
    """64-bit hashes of each three consecutive words of `text`, (n,) uint64, n >= 1."""
    words = _WORD.findall(text.casefold()) or [text]
    words = np.array([zlib.crc32(word.encode("utf-8")) for word in [*words, "", ""][: max(3, len(words))]], np.uint64)
    return _mixed((words[:-2] * _MIX[0] + words[1:-1]) * _MIX[1] + words[2:])


def similarity(text: str, other: str) -> float:
    """The share of three consecutive words, out of those in either text, that both have: 0 to 1."""
    a, b = set(shingles(text).tolist()), set(shingles(other).tolist())
    return len(a & b) / len(a | b)


def near_keys(texts: list[str]) -> np.ndarray:
    """(texts, BANDS + 1) uint64: near texts share one of their keys, most likely; equal ones share the last."""
    with interrupts_held():
        from datasketch import MinHash  # loads scipy: 40 MB and half a second, for near duplicates only

    sets = ((shingles(text) >> np.uint64(32)).tolist() for text in texts)
    hashes = MinHash.generator(sets, num_perm=BANDS * ROWS, seed=1, scheme="affine32", hashfunc=int)
    minima = np.array([minhash.hashvalues for minhash in hashes], dtype=np.uint64).reshape(-1, BANDS * ROWS)
    weighted = (minima + np.uint64(1)) * _POWERS
    bands = weighted.reshape(-1, BANDS, ROWS).sum(axis=2, dtype=np.uint64)
    keys = _mixed(np.concatenate([bands, weighted.sum(axis=1, dtype=np.uint64)[:, None]], axis=1))
    return keys | np.uint64(1)  # 0 stands for an empty slot


def _mixed(values: np.ndarray) -> np.ndarray:
    values = (values ^ values >> np.uint64(31)) * _MIX[2]
    return values ^ values >> np.uint64(29)


class KeyTable:
    """Which records have a key: a hash table of the first one in two arrays, 12 bytes a slot.

    Python's dict would take 100 bytes a key; a catalogue of a million records has ten million. The few keys that
    several records share without being near (a paragraph that a shop puts under everything) have up to MOST more in
    a dict.
    """

    MOST = 32

    def __init__(self, slots: int = 1 << 16):
        """`slots`: a power of two; doubled whenever two thirds of them are taken."""
        self.taken = 0
        self._keys, self._records = np.zeros(slots, np.uint64), np.zeros(slots, np.uint32)
        self._more: dict[int, list[int]] = {}

    def find(self, keys: np.ndarray) -> list[int]:
        """The records that have any of `keys`, each once, the earliest first."""
        slots = self._slots(keys)
        held = self._keys[slots] == keys
        found = set(self._records[slots[held]].tolist())
        for key in keys[held].tolist() if self._more else ():
            found.update(self._more.get(key, ()))
        return sorted(found)

    def add(self, keys: np.ndarray, record: int) -> None:
        """Note `record` for `keys`."""
        if 3 * (self.taken + len(keys)) > 2 * len(self._keys):
            self._grow()
        keys = np.unique(keys)
        for key in keys[self._keys[self._slots(keys)] == keys].tolist():
            more = self._more.setdefault(key, [])
            if len(more) < self.MOST:
                more.append(record)
        self._put(keys, np.full(len(keys), record, np.uint32))

    def _slots(self, keys: np.ndarray) -> np.ndarray:
        """For each key the slot that holds it, or the empty one where it would go (linear probing)."""
        last = np.uint64(len(self._keys) - 1)
        slots = keys >> np.uint64(20) & last
        while True:
            stored = self._keys[slots]
            other = (stored != keys) & (stored != 0)
            if not other.any():
                return slots
            slots = np.where(other, slots + np.uint64(1) & last, slots)

    def _put(self, keys: np.ndarray, records: np.ndarray) -> None:
        while len(keys):
            slots = self._slots(keys)
            empty = self._keys[slots] == 0
            keys, records, slots = keys[empty], records[empty], slots[empty]
            self._keys[slots] = keys
            stands = self._keys[slots] == keys  # of two keys that chose one empty slot the last stands
            self._records[slots[stands]] = records[stands]
            self.taken += int(stands.sum())
            keys, records = keys[~stands], records[~stands]

    def _grow(self) -> None:
        keys, records = self._keys, self._records
        self._keys, self._records = np.zeros(2 * len(keys), np.uint64), np.zeros(2 * len(keys), np.uint32)
        self.taken = 0
        for start in range(0, len(keys), 1 << 20):
            part = slice(start, start + (1 << 20))
            used = keys[part] != 0
            self._put(keys[part][used], records[part][used])
