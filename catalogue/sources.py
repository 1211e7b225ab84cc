"""Which files an input means: those of folders and archives, unpacked. What one is, tells its content, not its name."""

import bz2
import gzip
import io
import lzma
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from catalogue.encoding import CHUNK_BYTES
from catalogue.fields import one_line
from text.errors import DataError

STDIN = Path("-")
TEXTS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".xml")
SUFFIXES = (*TEXTS, ".xlsx", ".xls", ".xlsb", ".ods", ".parquet")
PACKED = (".gz", ".bz2", ".xz", ".zst")
ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz")
MOST_NAMED = 20  # of what is left alone
MOST_LAYERS = 4  # of packings one in another: trn.json.gz in a .tar.xz has three

# LF-Amazon comes as trn.json (the products to train on) beside tst.json and lbl.json (the labels of both).
LF_AMAZON = ("trn.json", "trn.json.gz")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """One file to read: on the disk, inside an archive, or standard input."""

    path: Path
    members: tuple[str, ...] = ()  # its name inside the archive `path`; two, where that archive is in another

    @property
    def name(self) -> str:
        """Without its folders and without `.gz`: what rejects.jsonl calls it."""
        name = "standard input" if self.path == STDIN else PurePosixPath((self.path.name, *self.members)[-1]).name
        return one_line(_unpacked_name(name))

    def __str__(self) -> str:
        path = "standard input" if self.path == STDIN else self.path
        return ", ".join(map(one_line, (path, *self.members)))


def find_sources(inputs: list[Path], outputs: Collection[Path] = (), say: Say = lambda sentence: None) -> list[Source]:
    """The files on the disk that `inputs` mean, in order. Of a folder: `trn.json(.gz)` if it has one, else every
    catalogue in it, by name, but none of our own `outputs`. `say` is told what is left alone.

    Raises DataError for an input that is not there, holds no catalogue, or is one of the `outputs`.
    """
    sources, ours = [], {path.resolve() for path in outputs}
    for path in inputs:
        if path == STDIN:
            sources.append(Source(path))
        # Windows leaves the star to the program.
        elif "*" in path.name and not path.exists() and (found := sorted(path.parent.glob(path.name))):
            sources += find_sources(found, outputs, say)
        elif path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.is_file() and file.resolve() not in ours)
            chosen = _catalogues(f"folder {path}", [file.relative_to(path).as_posix() for file in found], say)
            sources += find_sources([found[place] for place in chosen], outputs, say)
        elif not path.exists():
            where_to_get_it = (
                " LF-Amazon comes from the Extreme Classification Repository (http://manikvarma.org/downloads/XC/"
                "XMLRepository.html): LF-Amazon-1.3M, raw text; its trn.json.gz is the file to give here."
            )
            is_meant = ".json" in path.name or "amazon" in path.name.lower()
            hint = where_to_get_it if is_meant else ""
            raise DataError(f"There is no file {one_line(path)}.{hint}")
        elif path.resolve() in ours:
            raise DataError(
                f"{one_line(path)} is what would be written here, and its held-out records are elsewhere: "
                "give the raw catalogue, or another --output_dir."
            )
        else:
            sources.append(Source(path))
    return sources


def size_of(source: Source) -> int | None:
    """Bytes as stored; None for a pipe, which can be read once and is not even looked at."""
    return source.path.stat().st_size if source.path != STDIN and source.path.is_file() else None


def _unpacked_name(name: str) -> str:
    return name[: -len(end)] if (end := PurePosixPath(name).suffix).lower() in PACKED else name


def _catalogues(where: str, names: list[str], say: Say) -> list[int]:
    """The places of those `names` that are catalogues or archives of them: LF-Amazon's `trn`
    alone where there is one. Says which are left alone.

    Raises DataError, which says `where`, when there is none.
    """
    names = [name.replace("\\", "/") for name in names]
    by_name = sorted(range(len(names)), key=names.__getitem__)
    visible = [i for i in by_name if not any(p[0] in "._" and p != ".." for p in PurePosixPath(names[i]).parts)]
    found = [i for i in visible if _unpacked_name(names[i].lower()).endswith((*SUFFIXES, *ARCHIVES))]
    for wanted in LF_AMAZON[::-1]:
        found = [i for i in visible if PurePosixPath(names[i]).name == wanted] or found
    if not found and len(visible) == 1:  # whatever it is called
        found = visible
    if not found:
        raise DataError(
            f"The {one_line(where)} holds no catalogue (a name ending in {', '.join(SUFFIXES)}, also with .gz)."
        )
    if left := [names[i] for i in by_name if i not in set(found)]:
        more = f" and {len(left) - MOST_NAMED:,} more" if len(left) > MOST_NAMED else ""
        say(f"{one_line(where)}: left alone: {one_line(', '.join(left[:MOST_NAMED]))}{more}")
    return found


def files_in(source: Source, progress: Callable[[int], None], say: Say) -> Iterator[tuple[Source, io.BufferedReader]]:
    """Each file that `source` is or, if it is an archive, holds: its name and its bytes, unpacked.

    `peek` of a file shows its first CHUNK_BYTES. `progress` is called with the number of stored bytes read since its
    last call, `say` with what is left alone. Raises DataError for a file that is damaged or cannot be read.
    """
    told = 0

    def tell(end: int) -> None:
        nonlocal told
        if end > told:  # in archives reading goes to and fro
            progress(end - told)
            told = end

    with ExitStack() as stack:
        try:
            file = sys.stdin.buffer if source.path == STDIN else stack.enter_context(source.path.open("rb"))
        except OSError as error:
            raise DataError(f"{source} cannot be read: {error.strerror}.") from None
        stored = _Layer(file, source, seekable=file.seekable())
        for place, unpacked in _unpacked(source, io.BufferedReader(stored, CHUNK_BYTES), stack, say):
            layer = _Layer(unpacked, place, unpacked.seekable(), lambda: tell(stored.position))
            yield place, io.BufferedReader(layer, CHUNK_BYTES)
        tell(size_of(source) or 0)  # of an archive not all is read


