"""Which files an input means, and their bytes as UTF-8: folders, archives, gzip, standard input, other encodings."""

import codecs
import gzip
import io
import sys
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath

from catalogue.fields import printable
from text.errors import DataError

STDIN = Path("-")
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
CHUNK_BYTES = 1 << 16  # read at once, and looked at to tell what a file is

# LF-Amazon comes as trn.json (the products to train on) beside tst.json and lbl.json (the labels of both).
LF_AMAZON = ("trn.json", "trn.json.gz")


@dataclass(frozen=True)
class Source:
    """One file to read: on the disk, inside an archive, or standard input."""

    path: Path
    member: str | None = None  # its name inside the archive `path`
    size: int | None = None  # bytes as stored, packed ones of a packed file; None: unknown
    unpacked: int | None = None  # bytes, of a member

    @property
    def name(self) -> str:
        """Without its folders and without `.gz`: what tells the format, and what rejects.jsonl calls it."""
        name = "standard input" if self.path == STDIN else PurePosixPath(self.member or self.path.name).name
        return printable(name.removesuffix(".gz"))

    def __str__(self) -> str:
        if self.member:
            return printable(f"{self.path}, {self.member}")
        return self.name if self.path == STDIN else printable(str(self.path))


def find_sources(inputs: list[Path], outputs: Collection[Path] = ()) -> list[Source]:
    """The files that `inputs` mean, in order. Of a folder or a zip archive: `trn.json(.gz)` if it has one, else every
    catalogue in it, by name, but none of our own `outputs`.

    Raises DataError for an input that is not there or holds no catalogue.
    """
    sources = []
    for path in inputs:
        if path == STDIN:
            sources.append(Source(path))
        elif "*" in path.name and (found := sorted(path.parent.glob(path.name))):  # Windows leaves it to the program
            sources += find_sources(found, outputs)
        elif path.is_dir():
            found = [file for file in path.rglob("*") if file.is_file() and file not in outputs]
            files = {file.relative_to(path).as_posix(): file for file in found}
            sources += find_sources([files[name] for name in _catalogues(f"folder {path}", files, also=(".zip",))])
        elif not path.exists():
            where_to_get_it = (
                " LF-Amazon comes from the Extreme Classification Repository (http://manikvarma.org/downloads/XC/"
                "XMLRepository.html): LF-Amazon-1.3M, raw text; its trn.json.gz is the file to give here."
            )
            hint = "" if path.suffix.lower() in (".csv", ".tsv") else where_to_get_it
            raise DataError(f"There is no file {printable(str(path))}.{hint}")
        elif _starts_like_zip(path):
            sources += _members(path)
        else:
            sources.append(Source(path, size=path.stat().st_size))
    return sources


def _catalogues(where: str, names: Iterable[str], also: tuple[str, ...] = ()) -> list[str]:
    """Those of `names`, with / between folders, that are catalogues: LF-Amazon's `trn` alone where there is one.

    Raises DataError, which says `where`, when there is none.
    """
    visible = [name for name in sorted(names) if not any(part[0] in "._" for part in PurePosixPath(name).parts)]
    for wanted in LF_AMAZON:
        if found := [name for name in visible if PurePosixPath(name).name == wanted]:
            return found
    found = [name for name in visible if name.lower().removesuffix(".gz").endswith((*SUFFIXES, *also))]
    if not found:
        raise DataError(f"The {where} holds no catalogue (a name ending in {', '.join(SUFFIXES)}, also with .gz).")
    return found


def _starts_like_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def _members(path: Path) -> list[Source]:
    try:
        with zipfile.ZipFile(path) as archive:
            files = {info.filename: info for info in archive.infolist() if not info.is_dir()}
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    chosen = [files[name] for name in _catalogues(f"archive {path}", files)]
    return [Source(path, info.filename, info.compress_size, info.file_size) for info in chosen]


