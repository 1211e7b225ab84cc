"""The answers to many titles: written as fast as a full batch goes, given in order, kept whatever ends the work."""

import csv
import hashlib
import html
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from catalogue.claims import Claim
from catalogue.fields import printable
from catalogue.outputs import sync
from run.candidates import NOTHING, Prompt, Writer, Written
from run.cli import UsageError
from run.sayings import NOT_TAUGHT, SAID
from run.sources import Sources
from run.terminal import one_line
from run.terminal import printable as without_controls
from run.titles import Asked, Titles, check_out
from text.stream import Record, given

ADDED = ("unsupported", "note")  # columns
TOO_LONG, UNSUPPORTED = "longer than what the model sees", "states what nothing supports"  # kinds of faults
EXCEL_CELL = 32_767  # characters
SAVED_EVERY = 20  # answers: what a power failure takes; a program that is killed loses none


def entries_of(
    writer: Writer, asked: list[tuple[int, Asked, Record]], sources: Sources, strict: bool
) -> Iterator[dict]:
    """Of each of `asked` (the number of its answer, title, record) what is known of its answer, in order.

    One that the model cannot take has none, a `fault`, which tells its kind, and an `error`, which tells it of this
    title; `strict`: so has one whose answers all state what nothing supports.
    """
    found = {}

    def prompts() -> Iterator[Prompt]:
        for number, title, record in asked:
            if not title.fault:
                products = sources.nearest(record)
                context, question = sources.context(products), writer.encoder.template.asked(sources.as_taught(record))
                (ids,) = writer.encoder.prompts([question], [context], writer.window)
                found[number] = products
                yield Prompt(ids, [given(record), context], number)

    written = writer.write(prompts())
    for number, title, record in asked:
        answer = next(written) if not title.fault else NOTHING
        products = found.pop(number, [])
        entry = {**record, "answer": answer.text, "stopped": answer.stopped}
        if writer.claims:
            entry["unsupported"] = [claim._asdict() for claim in answer.unsupported]
        if title.fault:
            entry |= {"fault": title.fault, "error": f"No answer: {title.fault}."}
        elif answer is NOTHING:
            entry |= {"fault": TOO_LONG, "error": too_long(record["title"], writer.window)}
        elif strict and answer.unsupported:
            entry |= {"answer": "", "fault": UNSUPPORTED, "error": left_out_for(record["title"], answer)}
        elif note := NOT_TAUGHT if writer.claims and not products else sources.grounding(products):
            entry["note"] = note
        if sources.count and not title.fault:
            entry["sources"] = [
                {"uid": p.uid, "title": p.title, "matched": p.matched} for p in products[: sources.count]
            ]
        if sources.grounded and not title.fault:
            entry["grounded_on"] = products[0].uid if products else None
        yield entry


def left_out_for(title: str, answer: Written) -> str:
    words = ", ".join(dict.fromkeys(claim.text for claim in answer.unsupported))
    return one_line(f"No answer for {title[:60]}: every try {UNSUPPORTED} ({words}).")


def too_long(title: str, window: int) -> str:
    return f"No answer: longer than the {window:,} tokens that the model sees: {one_line(title[:60])} ..."


def account(entries: list[dict]) -> str:
    """How many titles got an answer, and why others got none."""
    faults = Counter(entry["fault"] for entry in entries if "fault" in entry)
    parts = [f"{len(entries) - faults.total():,} answered"]
    parts += [f"{count:,} without an answer ({fault})" for fault, count in faults.items()]
    return f"{len(entries):,} titles: {', '.join(parts)}."


