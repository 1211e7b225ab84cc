"""Text as UTF-8: which encoding a file is in, by evidence, and single lines that are in another one."""

import codecs
import io
import re
from collections.abc import Iterator
from functools import partial

from text.errors import DataError

CHUNK_BYTES = 1 << 16  # read at once, and looked at to tell what a file is
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before the next, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def in_utf8(file: io.BufferedReader, encoding: str | None) -> tuple[io.BufferedReader, str]:
    """The text in `file` as UTF-8 without a byte-order mark, and the name of the encoding it is in.

    `encoding` None: by evidence, UTF-8 or UTF-16 with or without a mark. UTF-8 comes out as it stands, right or wrong;
    in another encoding, what cannot be decoded becomes bytes that are not UTF-8, so that only the record they stand in
    is lost. Raises DataError for an unknown encoding.
    """
    head = file.peek(CHUNK_BYTES)[:CHUNK_BYTES]
    encoding = encoding or evident_encoding(head)
    try:
        "".encode(encoding)  # a codec that is no text encoding (base64) is refused here
        b"".decode(encoding, "lost")
        name = codecs.lookup(encoding).name
    except (LookupError, UnicodeError):
        raise DataError(f"There is no encoding {encoding!r}. Usual ones: utf-8, cp1252, latin-1, utf-16.") from None
    if name in ("utf-8", "utf-8-sig", "ascii"):
        if head.startswith(codecs.BOM_UTF8):
            file.read(len(codecs.BOM_UTF8))
        return file, "utf-8"
    if name in ("utf-16", "utf-32") and not head.startswith(tuple(MARKS)):  # which its decoder insists on
        name = found if (found := evident_encoding(head)).startswith(name) else f"{name}-le"
    return io.BufferedReader(_Decoded(file, name), CHUNK_BYTES), name


def evident_encoding(head: bytes) -> str:
    """Of a file that begins with `head`. UTF-16 without a mark shows by its zeros, at every other byte."""
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            return encoding
    pairs = len(head) // 2
    even, odd = head[0 : 2 * pairs : 2].count(0), head[1 : 2 * pairs : 2].count(0)
    if pairs >= 2 and max(even, odd) > 0.4 * pairs and min(even, odd) < 0.1 * pairs:  # 0.4: letters of the Latin script
        return "utf-16-le" if odd > even else "utf-16-be"
    return "utf-8"


def _lost(error: UnicodeDecodeError) -> tuple[str, int]:
    return "\udcff", error.end  # a lone surrogate, which UTF-8 does not allow


codecs.register_error("lost", _lost)  # type: ignore[arg-type]  # only decoding asks for it


class _Decoded(io.RawIOBase):
    """The text of a file, decoded and encoded again."""

    def __init__(self, file: io.BufferedReader, encoding: str):
        self._chunks, self._rest = self._decoded(file, encoding), b""

    @staticmethod
    def _decoded(file: io.BufferedReader, encoding: str) -> Iterator[bytes]:
        try:
            decoder = codecs.getincrementaldecoder(encoding)("lost")
            for chunk in iter(partial(file.read, CHUNK_BYTES), b""):
                yield decoder.decode(chunk).encode("utf-8", "surrogatepass")
            yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")
        except (UnicodeError, LookupError, TypeError) as error:  # codecs that pass no error on, or are half a one
            raise DataError(f"The text is not {encoding} ({error}). Try another --encoding.") from None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._rest and (chunk := next(self._chunks, None)) is not None:
            self._rest = chunk
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def looks_like_cp1252(raw: bytes) -> bool:
    """Whether `raw`, which is not UTF-8, is text of Western Europe in cp1252, the encoding of Windows.

    There the bytes beyond ASCII stand alone, or in twos and threes, among those of ASCII. A line that holds a character
    in UTF-8 too is not of that kind: it was torn.
    """
    runs = re.findall(rb"[\x80-\xff]+", raw)
    if not runs or max(map(len, runs)) > 3 or sum(map(len, runs)) > 2 * len(runs):
        return False
    try:
        raw.decode("cp1252")
    except UnicodeDecodeError:  # five bytes have no meaning in it
        return False
    return not any(_is_utf8(run) for run in runs)


def cells_in_cp1252(cells: list[str]) -> list[str] | None:
    """Cells with bytes that are not UTF-8, as lone surrogates, read as cp1252; None where they do not look like it."""
    if not looks_like_cp1252("\n".join(cells).encode("utf-8", "surrogateescape")):
        return None
    return [cell.encode("utf-8", "surrogateescape").decode("cp1252") for cell in cells]


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