@contextmanager
def open_source(source: Source, encoding: str | None, progress: Callable[[int], None]) -> Iterator[io.BufferedReader]:
    """The bytes of `source`, unpacked, in UTF-8 and without a byte-order mark. `peek` shows the first CHUNK_BYTES.

    `encoding` None: UTF-8, or UTF-16 where a byte-order mark says so. Bytes that `encoding` does not know come out as
    bytes that are not UTF-8, so that only the record they stand in is lost. `progress` is called with the number of
    stored bytes read since its last call. Raises DataError for a damaged file or an unknown encoding.
    """
    with ExitStack() as stack:
        chunks = _unpacked(source, stack, progress)
        head = next(chunks, b"")
        if head.startswith(b"PK\x03\x04"):
            raise DataError(f"{source} is a zip archive that cannot be read from here. Unpack it, give the file in it.")
        if encoding is None:
            encoding = "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"
        yield _reader(_in_utf8(chain([head.removeprefix(codecs.BOM_UTF8)], chunks), encoding, source))


def _unpacked(source: Source, stack: ExitStack, progress: Callable) -> Iterator[bytes]:
    """The content of `source` in chunks; gzip, also inside a zip archive, is known by its first two bytes."""
    try:
        file = _reader(_stored(source, stack, progress))
        if file.peek().startswith(b"\x1f\x8b"):
            file = gzip.GzipFile(fileobj=file)
        yield from iter(partial(file.read1, CHUNK_BYTES), b"")
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise _damaged(source, error) from error


def _stored(source: Source, stack: ExitStack, progress: Callable) -> Iterator[bytes]:
    if source.member is not None:
        archive = stack.enter_context(zipfile.ZipFile(source.path))
        try:
            file = stack.enter_context(archive.open(source.member))
        except RuntimeError as error:  # encrypted, or an unknown packing
            raise DataError(f"{source} cannot be unpacked here ({error}). Unpack it, give the file.") from None
    else:
        file = sys.stdin.buffer if source.path == STDIN else stack.enter_context(source.path.open("rb"))
    read, told = 0, 0
    while chunk := file.read(CHUNK_BYTES):
        read += len(chunk)
        stored = read * source.size // source.unpacked if source.unpacked else read
        progress(stored - told)
        told = stored
        yield chunk


def _in_utf8(chunks: Iterator[bytes], encoding: str, source: Source) -> Iterator[bytes]:
    """Text in `encoding` as UTF-8; what cannot be decoded becomes a lone surrogate, which UTF-8 does not allow."""
    try:
        "".encode(encoding)  # a codec that is no text encoding (base64) is refused here
    except (LookupError, UnicodeError):
        raise DataError(f"There is no encoding {encoding!r}. Usual ones: utf-8, cp1252, latin-1, utf-16.") from None
    if codecs.lookup(encoding).name in ("utf-8", "utf-8-sig", "ascii"):
        yield from chunks
        return
    try:
        for text in codecs.iterdecode(chunks, encoding, "surrogateescape"):
            yield text.encode("utf-8", "surrogatepass")
    except (UnicodeError, LookupError, TypeError) as error:  # the last two: a codec that is no text encoding
        raise DataError(f"{source} is not {encoding} ({error}). Try another --encoding.") from None


def _damaged(source: Source | Path, error: Exception) -> DataError:
    return DataError(f"{source} is damaged or was cut off ({error}). Download or copy it once more.")


def _reader(chunks: Iterator[bytes]) -> io.BufferedReader:
    """Chunks of bytes as a file that can be read."""
    return io.BufferedReader(_Chunks(chunks), CHUNK_BYTES)


class _Chunks(io.RawIOBase):
    def __init__(self, chunks: Iterator[bytes]):
        self._chunks, self._rest = filter(None, chunks), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        """Fills `buffer`, however short the chunks are: only at the end it stays shorter."""
        filled = 0
        while filled < len(buffer) and (rest := self._rest or memoryview(next(self._chunks, b""))):
            count = min(len(buffer) - filled, len(rest))
            buffer[filled : filled + count], self._rest = rest[:count], rest[count:]
            filled += count
        return filled
