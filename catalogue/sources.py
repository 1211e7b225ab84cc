"""Which files an input means, and their bytes as UTF-8: folders, archives, gzip, standard input, other encodings."""

import codecs
import gzip
import io
import sys
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import BinaryIO

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
    number: int = 0  # its place there: two may have one name
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


def find_sources(
    inputs: list[Path], outputs: Collection[Path] = (), say: Callable[[str], None] = lambda sentence: None
) -> list[Source]:
    """The files that `inputs` mean, in order. Of a folder or a zip archive: `trn.json(.gz)` if it has one, else every
    catalogue in it, by name, but none of our own `outputs`. `say` is told what is left alone.

    Raises DataError for an input that is not there, holds no catalogue, or is one of the `outputs`.
    """
    sources, ours = [], {path.resolve() for path in outputs}
    for path in inputs:
        if path == STDIN:
            sources.append(Source(path))
        elif "*" in path.name and (found := sorted(path.parent.glob(path.name))):  # Windows leaves it to the program
            sources += find_sources(found, outputs, say)
        elif path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.is_file() and file.resolve() not in ours)
            names = [file.relative_to(path).as_posix() for file in found]
            chosen = _catalogues(f"folder {path}", names, say, also=(".zip",))
            sources += find_sources([found[number] for number in chosen], outputs, say)
        elif not path.exists():
            where_to_get_it = (
                " LF-Amazon comes from the Extreme Classification Repository (http://manikvarma.org/downloads/XC/"
                "XMLRepository.html): LF-Amazon-1.3M, raw text; its trn.json.gz is the file to give here."
            )
            hint = "" if path.suffix.lower() in (".csv", ".tsv") else where_to_get_it
            raise DataError(f"There is no file {printable(str(path))}.{hint}")
        elif not path.is_file():  # a pipe, which can be read once: not even looked at
            sources.append(Source(path))
        elif path.resolve() in ours:
            raise DataError(
                f"{printable(str(path))} is what would be written here, and its held-out records are elsewhere: "
                "give the raw catalogue, or another --output_dir."
            )
        elif _starts_like_zip(path):
            sources += _members(path, say)
        else:
            sources.append(Source(path, size=path.stat().st_size))
    return sources


def _catalogues(where: str, names: list[str], say: Callable[[str], None], also: tuple[str, ...] = ()) -> list[int]:
    """The places of those `names`, with / between folders, that are catalogues, by name: LF-Amazon's `trn` alone where
    there is one. Says which are left alone.

    Raises DataError, which says `where`, when there is none.
    """
    by_name = sorted(range(len(names)), key=names.__getitem__)
    visible = [i for i in by_name if not any(p[0] in "._" and p != ".." for p in PurePosixPath(names[i]).parts)]
    found = [i for i in visible if names[i].lower().removesuffix(".gz").endswith((*SUFFIXES, *also))]
    for wanted in LF_AMAZON[::-1]:
        found = [i for i in visible if PurePosixPath(names[i]).name == wanted] or found
    if not found:
        raise DataError(
            f"The {printable(where)} holds no catalogue (a name ending in {', '.join(SUFFIXES)}, also with .gz)."
        )
    if left := [names[i] for i in by_name if i not in set(found)]:
        more = f" and {len(left) - 5:,} more" if len(left) > 5 else ""
        say(f"{printable(where)}: left alone: {printable(', '.join(left[:5]))}{more}")
    return found


def _starts_like_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def _members(path: Path, say: Callable[[str], None]) -> list[Source]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [(number, info) for number, info in enumerate(archive.infolist()) if not info.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    chosen = [infos[place] for place in _catalogues(f"archive {path}", [info.filename for _, info in infos], say)]
    return [Source(path, info.filename, number, info.compress_size, info.file_size) for number, info in chosen]


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
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(source, error) from error


def _stored(source: Source, stack: ExitStack, progress: Callable) -> Iterator[bytes]:
    if source.member is not None:
        archive = stack.enter_context(zipfile.ZipFile(source.path))
        try:
            file = stack.enter_context(archive.open(archive.infolist()[source.number]))
        except RuntimeError as error:  # encrypted, or an unknown packing
            raise DataError(f"{source} cannot be unpacked here ({error}). Unpack it, give the file.") from None
        except (zipfile.BadZipFile, OSError) as error:
            raise _damaged(source, error) from error
    else:
        file = sys.stdin.buffer if source.path == STDIN else stack.enter_context(source.path.open("rb"))
    read, told = 0, 0
    while chunk := _read(file, source):
        read += len(chunk)
        stored = read * source.size // source.unpacked if source.unpacked else read
        progress(stored - told)
        told = stored
        yield chunk


def _read(file: BinaryIO, source: Source) -> bytes:
    """Raises DataError whatever the file, or the library that unpacks it, raises: each has exceptions of its own."""
    try:
        return file.read(CHUNK_BYTES)
    except OSError as error:
        if error.errno is None:  # as bz2 says it
            raise _damaged(source, error) from error
        raise DataError(f"{source} cannot be read: {error.strerror}.") from error
    except Exception as error:
        raise _damaged(source, error) from error


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
