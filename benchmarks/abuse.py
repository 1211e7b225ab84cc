"""Inputs and options that nobody should give, made at random, and what has to hold of every one of them.

    python benchmarks/abuse.py                        400 cases; other ones with another --seed
    python benchmarks/abuse.py --only tables          one generator; tables:17 is one case, as a failure names it
    python benchmarks/abuse.py --tree ../other        the scripts of another checkout

Of each case: no traceback, no hang, nothing in the output that acts on a terminal, an error in a few lines, the exit
code that this kind of input should have; nothing changes but the files that a command is there to write. Of
data_prep.py besides: the sums are right, and where it fails the older outputs are the same bytes.

data_prep.py runs in a process of its own. The scripts that load torch, which takes 4 s, run in forks of this process,
which has imported it and computed nothing: real exit codes and descriptors, so POSIX only.
"""

import argparse
import atexit
import bz2
import codecs
import csv
import gzip
import hashlib
import importlib
import io
import json
import lzma
import os
import re
import resource
import runpy
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import warnings
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

SECONDS = 60  # a case that takes longer hangs
MOST_LINES, MOST_CHARS = 8, 2_000  # of an error
MEMORY = {"data_prep.py": 1 << 30, "": 8 << 30}  # bytes of a process's own; whoever wants more fails, not the machine

DONE, USAGE, ENVIRONMENT, MEMORY_OUT, NOT_FINITE, DISK, INTERRUPTED = 0, 2, 3, 4, 5, 6, 130
READ_OR_REFUSED = (DONE, USAGE)
ANY_MODEL = (DONE, USAGE, ENVIRONMENT, MEMORY_OUT, NOT_FINITE)  # a changed one may still be one

# What acts on a terminal, said here once more: a test that asked run/terminal.py would believe what it says.
ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
SPLITS = ("train.jsonl", "val.jsonl", "test.jsonl")
OUTPUTS = (*SPLITS, "rejects.jsonl", "report.json", "report.md", "report.html", "catalogue.sqlite")


@dataclass
class Case:
    script: str
    args: list[str | bytes]
    codes: Collection[int]  # that this kind of input should end with
    lines: Collection[int] | None = None  # that report.json may count; None: nobody knows
    stdin: bytes = b""
    closed: int | None = None  # a standard stream that is not there
    signal: int | None = None  # sent once outputs are being written
    to: bytes = b"data"  # the folder that data is written to
    answers: int | None = None  # JSON lines on standard output, where it is done


# -- values and bytes -------------------------------------------------------------------------------------------------

ESCAPES = "\x1b[2J\x1b]0;PWN\x07"
HOSTILE_TEXTS = ["", " ", ESCAPES, "\x9b31m", "a\nb\rc", "\u202eevil\u2066", "\0", "../" * 6 + "etc", "x" * 100_000]
HOSTILE_TEXTS += [
    "\u2028", "ï¿½", "<|endoftext|>", "{% for i in range(9**9) %}x{% endfor %}", "%s{0}{title}", "-",
]  # fmt: skip
ARGUMENTS = [text for text in HOSTILE_TEXTS if "\0" not in text]  # no argument holds a NUL
NUMBERS = [0, -1, 1, 7, 2**31, 2**63, -(2**63), 10**30, 10**400, 1e308, 1e-320, 0.5, float("nan"), float("inf")]
NESTED = '{"a":' * 400 + "1" + "}" * 400
JUNK = [
    b"", b"\0", b"null", b"[]", b"{}", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5_000, b"\xff\xfe", b"\xef\xbb\xbf",
]  # fmt: skip
NO_NUMBERS = [
    "nan", "inf", "-inf", "-1", "1e999", "9" * 400, "9" * 5000, "x", "", "0x10", "\u00bd", "\x1b[31m1", b"\xff1",
]  # fmt: skip
ODD_NUMBERS = ["0", "1", "1_0", " 5 ", "\u0663", "1000000000000", "9007199254740992", "18446744073709551616"]


def hostile_value(draw: Random):
    return draw.choice([*NUMBERS, *HOSTILE_TEXTS, None, True, [], {}, [[]], [None] * 3, {"a": {}}, json.loads(NESTED)])


def mutated_json(draw: Random, value, times: int):
    """`value` with something in it replaced, removed, or put beside."""
    value = json.loads(json.dumps(value))
    for _ in range(times):
        place = value
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw.choice(keys)
            if isinstance(place[key], dict | list) and place[key] and draw.random() < 0.8:
                place = place[key]
                continue
            what = draw.random()
            if what < 0.7:
                place[key] = hostile_value(draw)
            elif what < 0.85:
                del place[key]
            elif isinstance(place, dict):
                place[draw.choice(HOSTILE_TEXTS)] = hostile_value(draw)
            break
    return value


def mutated_bytes(draw: Random, raw: bytes, times: int = 1) -> bytes:
    raw = bytearray(raw)
    for _ in range(times):
        at = draw.randrange(len(raw) + 1)
        end = min(len(raw), at + draw.choice([1, 2, 3, 50, 5000]))
        what = draw.randrange(6)
        if what == 0 and at < len(raw):
            raw[at] ^= 1 << draw.randrange(8)
        elif what == 1:
            del raw[at:end]
        elif what == 2:
            raw[at:at] = raw[at:end]
        elif what == 3:
            raw[at:at] = draw.choice(
                [b"\0", b'"', b"\r", b"\x1b[2J", b"\xff", b"\xef\xbb\xbf", b"[", b"}", b"\\", b"\n"]
            )
        elif what == 4:
            raw[at:at] = draw.randbytes(draw.choice([1, 9, 300]))
        else:
            del raw[at:]
    return bytes(raw)