def _unpacked(source: Source, file: io.BufferedReader, stack: ExitStack, say: Say, layers: int = 0) -> Iterator:
    """`files_in`, of bytes that may be packed: known by their first ones, never by the name."""
    head = file.peek(CHUNK_BYTES)
    packing = next((opened for magic, opened in PACKINGS.items() if head.startswith(magic)), None)
    archive = _zip if head.startswith((b"PK\x03\x04", b"PK\x05\x06")) else _tar if head[257:262] == b"ustar" else None
    if not packing and not archive:
        yield source, file
        return
    if layers == MOST_LAYERS or (archive and len(source.members) == 2):
        raise DataError(f"{source} is packed too many times, one in another. Unpack it, give the file in it.")
    if packing:
        layer = _Layer(stack.enter_context(_opened(source, packing, file)), source)
        yield from _unpacked(source, io.BufferedReader(layer, CHUNK_BYTES), stack, say, layers + 1)
        return
    file = stack.enter_context(with_random_access(file))
    archive, names, member = _opened(source, archive, file)
    with archive:
        if any(parts <= set(names) for parts in SPREADSHEETS):
            file.seek(0)
            yield source, file
            return
        for place in _catalogues(f"archive {source}", names, say):
            inside = replace(source, members=(*source.members, names[place]))
            with ExitStack() as inner:
                layer = _Layer(inner.enter_context(_opened(inside, member, place)), inside)
                yield from _unpacked(inside, io.BufferedReader(layer, CHUNK_BYTES), inner, say, layers + 1)


@contextmanager
def with_random_access(file: io.BufferedReader) -> Iterator[BinaryIO]:
    """`file` itself if it is one on the disk, else a temporary copy."""
    if file.seekable():
        yield file
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(file, copy, CHUNK_BYTES)
        copy.seek(0)
        yield copy


def _zip(file: BinaryIO) -> tuple[zipfile.ZipFile, list[str], Callable[[int], IO[bytes]]]:
    """The archive, the names of its files, and what opens one of them by its place: two may have one name."""
    archive = zipfile.ZipFile(file)
    infos = [info for info in archive.infolist() if not info.is_dir()]
    return archive, [info.filename for info in infos], lambda place: archive.open(infos[place])


def _tar(file: BinaryIO) -> tuple[tarfile.TarFile, list[str], Callable[[int], IO[bytes] | None]]:
    archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  whoever calls this closes it
    members = [member for member in archive.getmembers() if not member.isdir()]
    # No device is a catalogue, nor a link to somewhere; a hard link is another name of a file in the archive.
    files = {member.name for member in members if member.isfile()}
    is_there = [member.isfile() or (member.islnk() and member.linkname in files) for member in members]
    names = [m.name if there else f"{m.name} (a link)" for m, there in zip(members, is_there, strict=True)]
    return archive, names, lambda place: archive.extractfile(members[place])


# .xlsx, .xlsb and .ods are zips with such names in them.
SPREADSHEETS = ({"xl/workbook.xml"}, {"xl/workbook.bin"}, {"content.xml", "META-INF/manifest.xml"})


def _zstd(file: BinaryIO) -> BinaryIO:
    try:
        from compression import zstd  # Python 3.14 and later
    except ImportError:
        try:
            from backports import zstd
        except ImportError:
            raise RuntimeError("it is packed by zstd: pip install backports.zstd") from None
    return zstd.ZstdFile(file)


PACKINGS: dict[bytes, Callable] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": _zstd,
}


def _opened(source: Source, opened: Callable, *args):
    """What a library opens. Raises DataError whatever the library raises: each has exceptions of its own."""
    try:
        return opened(*args)
    except RuntimeError as error:  # encrypted, an unknown packing, no zstd
        raise DataError(f"{source} cannot be unpacked here ({error}). Unpack it, give the file in it.") from None
    except Exception as error:
        raise damaged(source, error) from error


def damaged(source: Source, error: Exception) -> DataError:
    return DataError(f"{source} is damaged or was cut off ({one_line(error)}). Download or copy it once more.")


class _Layer(io.RawIOBase):
    """Bytes that something stored or packed gives, as a file; whatever it raises becomes a DataError."""

    def __init__(self, file: BinaryIO, source: Source, seekable: bool = False, when_read: Callable = lambda: None):
        self._file, self._source, self._seekable, self._when_read = file, source, seekable, when_read
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._seekable

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = self._file.seek(offset, whence)
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer) -> int:
        """Fills `buffer`, however little comes at a time: only at the end it stays shorter."""
        filled = 0
        try:
            while filled < len(buffer) and (chunk := self._file.read(len(buffer) - filled)):
                buffer[filled : filled + len(chunk)] = chunk
                filled += len(chunk)
        except DataError:
            raise
        except OSError as error:
            if error.errno is None:  # as bz2 says it
                raise damaged(self._source, error) from error
            raise DataError(f"{self._source} cannot be read: {error.strerror}.") from error
        except Exception as error:
            raise damaged(self._source, error) from error
        self.position += filled
        self._when_read()
        return filled