class Answers:
    """The answers of one file, line by line in `FILE.part` until all of them are there, then `FILE`.

    Started again, the same command goes on behind the last whole line. Raises `UsageError` when FILE is there already,
    when another program writes it, or when the part was begun with other titles or options.
    """

    def __init__(self, path: Path, titles: Titles, asked_with: dict, same_columns: bool = False):
        """`asked_with`: what decides the answers, by name."""
        self.path, self.titles, self.same_columns = path, titles, same_columns
        self.part = path.with_name(f"{path.name}.part")
        check_out(path)
        rows = json.dumps(titles.asked, ensure_ascii=True).encode()
        self._head = {"titles": hashlib.sha256(rows).hexdigest(), **asked_with}
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            self._lock.acquire(blocking=False)
            self.entries = self._read()
            self._file = self.part.open("a", encoding="utf-8", newline="\n")
        except Timeout:
            raise UsageError(f"Another program writes {path} just now. Wait for it, or name another --out.") from None
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from None
        if not self.entries:
            self._file.truncate(0)
            self._write(self._head)

    def _read(self) -> list[dict]:
        """The entries that are there; what an interruption left of a line goes."""
        if not self.part.exists():
            return []
        whole, _, torn = self.part.read_bytes().rpartition(b"\n")
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            if not all(isinstance(line, dict) for line in lines):
                raise ValueError("a line is no object")
        except ValueError:
            raise UsageError(f"{self.part} is damaged: remove it, or name another --out.") from None
        if torn:
            with self.part.open("r+b") as file:
                file.truncate(len(whole) + 1 if whole else 0)
        if not lines:
            return []
        if changed := [name for name in self._head if lines[0].get(name) != self._head[name]]:
            raise UsageError(
                f"{self.part} was begun with other {', '.join(changed)}: give the same again, remove it, or name "
                "another --out."
            )
        return lines[1:]

    def add(self, entry: dict) -> None:
        self.entries.append(entry)
        self._write(entry)
        if len(self.entries) % SAVED_EVERY == 0:
            sync(self.part)

    def _write(self, value: dict) -> None:
        self._file.write(json.dumps(value, ensure_ascii=True) + "\n")
        self._file.flush()

    def finish(self, copies: int) -> None:
        """All answers are there, `copies` to each title: they become the file."""
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        kind = self.path.suffix.lower()
        if kind == ".jsonl":
            lines = (json.dumps(entry, ensure_ascii=False) for entry in self.entries)
            temporary.write_text("".join(f"{printable(line)}\n" for line in lines), encoding="utf-8", newline="\n")
        else:
            (write_sheet if kind == ".xlsx" else self._write_table)(temporary, self._table(copies))
        sync(temporary)
        temporary.replace(self.path)
        self._file.close()
        self.part.unlink()
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def _table(self, copies: int) -> list[list[str]]:
        """The rows of the titles with the description filled in, the names of the columns first."""
        content, columns = self.titles.content or "description", self.titles.columns
        added = [name if name not in columns else f"{name} (vitrine)" for name in ADDED]
        header = list(dict.fromkeys([*columns, content, *(() if self.same_columns else added)]))
        rows = [header]
        for number, entry in enumerate(self.entries):
            asked = self.titles.asked[number // copies]
            unsupported = "; ".join(dict.fromkeys(claim["text"] for claim in entry.get("unsupported", [])))
            row = asked.row or {"title": asked.title}
            row = row | dict(zip(added, (unsupported, entry.get("error", entry.get("note", ""))), strict=True))
            if entry["answer"]:  # else what stood there stays
                is_html = "html" in content.lower()  # Shopify's column
                row[content] = html.escape(entry["answer"], quote=False) if is_html else entry["answer"]
            rows.append([printable(row.get(name, "")) for name in header])
        return rows

    def _write_table(self, path: Path, rows: list[list[str]]) -> None:
        # Excel takes a CSV file for UTF-8 when it begins with the mark; a shop may take the mark for a name.
        encoding = "utf-8" if self.same_columns else "utf-8-sig"
        with path.open("w", encoding=encoding, newline="") as file:
            csv.writer(file, delimiter=self.titles.delimiter).writerows(rows)


def write_sheet(path: Path, rows: list[list[str]]) -> None:
    """Every cell is a text: one that begins with = is no formula."""
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell

    book = Workbook(write_only=True)
    sheet = book.create_sheet("products")
    for row in rows:
        cells = [WriteOnlyCell(sheet, without_controls(value, keep="\n\t")[:EXCEL_CELL]) for value in row]
        for cell in cells:
            cell.data_type = "s"
        sheet.append(cells)
    with path.open("wb") as file:
        book.save(file)


def show(answer: Written, sentence: str = SAID["en"]["unsupported"]) -> None:
    """On a line of its own, unsupported words underlined; where that cannot be seen, `sentence` names them."""
    if answer.unsupported and getattr(sys.stdout, "can_mark", False):
        spans = [(claim.start, claim.start + len(claim.text)) for claim in answer.unsupported]
        return sys.stdout.write_marked(  # type: ignore[union-attr]  # a Terminal
            answer.text.replace("\n", " ") + "\n", spans
        )
    print(" ".join(answer.text.split()))
    say_unsupported(answer.unsupported, sentence)


def say_unsupported(claims: list[Claim], sentence: str) -> None:
    if claims:
        print(sentence.format(", ".join(dict.fromkeys(claim.text for claim in claims))), file=sys.stderr)


def progress(entries: Iterator[dict], done: int, total: int) -> tqdm:
    """`entries`, with a bar on a terminal: rate and time that is left."""
    return tqdm(entries, desc="answering", initial=done, total=total, leave=False, disable=None, unit=" titles")