def write(path: Path, content: bytes | str) -> Path:
    """A new file: what had the name may be linked to the file of all cases."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


WORDS = "azul fino água açúcar blue steel mug for coffee, with a lid it’s – holds 350 ml não vai ao forno"


def products(draw: Random, count: int, mark: str = "") -> list[dict[str, str]]:
    """Good records, no two alike."""
    words = WORDS.split()
    return [
        {
            "title": f"Mug {mark}{i} {draw.choice(words)}",
            "content": f"Number {i}{mark} {' '.join(draw.sample(words, 9))}.",
        }
        for i in range(count)
    ]


def json_line(record: dict, draw: Random) -> bytes:
    return json.dumps(record, ensure_ascii=draw.random() < 0.5).encode()


def jsonl(draw: Random, count: int, mark: str = "") -> bytes:
    return b"".join(json_line(record, draw) + b"\n" for record in products(draw, count, mark))


def table(rows: list[list[str]], line_end: str = "\n", delimiter: str = ",", **dialect) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=line_end, **dialect).writerows(rows)
    return text.getvalue()


def line_count(raw: bytes) -> int:
    return raw.count(b"\n") + (not raw.endswith(b"\n") and raw != b"")


# -- inputs of data_prep.py -------------------------------------------------------------------------------------------

QUICK = ["--no_report", "--no_catalogue", "--no_near_duplicates"]


def prep(draw: Random, *args, codes=READ_OR_REFUSED, lines=None, **more) -> Case:
    extra = draw.choices([QUICK, ["--no_report"], []], [16, 3, 1])[0]
    return Case("data_prep.py", [*args, "--output_dir", "data", *extra], codes, lines, **more)


def odd_json(draw: Random) -> bytes:
    """A value as JSON writes it, or nearly."""
    digits = "9" * draw.choice([20, 308, 309, 310, 999, 4300, 4301, 5000])
    depth = draw.choice([3, 60, 900, 100_000])
    texts = [
        digits, "-" + digits, digits + ".5", "1e400", "-1E-400", "NaN", "-Infinity", "01", "+1", "1.", "true", "null",
    ]  # fmt: skip
    texts += [
        "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, '["a", 1, null, [2], {}]', "[]", "{}", '""',
    ]  # fmt: skip
    texts += [
        r'"\ud800"', r'"\udc00\ud800 mug"', r'"\u0000\u001b[2J\u202e"', '"\x1b[2J"', '"\x9b31m\u2066 \u2028"',
        r'"\x"',
    ]  # fmt: skip
    texts += [
        '"' + "long " * 30_000 + '"', "\"<b title='" + "a " * 20_000, "'single'", "undefined", '"\t"', '"a',
        r'"\u12"',
    ]  # fmt: skip
    return (
        draw.choice(texts).encode()
        if draw.random() < 0.9
        else draw.choice([b'"\xff"', b'"caf\xe9"', b'"\xed\xa0\x80"'])
    )


def odd_line(draw: Random) -> bytes:
    """A line without a line break in it."""
    good, value = json_line(products(draw, 1, str(draw.random()))[0], draw), odd_json(draw)
    key = draw.choice(["title", "content", "uid", "x", ESCAPES, "\u202e", "title\0", "Título"])
    lines = [
        b'{"title": "Odd mug", "content": ' + value + b', "uid": ' + odd_json(draw) + b"}",
        b'{"title": ' + value + b', "content": "a description that is long enough to stay"}',
        b'{"title": "a", "title": "b", "content": "the same key twice, with a long description", "title": '
        + value
        + b"}",
        json.dumps({key: "x", "title": f"Mug {draw.random()}", "content": "long enough to be kept " * 2}).encode(),
        value, good[: draw.randrange(len(good))], good + good, good + b",", codecs.BOM_UTF8 + good, b"\0" + good,
        good + b"\r", b"\r" + good + b"\r\r", b"", b" \t\x0b\x0c",
        good.decode().encode("utf-16-le").replace(b"\n", b"?"), draw.randbytes(90).replace(b"\n", b"?"),
    ]  # fmt: skip
    return draw.choice(lines)


def json_lines(draw: Random, home: Path) -> Case:
    good = jsonl(draw, 40).split(b"\n")[:-1]
    rest = good[1:] + [odd_line(draw) for _ in range(draw.choice([1, 5, 60]))]
    draw.shuffle(rest)
    raw = (codecs.BOM_UTF8 if draw.random() < 0.1 else b"") + b"\n".join([good[0], *rest])
    raw += draw.choice([b"", b"\n", b"\n\n"])
    write(home / "in.jsonl", raw)
    return prep(draw, "in.jsonl", codes=[DONE], lines=[line_count(raw)])


def json_arrays(draw: Random, home: Path) -> Case:
    """Cut anywhere: the elements before the cut are there, and the part of one more."""
    elements = [json_line(record, draw) for record in products(draw, 60)]
    at = draw.sample(range(1, 60), draw.choice([0, 0, 3]))
    for i in at:
        elements[i] = draw.choice([b"1", b"null", b"[]", b"{}", b'"text"', b"[[{}]]", b'{"title": 7}', b"NaN"])
    between = draw.choice([b",", b", ", b",\n", b"\n,\n  "])
    raw, known = draw.choice([b"", b"  \n", codecs.BOM_UTF8]) + b"[" + between.join(elements), True
    what = draw.choice(["whole", "cut", "cut", "behind", "comma", "bytes"])
    if what == "cut":
        first = raw.index(b"[") + 1
        cut = draw.randrange(first, len(raw))
        whole = sum(first + len(between.join(elements[: i + 1])) <= cut for i in range(60))
        lines, raw = [whole, whole + 1], raw[:cut]
    elif what == "bytes":
        raw, known, lines = mutated_bytes(draw, raw + b"]", 3), False, None
    else:
        raw += {"whole": b"]\n", "behind": b"] " + draw.choice([b"]", b"x", b"{}", b"\0"]), "comma": b",]"}[what]
        lines = [60] if what == "whole" else [60, 61]
    name = draw.choice(["in.json", "in.json", "IN.JSON"]) if known else "in.json"
    write(home / name, raw)
    return prep(draw, name, codes=READ_OR_REFUSED if what in ("cut", "bytes") else [DONE], lines=lines)


HEADERS = [
    ["title", "content"], ["Title", "Description"], ["Nome", "Descrição"], ["name", "body_html"],
    ["TITULO", "descricao"],
]  # fmt: skip


def tables(draw: Random, home: Path) -> Case:
    """Written by a CSV writer: every row is one record, whatever stands in its cells."""
    count, more = draw.choice([25, 60]), draw.choice([0, 1, 3])
    odd = [
        "a\tb", 'say ""hi""', "5' 3\" wide", "back\\slash", "c:\\new", "a;b|c", "two\nlines", "\x1b[2J", "\u2028",
        "\ufeff", "=1+1",
    ]  # fmt: skip
    rows = []
    for record in products(draw, count):
        content = record["content"] + (" " + draw.choice(odd) + " and so on" if draw.random() < 0.3 else "")
        rows.append([record["title"], content, *(draw.choice(["", "x", "1,5", ESCAPES]) for _ in range(more))])
    header = [*draw.choice(HEADERS), *(f"extra {i}" for i in range(more))]
    delimiter = draw.choice(",;\t|")
    end = draw.choice(["\n", "\n", "\r\n", "\r"])
    # The csv module leaves a line feed bare where lines end in something else.
    quoting = draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]) if "\n" in end else csv.QUOTE_ALL
    text = table([header, *rows], end, delimiter, quoting=quoting)
    encoding = draw.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16"])
    before = draw.choice(["", "", "\n", f"sep={delimiter}\n"]) if end == "\n" else ""
    write(home / "in.csv", (before + text).encode(encoding))
    return prep(draw, "in.csv", codes=[DONE], lines=[count])


def stray_quotes(draw: Random, home: Path) -> Case:
    """Rows of a line each, quotes where none belong: each line is one record or one broken line."""
    count, columns = 120, draw.randrange(2, 5)
    at = set(draw.sample(range(count), draw.choice([1, 2, 2, 3, 10, 119])))
    how = draw.choice(["opening", "inside", "closing", "both"])
    rows = []
    for i, record in enumerate(products(draw, count)):
        cells = [cell.replace(",", "") for cell in (record["title"], record["content"], f"Brand{i}", "blue")][:columns]
        if i in at:
            place = draw.randrange(columns)
            opening, closing = how in ("opening", "both"), how in ("closing", "both")
            cells[place] = '"' * opening + cells[place] + '"' * closing
            if how == "inside":
                middle = len(cells[place]) // 2
                cells[place] = cells[place][:middle] + '"' + cells[place][middle:]
        rows.append(",".join(cells))
    end = draw.choice(["\n", "\r\n"])
    text = end.join([",".join(["title", "content", "brand", "colour"][:columns]), *rows]) + end
    write(home / "in.csv", text)
    return prep(draw, "in.csv", codes=READ_OR_REFUSED if len(at) > 60 else [DONE], lines=[count])


def broken_tables(draw: Random, home: Path) -> Case:
    """Anything: only that the sums hold and old data stays."""
    rows = [["title", "content"], *([r["title"], r["content"]] for r in products(draw, 60))]
    for _ in range(draw.choice([0, 5])):
        rows.insert(draw.randrange(61), draw.choice([[], [""], ["a"], ["a"] * 9, ["", "", ""], ["\0", "\0"]]))
    raw = table(rows, draw.choice(["\n", "\r"]), draw.choice(",,,;;;\t\t|| :~")).encode(
        draw.choice(["utf-8"] * 4 + ["utf-16", "utf-32"])
    )
    raw = mutated_bytes(draw, raw, draw.choice([1, 5, 40]))
    write(home / "in.csv", raw)
    return prep(draw, draw.choice(["in.csv", "-"]), stdin=raw)


def encodings(draw: Random, home: Path) -> Case:
    """(as written, --encoding, code): with the right name every line is there, with none it is found or refused."""
    text = (
        jsonl(draw, 50).decode()
        + json.dumps({"title": "Ação", "content": "não é água, é açúcar fino"}, ensure_ascii=False)
        + "\n"
    )
    lines, odd = [51], draw.random() < 0.3
    written, named, codes = draw.choice(
        [
            ("utf-16", None, [DONE]), ("utf-16", "utf-16", [DONE]), ("utf-16-le", "utf-16-le", [DONE]),
            ("utf-16-be", "utf-16-be", [DONE]), ("utf-8-sig", None, [DONE]), ("cp1252", "cp1252", [DONE]),
            ("cp1252", "latin-1", [DONE]), ("utf-8-sig", "utf-8-sig", [DONE]), ("cp1252", None, READ_OR_REFUSED),
            ("utf-16-le", None, READ_OR_REFUSED), ("utf-32", None, READ_OR_REFUSED),
            ("utf-8", "utf-16", READ_OR_REFUSED),
            ("utf-8", draw.choice(["utf-7", "ascii", "cp437", "big5", "shift_jis", "unicode_escape"]), READ_OR_REFUSED),
            (
                "utf-8",
                draw.choice(["rot13", "base64", "hex", "zlib", "idna", "punycode", "undefined", "mbcs"]),
                READ_OR_REFUSED,
            ),
            (
                "utf-8",
                draw.choice(["x" * 3000, ESCAPES, "../utf-8", "utf 8", b"\xff", "\u202eutf-8", "-"]),
                READ_OR_REFUSED,
            ),
        ]
    )  # fmt: skip
    raw = text.encode(written, "replace")
    if odd:  # an odd byte at the end of UTF-16 is no unit; of UTF-8 it is a line that is not
        raw += draw.choice([b"\xe9", b"\0", b"a"])
        lines = [51, 52]
    elif draw.random() < 0.2 and written == "cp1252":
        raw = raw.replace(b"\n", b"\r\n")
    write(home / "in.jsonl", raw)
    return prep(
        draw, "in.jsonl", *(["--encoding", named] if named else []), codes=codes,
        lines=lines if codes == [DONE] else None,
    )  # fmt: skip


def zip_of(draw: Random, members: list[tuple[str, bytes]], packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", packing) as archive, warnings.catch_warnings(action="ignore"):  # two of one name
        for name, content in members:
            archive.writestr(name, content)
    return raw.getvalue()


def damaged(draw: Random, raw: bytes) -> tuple[str, bytes]:
    how = draw.choice(["whole", "truncated", "flipped", "mixed"])
    if how == "truncated":
        raw = raw[: draw.randrange(len(raw))]
    elif how == "flipped":
        at = draw.randrange(len(raw))
        raw = raw[:at] + bytes([raw[at] ^ 1 << draw.randrange(8)]) + raw[at + 1 :]
    elif how == "mixed":
        raw = mutated_bytes(draw, raw, 5)
    return how, raw


def packed(draw: Random, home: Path) -> Case:
    text = jsonl(draw, 400)
    kind, packing = draw.choice(["gz", "gz", "gz in zip", "zip", "zip", "zip"]), zipfile.ZIP_STORED
    raw = gzip.compress(text)
    if kind == "zip":
        packing = draw.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    if kind != "gz":
        raw = zip_of(draw, [("in.jsonl.gz", raw) if "in" in kind else ("in.jsonl", text)], packing)
    how, raw = damaged(draw, raw)
    name = draw.choice(["in.jsonl.gz", "in.jsonl.GZ", "in.gz", "in.bin"]) if kind == "gz" else "in.zip"
    write(home / name, raw)
    codes = {"whole": [DONE], "truncated": [USAGE]}.get(how, READ_OR_REFUSED)
    return prep(draw, name, codes=codes, lines=[400] if how == "whole" else None)


def other_packings(draw: Random, home: Path) -> Case:
    """Read whole, or refused; lzma without its container is of no format that is known."""
    text, kind = jsonl(draw, 200), draw.choice(["bz2", "xz", "lzma", "tar", "tar.gz", "tar.bz2", "tar.xz"])
    if kind.startswith("tar"):
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w:" + kind[4:]) as archive:
            for name, content in (("in.jsonl", text), (draw.choice(HOSTILE_NAMES), b"")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                member.type = (
                    tarfile.REGTYPE if content else draw.choice([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
                )
                member.linkname = "../victim.txt"
                archive.addfile(member, io.BytesIO(content))
        raw = raw.getvalue()
    else:
        raw = {"bz2": bz2.compress, "xz": lzma.compress, "lzma": lambda t: lzma.compress(t, lzma.FORMAT_ALONE)}[kind](
            text
        )
    how, raw = damaged(draw, raw)
    write(home / f"in.jsonl.{kind}", raw)
    sure = how == "whole" and kind != "lzma"
    return prep(draw, f"in.jsonl.{kind}", codes=[DONE] if sure else READ_OR_REFUSED, lines=[200] if sure else None)


HOSTILE_NAMES = [
    "../y.jsonl", "..\\y.jsonl", "/abs/y.jsonl", "a/../../y.jsonl", "C:\\y.jsonl", "a\x1b[2J.jsonl", "\u202ey.jsonl",
]  # fmt: skip
HOSTILE_NAMES += [
    "x" * 300 + ".jsonl", "a\nb.jsonl", "y.jsonl", "y.jsonl", "é.jsonl", "a/b/c.JSONL", "\x07.csv.jsonl",
    "data/train.jsonl",
]  # fmt: skip
LEFT_ALONE = [
    "_y.jsonl", ".y.jsonl", "__MACOSX/y.jsonl", "a/.b/y.jsonl", "notes.txt", "y.jsonl.exe", "\x1b[31m",
    "a\nb", "..", "/",
]  # fmt: skip


def member_names(draw: Random, home: Path) -> Case:
    members, lines = [("first.jsonl", jsonl(draw, 40))], 40
    for i in range(draw.randrange(1, 7)):
        count = draw.randrange(1, 9)
        is_read = draw.random() < 0.6
        members.append((draw.choice(HOSTILE_NAMES if is_read else LEFT_ALONE), jsonl(draw, count, f"m{i} ")))
        lines += count * is_read
    write(home / "in.zip", zip_of(draw, members))
    return prep(draw, "in.zip", codes=[DONE], lines=[lines])


def bombs(draw: Random, home: Path) -> Case:
    """100 MB in a few KB."""
    filler = draw.choice([b" " * 1000, b"x" * 999_999, b"[" * 1000, b'"' * 1000, b"<b>" * 1000])
    text = jsonl(draw, 40) + (filler + draw.choice([b"", b"\n"])) * (100_000_000 // len(filler))
    raw, name = draw.choice([(gzip.compress(text, 1), "in.jsonl.gz"), (zip_of(draw, [("in.jsonl", text)]), "in.zip")])
    write(home / name, raw)
    return prep(draw, name, codes=[DONE], lines=[line_count(text)])


def junk(draw: Random, home: Path) -> Case:
    name = draw.choice(
        ["in.jsonl", "in.json", "in.csv", "in.tsv", "in.gz", "in.zip", "in", "in.xlsx", "in.parquet", "in.xml", "-"]
    )
    magic = [
        b"", b"\x1f\x8b", b"PK\x03\x04", b"BZh9", b"\xfd7zXZ\0", b"PAR1", b"\x28\xb5\x2f\xfd", b"\x7fELF",
        b"<?xml ?>", b"%PDF-1.7",
    ]  # fmt: skip
    content = draw.choice([draw.choice(JUNK), draw.choice(magic) + draw.randbytes(draw.choice([0, 5, 4000, 300_000]))])
    write(home / (name if name != "-" else "unused"), content)
    return prep(draw, name, codes=[USAGE], stdin=content)


def folders(draw: Random, home: Path) -> Case:
    lines = 0
    for i, name in enumerate(
        draw.sample(["a.jsonl", "B.JSONL", "c/d.json.gz", "e f.ndjson", "é.jsonl", "\x1b[2J.jsonl", "x/y/z.zip"], 4)
    ):
        text = jsonl(draw, 20, f"f{i} ")
        raw = (
            gzip.compress(text)
            if name.endswith(".gz")
            else zip_of(draw, [("in.jsonl", text)])
            if name.endswith(".zip")
            else text
        )
        write(home / "in" / name, raw)
        lines += 20
    for name in ("_x.jsonl", ".hidden.jsonl", "notes.txt", "c.doc"):
        write(home / "in" / name, b"no catalogue")
    (home / "in" / "dangling.jsonl").symlink_to("nowhere")
    (home / "in" / "loop").symlink_to(".")
    (home / "in" / "self.jsonl").symlink_to("self.jsonl")
    (home / "in" / "is a folder.jsonl").mkdir()
    return prep(draw, draw.choice(["in", "./in/", "in/../in"]), codes=[DONE], lines=[lines])


def plant_journal(draw: Random, data: Path) -> None:
    """A switch of outputs that was interrupted, or so it says, and the files that it would like to have."""
    names = ["../victim.txt", "victim.txt", "sub/victim.txt", "../victim.new", "/etc/hostname.new", *OUTPUTS]
    names += ["..", ".", "", "sub", ESCAPES, "train.jsonl\0", "./victim.txt", "sub/../victim.txt", "../in.jsonl"]
    plan = {key: draw.sample(names[: draw.choice([3, 20])], draw.randrange(4)) for key in ("take", "drop")}
    plan["drop"].append(draw.choice(names[:3]))
    raw = json.dumps(mutated_json(draw, plan, 1) if draw.random() < 0.3 else plan).encode()
    write(data / "switch.json", draw.choice(JUNK) if draw.random() < 0.2 else raw)
    for name in ("victim.txt", "victim.txt.new", "sub/victim.txt"):
        write(data / name, b"precious")


def output_folders(draw: Random, home: Path) -> Case:
    """Whatever stands in the folder of the outputs, the outputs come or the older ones stay, and no more."""
    data, codes = home / "data", {*READ_OR_REFUSED}
    write(home / "in.jsonl", jsonl(draw, 40))
    plant_journal(draw, data)
    how = draw.choice(["journal", "journal", "journal", "folder", "link", "new link", "lock", "journal folder", "file"])
    name = draw.choice(OUTPUTS[:5])
    if how == "journal":
        return prep(draw, "in.jsonl", codes=[DONE], lines=[40])
    (data / "switch.json").unlink()
    if how == "file":
        shutil.rmtree(data)
        write(data, b"precious")
        codes = (USAGE, DISK)
    else:
        place = data / {"new link": f"{name}.new", "lock": ".lock", "journal folder": "switch.json"}.get(how, name)
        place.unlink(missing_ok=True)
        if "folder" in how:
            write(place / "kept.txt", b"precious")
            codes = [USAGE]
        else:
            place.symlink_to(draw.choice(["../victim.txt", "victim.txt", "nowhere", "/dev/full", "."]))
    return prep(draw, "in.jsonl", codes=codes)


def input_names(draw: Random, home: Path) -> Case:
    """Names of inputs that are not there, or are no files."""
    write(home / "in.jsonl", jsonl(draw, 40))
    names = [
        ESCAPES, "\u202egnp.jsonl", b"\xff\xfe.jsonl", "x" * 300, "x/" * 3000, "a\nb.csv", "", " ", "./.",
        "/proc/self/mem",
    ]  # fmt: skip
    names += [
        "*.nothing", "[", "~", "in.jsonl/x", "http://127.0.0.1:1/x.jsonl", "file:///etc/passwd",
        "\\\\host\\x", "nul", "/", "-x", "--",
    ]  # fmt: skip
    name = draw.choice(names[:-3] if draw.random() < 0.9 else ["-x", "--"])
    if name == "./.":  # the folder one is in holds in.jsonl
        return prep(draw, name, codes=[DONE], lines=[40])
    return prep(
        draw,
        *draw.choice([[name], ["in.jsonl", name], [name, "in.jsonl"]]),
        codes=[USAGE] if name != "--" else READ_OR_REFUSED,
    )


def prep_options(draw: Random, home: Path) -> Case:
    write(home / "in.jsonl", jsonl(draw, 60))
    name, what = draw.choice(["--val_share", "--test_share", "--min_content_chars", "--workers"]), draw.random()
    if what < 0.5:
        return prep(draw, "in.jsonl", f"{name}=".encode() + as_bytes(draw.choice(NO_NUMBERS)), codes=[USAGE])
    if what < 0.65:
        value = draw.choice([v for v in ODD_NUMBERS if name != "--workers" or len(v) > 9 or v == "0"])
        return prep(draw, "in.jsonl", f"{name}={value}")
    names = ["--title_field", "--content_field", "--uid_field", "--output_dir", "--nonsense", "--tokenizer"]
    name, value = draw.choice(names), as_bytes(draw.choice([*ARGUMENTS, b"\xff", b"\xed\xa0\x80"]))
    option = name.encode() + b"=" + value
    if name == "--output_dir":
        if b"/" in value:  # would be made, wherever it leads
            value = b"in.jsonl/x"
        return Case("data_prep.py", ["in.jsonl", "--output_dir", b"./" + value], (DONE, USAGE, DISK), to=value)
    codes = {"--uid_field": [DONE], "--tokenizer": (DONE, USAGE, ENVIRONMENT)}.get(name, [USAGE])
    return prep(draw, "in.jsonl", option, codes=codes if value.strip() else READ_OR_REFUSED)


def as_bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def streams(draw: Random, home: Path) -> Case:
    """Standard streams that are closed, as of a service; standard input twice; several inputs of which one is bad."""
    raw = jsonl(draw, 40)
    write(home / "in.jsonl", raw)
    closed = draw.choice([0, 1, 2, None])
    if closed is None:
        return prep(draw, "-", draw.choice(["-", "in.jsonl"]), stdin=raw, codes=READ_OR_REFUSED)
    if closed == 0 and draw.random() < 0.5:
        return prep(draw, "-", codes=[USAGE], closed=0)
    return prep(draw, "in.jsonl", codes=[DONE], lines=[40], closed=closed)


def interrupted(draw: Random, home: Path) -> Case:
    write(home / "in.jsonl", jsonl(draw, 30_000))
    number = draw.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    args = ["in.jsonl", "--output_dir", "data", "--workers", draw.choice("12"), "--no_report"]
    return Case("data_prep.py", args, (INTERRUPTED, DONE), [30_000], signal=number)


# -- the scripts that load torch --------------------------------------------------------------------------------------

TRAIN = [
    "--model", "tiny", "--data", "data", "--output_dir", "runs", "--device", "cpu", "--batch_size", "4",
    "--max_length", "128",
]  # fmt: skip
TRAIN_NUMBERS = (
    "max_length lora_r lora_alpha lora_dropout question_share num_train_epochs max_steps per_device_train_batch_size"
)
TRAIN_NUMBERS += (
    " gradient_accumulation_steps micro_batch_tokens learning_rate warmup_ratio weight_decay max_grad_norm dropout"
)
TRAIN_NUMBERS += " logging_steps eval_steps max_eval_samples save_steps save_total_limit max_skipped_steps"
TRAIN_TEXTS = "template language loss_on lora_target_modules lr_scheduler_type device precision"
TRAIN_TEXTS += " model_name_or_path data_dir run_name"


def train_options(draw: Random, home: Path) -> Case:
    name = draw.choice(TRAIN_NUMBERS.split())
    lora = ["--lora"] if name.startswith("lora") else []
    what = draw.random()
    if what < 0.45:
        value, codes = draw.choice(NO_NUMBERS), [USAGE]
    elif what < 0.7:
        value, codes = draw.choice(ODD_NUMBERS + ["1e-320", "1e300", "0.5"]), (DONE, USAGE, MEMORY_OUT)
    else:
        name, value = (
            draw.choice(TRAIN_TEXTS.split()),
            draw.choice([*ARGUMENTS, b"\xff", "NUL", "a/../b"]),
        )
        lora = ["--lora"] if name.startswith("lora") else []
        codes = (DONE, USAGE, ENVIRONMENT)
    return Case("train.py", [*TRAIN, "--dry_run", *lora, f"--{name}=".encode() + as_bytes(value)], codes)


def recipes(draw: Random, home: Path) -> Case:
    name, codes = (
        draw.choice([*TRAIN_NUMBERS.split(), *TRAIN_TEXTS.split(), "lora", "seed"]),
        (DONE, USAGE, ENVIRONMENT, MEMORY_OUT),
    )
    values = ["nan", "-inf", "1e999", "9" * 400, "-" + "9" * 5000, "0x7fffffffffffffff", "1_0", "true", "[]", "{}"]
    values += ["1979-05-27", "07:32:00", "[[1]]", "1", "3", "0.5", "0", "-1", "1e-320", '""', "'''a\nb'''"]
    values += [json.dumps(ESCAPES), '"\\u202e"', '"\\u0000"', '"' + "x" * 99_999 + '"']
    value = draw.choice(values)
    text = f"{name} = {value}\n"
    what = draw.random()
    if what < 0.15:
        raw, codes = draw.choice([b for b in JUNK if b not in (b"", b"\xef\xbb\xbf")]), [USAGE]
    elif what < 0.3:
        raw, codes = json.dumps({name: 1}).encode(), [USAGE]
    elif what < 0.45:
        raw, codes = f"{json.dumps(draw.choice(HOSTILE_TEXTS))} = {value}\n".encode(), [USAGE]
    elif what < 0.55:
        raw, codes = f"[{name}]\n{text}".encode(), [USAGE]
    elif what < 0.7:
        raw = mutated_bytes(draw, (home / "recipe.toml").read_bytes(), draw.choice([0, 1, 3]))
    else:
        raw = text.encode()
    write(home / "in.toml", raw)
    given = [arg for pair in zip(TRAIN[::2], TRAIN[1::2], strict=True) if pair[0][2:] not in name for arg in pair]
    return Case("train.py", [*given, "--dry_run", "--recipe", "in.toml"], codes)


def rewrite_manifest(folder: Path) -> None:
    """As whoever changes a folder on purpose would."""
    if (folder / "manifest.json").exists():
        files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "manifest.json")
        entries = {
            file.relative_to(folder).as_posix(): {
                "size": file.stat().st_size,
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            }
            for file in files
        }
        write(folder / "manifest.json", json.dumps(entries, ensure_ascii=False, indent=2) + "\n")


def mutate_file(draw: Random, path: Path) -> None:
    raw, what = path.read_bytes(), draw.random()
    if what < 0.12:
        raw = draw.choice(JUNK)
    elif what < 0.25:
        raw = mutated_bytes(draw, raw, draw.choice([1, 10]))
    elif path.suffix == ".json":
        raw = json.dumps(mutated_json(draw, json.loads(raw), draw.choice([1, 1, 3]))).encode()
    elif path.suffix == ".jsonl":
        rows = raw.decode().splitlines()
        at = draw.randrange(len(rows))
        rows[at] = json.dumps(mutated_json(draw, json.loads(rows[at]), 1))
        raw = "\n".join(rows).encode()
    elif path.suffix == ".safetensors":
        size = int.from_bytes(raw[:8], "little")
        header = json.dumps(mutated_json(draw, json.loads(raw[8 : 8 + size]), draw.choice([1, 1, 3]))).encode()
        length = draw.choice([len(header)] * 6 + [0, 2**63, len(header) + 10**8, len(header) - 1])
        raw = length.to_bytes(8, "little") + header + raw[8 + size :]
    else:
        raw = mutated_bytes(draw, raw, 3)
    write(path, raw)


MODEL_FILES = (
    ["config.json"] * 4
    + ["tokenizer.json"] * 3
    + ["model.safetensors"] * 3
    + ["tokenizer_config.json", "generation_config.json"]
)


def model_folders(draw: Random, home: Path) -> Case:
    asked = draw.random() < 0.4
    folder = home / "runs" / "a" / "final" if asked else home / "tiny"
    name = draw.choice(MODEL_FILES)
    if (
        name == "tokenizer.json" and draw.random() < 0.3
    ):  # pieces that are escapes, numbers that the model has no row for
        state = json.loads((folder / name).read_bytes())
        vocabulary = state["model"]["vocab"]
        for piece in draw.sample(sorted(vocabulary), 200):
            vocabulary[draw.choice([ESCAPES, "\x1b", "\u202e", "\x9b"]) + piece] = vocabulary.pop(piece)
        if draw.random() < 0.5:
            vocabulary[draw.choice(sorted(vocabulary))] = draw.choice([400, 10**6, 2**32 - 1])
        write(folder / name, json.dumps(state))
    else:
        mutate_file(draw, folder / name)
    rewrite_manifest(folder)
    if asked:
        args = ["--run", "runs/a", "--title", "blue mug", "--max_new_tokens", "8", "--device", "cpu"]
        return Case("generate.py", args, ANY_MODEL)
    wider = draw.choice([[], [], ["--lora"], ["--template", "hf"]])
    return Case("train.py", [*TRAIN, "--dry_run", *wider], ANY_MODEL)


def tampered_runs(draw: Random, home: Path) -> Case:
    run = home / "runs" / "a"
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoint-3")  # so there is a step to do
    names = ["train_config.json"] * 5 + ["before.json", "metrics.jsonl", "template.json", "lock.json"]
    names += [
        f"checkpoint-2/{name}"
        for name in ("training_state.json", "manifest.json", "config.json", "optimizer.safetensors")
    ]
    name = draw.choice(names)
    if (run / name).exists():
        mutate_file(draw, run / name)
    else:
        write(
            run / name,
            draw.choice([*JUNK, json.dumps({"pid": hostile_value(draw), "started": 1, "host": ESCAPES}).encode()]),
        )
    if name.startswith("checkpoint-2/") and name != "checkpoint-2/manifest.json":
        rewrite_manifest(run / "checkpoint-2")
    what = draw.random()
    if what < 0.6:
        return Case("train.py", ["--resume", "runs/a", "--output_dir", "runs"], (*ANY_MODEL, DISK))
    if what < 0.75:
        return Case("train.py", ["--resume", "--output_dir", "runs", "--dry_run"], ANY_MODEL)
    script = draw.choice(["generate.py", "evaluate.py", "export.py"])
    more = {
        "generate.py": ["--title", "mug", "--max_new_tokens", "4"],
        "evaluate.py": ["--max_samples", "2", "--max_new_tokens", "4"],
    }
    return Case(script, ["--run", "runs/a", *more.get(script, [])], (*ANY_MODEL, DISK))


ASK = ["--run", "runs/a", "--device", "cpu"]
GENERATE_NUMBERS = (
    "sources temperature top_k top_p repetition_penalty no_repeat_ngram_size max_new_tokens num_return_sequences seed"
)


def generate_options(draw: Random, home: Path) -> Case:
    name = draw.choice(GENERATE_NUMBERS.split())
    bad = draw.random() < 0.6
    value = draw.choice(NO_NUMBERS if bad else [*ODD_NUMBERS, "1e-320", "1e-300", "0.5", "99"])
    args = [*ASK, "--title", "blue mug"]
    if name != "max_new_tokens":
        args += ["--max_new_tokens", "4"]
    return Case("generate.py", [*args, f"--{name}=".encode() + as_bytes(value)], [USAGE] if bad else READ_OR_REFUSED)


def titles(draw: Random, home: Path) -> Case:
    odd = [
        "\x1b[2Jmug", "\u202emug", "mug " * 400, "<|endoftext|>", "a\u2028b\u0085c", "\ufeffmug", "-( blue",
        "caneca \0 azul", "𝔪𝔲𝔤 🫖", "%s {title}",
    ]  # fmt: skip
    odd += ["mug " * 250_000] * (draw.random() < 0.3) + ["e" + "\u0301" * 50_000]
    chosen = ["blue mug", *draw.sample(odd, draw.randrange(1, 5)), "red cup"]
    draw.shuffle(chosen)
    args = [*ASK, "--max_new_tokens", "4", *draw.choice([[], ["--greedy"], ["--sources", "2"], ["--grounded"]])]
    what = draw.random()
    if what < 0.5:
        write(home / "titles.txt", draw.choice(["\n", "\n\n", "\r\n"]).join(chosen))
        return Case("generate.py", [*args, "--titles", "titles.txt"], [DONE], answers=len(chosen))
    if what < 0.7:
        return Case(
            "generate.py", args, [DONE], stdin="\n".join(chosen).encode() + draw.choice([b"", b"\n", b"\n\xff\xfe"])
        )
    if what < 0.85:
        some = [as_bytes(title)[:9999] for title in chosen if "\0" not in title] + [
            draw.choice([b"\xff mug", b"\xed\xa0\x80"])
        ]
        return Case("generate.py", [*args, *(b"--title=" + title for title in some)], [DONE])
    write(home / "titles.txt", draw.choice([*JUNK, "caneca é".encode("utf-16"), b"ch\xe1 verde\n"]))
    return Case(
        "generate.py",
        [*args, "--titles", draw.choice(["titles.txt", "data", "nowhere", ESCAPES, b"\xff"])],
        READ_OR_REFUSED,
    )


def catalogues(draw: Random, home: Path) -> Case:
    path, what = home / "data" / "catalogue.sqlite", draw.random()
    if what < 0.3:
        write(path, mutated_bytes(draw, path.read_bytes(), draw.choice([1, 5, 50])))
    elif what < 0.45:
        write(path, draw.choice([*JUNK, b"SQLite format 3\0" + draw.randbytes(5000)]))
    else:
        path.unlink()
        with closing(sqlite3.connect(path)) as base, base:
            values = [None, 7, 1.5, b"\xff\0", ESCAPES, "blue \u202e mug", "mug\n" * 5, "blue mug " * 20_000]
            create = ["VIRTUAL TABLE product USING fts5(uid UNINDEXED, title, content)"] * 6
            create += [
                "TABLE product (uid, title, content)",
                "VIRTUAL TABLE product USING fts5(title)",
                "TABLE other (x)",
            ]
            base.execute("CREATE " + draw.choice(create))
            with suppress(sqlite3.Error):
                for _ in range(9):
                    base.execute("INSERT INTO product VALUES (?, ?, ?)", draw.choices([*values, "blue mug"], k=3))
    if draw.random() < 0.3:
        plant_journal(draw, home / "data")
    how = draw.choice([["--sources", "3"], ["--grounded"], ["--sources", "1000", "--grounded"]])
    return Case(
        "generate.py", [*ASK, "--data", "data", "--title", "blue mug", "--max_new_tokens", "4", *how], READ_OR_REFUSED
    )


def prepared_data(draw: Random, home: Path) -> Case:
    data = home / "data"
    for name in draw.sample(SPLITS, draw.randrange(1, 3)):
        mutate_file(draw, data / name)
    if draw.random() < 0.4:
        write(data / "train.jsonl.index", draw.choice([*JUNK, draw.randbytes(800)]))
    if draw.random() < 0.3:
        plant_journal(draw, data)
    if draw.random() < 0.3:
        return Case(
            "evaluate.py", [*ASK, "--data", "data", "--max_samples", "3", "--max_new_tokens", "4"], (DONE, USAGE)
        )
    return Case("train.py", [*TRAIN, "--max_steps", "1"], (DONE, USAGE))


def names(draw: Random, home: Path) -> Case:
    """Of runs, adapters, folders and files, and runs there that are called so."""
    odd = [
        ESCAPES, "\u202e", "a\nb", b"\xff", "", " ", "..", ".", "/", "x" * 300, "x/" * 3000, "runs/a/final", "data",
        "recipe.toml", "-1", "nowhere",
    ]  # fmt: skip
    name = draw.choice(odd)
    called = draw.choice(["\x1b[31mred\nrun", "\u202enur", "plain"])
    if draw.random() < 0.5:
        write(home / "runs" / called / "train_config.json", (home / "runs/a/train_config.json").read_bytes())
    script, option = draw.choice(
        [(s, o) for s, options in {
            "generate.py": "run adapter base output_dir titles data",
            "evaluate.py": "run output_dir data facts template",
            "export.py": "run adapter base from_bin to output_dir format",
            "train.py": "resume recipe template",
        }.items() for o in options.split()]
    )  # fmt: skip
    more = {
        "generate.py": ["--title", "mug", "--max_new_tokens", "4"],
        "evaluate.py": ["--max_samples", "2", "--max_new_tokens", "4"],
    }
    if script == "export.py" and option == "from_bin":
        more["export.py"] = ["--to", "export"]
    elif script == "export.py" and option == "to":
        name = draw.choice(["runs", "recipe.toml", "recipe.toml/x", "x" * 300, ""])
    if script == "generate.py" and option == "titles":
        more["generate.py"] = []
    if script == "evaluate.py" and option != "facts" and option != "data":
        name = draw.choice(odd[:11])
    common = ["--output_dir", "runs"] if option != "output_dir" else []
    common = [*TRAIN, "--dry_run"] if script == "train.py" else common
    return Case(
        script,
        [*common, *more.get(script, []), f"--{option}=".encode() + as_bytes(name)],
        (DONE, USAGE, ENVIRONMENT, DISK),
    )


# Each generator and its share, in cases of a whole run of 400.
PREPARE: dict[Callable[[Random, Path], Case], int] = {
    json_lines: 26, json_arrays: 18, tables: 28, stray_quotes: 16, broken_tables: 16, encodings: 24, packed: 22,
    other_packings: 14, member_names: 14, bombs: 2, junk: 16, folders: 8, output_folders: 20, input_names: 16,
    prep_options: 26, streams: 6, interrupted: 4,
}  # fmt: skip
WITH_TORCH: dict[Callable[[Random, Path], Case], int] = {
    train_options: 18, recipes: 16, model_folders: 34, tampered_runs: 20, generate_options: 12, titles: 8,
    catalogues: 12, prepared_data: 10, names: 14,
}  # fmt: skip
GENERATORS = PREPARE | WITH_TORCH


# -- a case -----------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    code: int | None  # None: it hung
    out: bytes
    errors: bytes


def snapshot(home: Path) -> dict[str, str]:
    """What stands in a folder, by path: a link's aim, a file's hash."""
    found = {}
    for folder, folders, files in os.walk(home):
        for name in (*folders, *files):
            path = os.path.join(folder, name)  # noqa: PTH118  the names are hostile: no more is done to them than needed
            here = os.path.relpath(path, home)
            if os.path.islink(path):  # noqa: PTH114
                found[here] = "link " + os.readlink(path)  # noqa: PTH115
            elif os.path.isfile(path):  # noqa: PTH113
                with open(path, "rb") as file:  # noqa: PTH123
                    found[here] = hashlib.file_digest(file, "sha1").hexdigest()
            else:
                found[here] = "folder"
    return found


def may_change(path: str, case: Case) -> bool:
    top, _, rest = path.partition("/")
    if top == os.fsdecode(case.to):
        return rest.removesuffix(".new").removesuffix(".index") in (*OUTPUTS, "switch.json", ".lock", "")
    return top in ("runs", "export") and case.script not in ("data_prep.py", "generate.py")


def arguments(case: Case) -> list[bytes]:
    return [as_bytes(arg) for arg in case.args]


def run_process(case: Case, home: Path) -> Outcome:
    """data_prep.py, as a person starts it."""
    command = [sys.executable, str(OPTIONS.tree / case.script), *arguments(case)]
    if case.closed is not None:
        command = ["sh", "-c", f'exec "$@" {case.closed}{"<" if case.closed == 0 else ">"}&-', "sh", *command]
    with (home.parent / "out").open("w+b") as out, (home.parent / "errors").open("w+b") as errors:
        process = subprocess.Popen(
            command, cwd=home, stdin=subprocess.PIPE, stdout=out, stderr=errors, start_new_session=True,
            preexec_fn=lambda: limit(case.script),
        )  # fmt: skip
        with suppress(BrokenPipeError):
            process.stdin.write(case.stdin)
        with suppress(BrokenPipeError):
            process.stdin.close()
        end = time.monotonic() + SECONDS
        while case.signal and process.poll() is None and time.monotonic() < end:
            if (home / "data" / "train.jsonl.new").exists():
                time.sleep(0.05)
                process.send_signal(case.signal)
                break
            time.sleep(0.002)
        try:
            code = process.wait(max(0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
        return outcome(code, out, errors)


def outcome(code: int | None, out, errors) -> Outcome:
    out.seek(0)
    errors.seek(0)
    return Outcome(code, out.read(), errors.read())


def limit(script: str) -> None:
    most = MEMORY.get(script, MEMORY[""])
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run_fork(case: Case, home: Path) -> Outcome:
    """A script that loads torch, in a fork of this process, which has."""
    write(home.parent / "stdin", case.stdin)
    with (
        (home.parent / "stdin").open("rb") as stdin,
        (home.parent / "out").open("w+b") as out,
        (home.parent / "errors").open("w+b") as errors,
    ):
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if not child:
            for number, file in enumerate((stdin, out, errors)):
                os.dup2(file.fileno(), number)
            be_the_script(case, home)
        end, status = time.monotonic() + SECONDS, None
        while time.monotonic() < end and status is None:
            done, raw = os.waitpid(child, os.WNOHANG)
            status = os.waitstatus_to_exitcode(raw) if done else time.sleep(0.01)
        if status is None:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
        return outcome(status, out, errors)


def be_the_script(case: Case, home: Path) -> None:
    """What the interpreter does with a script, from its arguments to its exit code."""
    code = 1
    try:
        os.setsid()
        os.chdir(home)
        limit(case.script)
        sys.argv = [case.script, *map(os.fsdecode, arguments(case))]
        runpy.run_path(str(OPTIONS.tree / case.script), run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(BaseException):
            threading._shutdown()
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def faults(case: Case, home: Path, result: Outcome, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Each property that does not hold, as its name and what was seen."""
    found = []
    out, errors = (stream.decode("utf-8", "replace") for stream in (result.out, result.errors))
    if result.code is None:
        found.append(f"hang: more than {SECONDS} s")
    elif result.code not in case.codes:
        found.append(f"exit code: {result.code}, not {' or '.join(map(str, case.codes))}")
    if "Traceback (most recent call last)" in out + errors:
        found.append(f"traceback: {errors.strip().splitlines()[-1][:200]}")
    for name, raw, text in (("stdout", result.out, out), ("stderr", result.errors, errors.replace("\r", ""))):
        if act := ACTS.search(text):
            found.append(f"control: {act[0]!r} on {name}: {text[max(0, act.start() - 30) : act.end() + 20]!r}")
        if b"\xef\xbf\xbd" not in raw and "\ufffd" in text:
            found.append(f"not UTF-8: on {name}")
    if result.code not in (DONE, None):
        size = len(errors.strip().splitlines())
        if not (size or case.closed == 2) or size > MOST_LINES or len(errors) > MOST_CHARS:
            found.append(f"error text: {size} lines, {len(errors):,} characters: {errors[:80]!r}")
    touched = sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p))
    if outside := [path for path in touched if not may_change(path, case)]:
        found.append(f"touched: {outside[:5]}")
    if case.script == "data_prep.py":
        names = {f"data/{name}" for name in OUTPUTS}
        are_old = not names & set(touched)
        if result.code not in (DONE, INTERRUPTED) and not are_old:
            found.append(f"outputs: failed, and changed {sorted(names & set(touched))}")
        if result.code == DONE or (result.code == INTERRUPTED and not are_old):
            found += wrong_sums(case, home / os.fsdecode(case.to), out)
    elif case.answers is not None and result.code == DONE and len(out.splitlines()) != case.answers:
        found.append(f"answers: {len(out.splitlines())} for {case.answers} titles")
    return found


def wrong_sums(case: Case, data: Path, out: str) -> list[str]:
    try:
        report = json.loads((data / "report.json").read_text(encoding="utf-8"))
        lines, kept, reasons = report["lines"], report["kept"], report["reasons"]
        splits = {name: (data / f"{name}.jsonl").read_bytes().splitlines(keepends=True) for name in kept}
        records = [json.loads(line) for split in splits.values() for line in split]
        rejects = (data / "rejects.jsonl").read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError) as error:
        return [f"outputs: {type(error).__name__}: {error}"]
    found = []
    if lines != sum(kept.values()) + sum(reasons.values()) or kept != {n: len(split) for n, split in splits.items()}:
        found.append(f"sums: {lines} lines, kept {kept}, {reasons}, in the files {[len(s) for s in splits.values()]}")
    if case.lines is not None and lines not in case.lines:
        found.append(f"lines: {lines} read, {' or '.join(map(str, case.lines))} written")
    if case.closed != 1 and not case.signal and not re.search(rf"(?m)^lines read\s+{lines:,} ", out):
        found.append("sums: not the ones that were printed")
    for record in records:
        if not {"uid", "title", "content"} <= set(record) or any(ACTS.search(str(text)) for text in record.values()):
            found.append(f"record: {str(record)[:100]!r}")
            break
    titles_of = [{json.loads(line)["title"].casefold() for line in split} for split in splits.values()]
    if sum(map(len, titles_of)) != len(set().union(*titles_of)):
        found.append("record: a title in two splits")
    if re.search("[\x00-\x08\x0b-\x1f]", rejects):
        found.append("control: in rejects.jsonl")
    return found


# -- all of them ------------------------------------------------------------------------------------------------------


def make_base(base: Path, with_torch: bool) -> None:
    """What the cases change a copy of, made by the scripts: prepared data; a tiny GPT-2 and a run of 3 steps."""
    write(base / "in.jsonl", jsonl(Random(0), 80))
    write(base / "victim.txt", b"precious")
    write(base / "recipe.toml", 'run_name = "r"\nmax_steps = 3\nlearning_rate = 1e-4\nlora = false\n# a comment\n')
    must_work(run_process(Case("data_prep.py", ["in.jsonl", "--output_dir", "data"], [DONE]), base))
    (base / "in.jsonl").unlink()
    if not with_torch:
        return
    import_all()
    child = os.fork()
    if not child:  # the only one that computes before a script does
        try:
            make_model(base)
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("The tiny model cannot be made.")
    steps = ["--run_name", "a", "--max_steps", "3", "--save_steps", "1", "--eval_steps", "1", "--save_total_limit", "3"]
    must_work(run_fork(Case("train.py", [*TRAIN, *steps, "--logging_steps", "1"], [DONE]), base))


def make_model(base: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    from text.bpe import train_bpe

    tokenizer = train_bpe([json_line(record, Random(0)).decode() for record in products(Random(0), 80)], 400)
    logging.disable_progress_bar()
    torch.manual_seed(0)
    shape = {"n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape)).save_pretrained(base / "tiny")
    tokenizer.save_pretrained(base / "tiny")


def must_work(result: Outcome) -> None:
    if result.code:
        raise SystemExit(f"Without any abuse: exit code {result.code}\n{result.errors.decode()}")


def import_all() -> None:
    """The scripts and what they load, in the order of a script: its streams are taken over before torch is there."""
    sys.path.insert(0, str(OPTIONS.tree))
    with suppress(ImportError):  # an older checkout
        from run.terminal import take_over_streams

        take_over_streams()
    for name in ("train", "generate", "evaluate", "export", "torch._dynamo", "transformers.models.gpt2.modeling_gpt2"):
        importlib.import_module(name)
    importlib.import_module("transformers.models.auto.tokenization_auto")


def one_case(generator: Callable, number: int, base: Path, place: Path) -> tuple[Case, Outcome, list[str]]:
    draw = Random(f"{OPTIONS.seed} {generator.__name__} {number}")
    home = place / "home"
    if generator in WITH_TORCH:
        shutil.copytree(base, home, copy_function=os.link)
    elif draw.random() < 0.5:
        shutil.copytree(base / "data", home / "data", copy_function=os.link)
    write(home / "victim.txt", b"precious")
    case = generator(draw, home)
    before = snapshot(home)
    result = (run_fork if case.script != "data_prep.py" else run_process)(case, home)
    return case, result, faults(case, home, result, before, snapshot(home))


def chosen(only: str | None, count: int) -> list[tuple[Callable, int]]:
    name, _, number = (only or "").partition(":")
    if only and name not in [generator.__name__ for generator in GENERATORS]:
        raise SystemExit(f"There is no generator {name}; there are {', '.join(g.__name__ for g in GENERATORS)}.")
    share = count / sum(GENERATORS.values())
    return [
        (generator, i)
        for generator, weight in GENERATORS.items()
        if name in ("", generator.__name__)
        for i in ([int(number)] if number else range(max(1, round(weight * share))))
    ]


def main() -> None:
    if not hasattr(os, "fork"):
        raise SystemExit("This runs the scripts in forks of itself: on Windows run it in WSL.")
    cases, begun = chosen(OPTIONS.only, OPTIONS.count), time.monotonic()
    # No TemporaryDirectory: it would go with the first fork that ends.
    kept = Path(tempfile.mkdtemp(prefix="abuse-"))
    scratch = kept / "scratch"
    try:
        every_case_held = abuse(cases, kept, scratch)
    finally:
        shutil.rmtree(scratch)
    print(
        f"{(time.monotonic() - begun) / 60:.1f} minutes", "" if every_case_held else f"; the failures: {kept}", sep=""
    )
    if every_case_held:
        kept.rmdir()
    raise SystemExit(not every_case_held)


def abuse(cases: list[tuple[Callable, int]], kept: Path, scratch: Path) -> bool:
    """Run `cases` in `scratch`, moving those that fail to `kept`; print them and a table. Whether none failed."""
    for name, folder in (("HOME", "user"), ("TMPDIR", "tmp")):  # what is left there is looked at in the end
        (scratch / folder).mkdir(parents=True)
        os.environ[name] = str(scratch / folder)
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    base = scratch / "base" / "home"
    make_base(base, with_torch=any(generator in WITH_TORCH for generator, _ in cases))
    whole = snapshot(base)
    print(f"{len(cases)} cases with seed {OPTIONS.seed}, of {OPTIONS.tree}", flush=True)
    codes, failed, seconds, properties = defaultdict(Counter), Counter(), Counter(), Counter()
    for generator, number in cases:
        name, place, start = generator.__name__, scratch / "case", time.monotonic()
        case, result, wrong = one_case(generator, number, base, place)
        codes[name][result.code] += 1
        seconds[name] += time.monotonic() - start
        if wrong:
            failed[name] += 1
            properties.update({fault.partition(":")[0] for fault in wrong})
            to = kept / f"{name}-{number}"
            shutil.move(place, to)
            command = f"cd {to}/home; python {OPTIONS.tree}/{case.script} {shown(case)}"
            write(to / "command.txt", command + "\n\n" + "\n".join(wrong) + "\n")
            print(f"\n{name}:{number} (--seed {OPTIONS.seed} --only {name}:{number})  {case.script} {shown(case)}")
            print("\n".join(f"    {fault}" for fault in wrong), flush=True)
        shutil.rmtree(place, ignore_errors=True)
    left = [str(path.relative_to(scratch)) for folder in ("user", "tmp") for path in (scratch / folder).rglob("*")]
    spoiled = [path for path, content in snapshot(base).items() if whole.get(path) != content]
    print(f"\n{'generator':<18}{'cases':>6}{'failed':>8}{'s each':>8}   exit codes")
    for name, seen in codes.items():
        said = ", ".join(f"{code}: {count}" for code, count in sorted(seen.items(), key=str))
        each = seconds[name] / seen.total()
        print(f"{name:<18}{seen.total():>6}{failed[name] or '':>8}{each:>8.2f}   {said}")
    by_property = "".join(f"; {name} {count}" for name, count in properties.most_common())
    print(f"\n{failed.total()} of {len(cases)} cases failed{by_property}")
    if spoiled or left:
        print(f"changed in place: {spoiled[:5]}; left among temporary files and in the home folder: {left[:5]}")
    return not failed and not spoiled


def shown(case: Case) -> str:
    words = []
    for arg in arguments(case):
        text = arg.decode("utf-8", "backslashreplace")
        words.append(ascii(text)[:80] if not text.isprintable() or " " in text or not text else text[:80])
    return " ".join(words)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--only", metavar="NAME[:NUMBER]")
    parser.add_argument("--tree", type=Path, default=Path(__file__).parent.parent)
    OPTIONS = parser.parse_args()
    OPTIONS.tree = OPTIONS.tree.resolve()
    main()
