"""What the local page can ask for, without the web around it: answers, tables, and corrections that are kept."""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event
from uuid import uuid4

from catalogue.corrections import VERDICTS
from catalogue.fields import attribute_name
from run.answers import Answers, entries_of
from run.candidates import Prompt, Writer
from run.cli import UsageError, check_number
from run.device import Machine
from run.sayings import PAGE
from run.sources import Sources
from run.terminal import ACTING
from run.titles import read_titles, title_of
from text.errors import DataError
from text.stream import Record, given

MOST_CHARS = 2000  # of a title or a value; of an answer or its correction ten times as many
MOST_ATTRIBUTES = 30
MOST_CANDIDATES = 16
SOURCES = 3  # products beside an answer, unless told
MOST_TITLES = 500  # of a table; longer ones are for --titles, which can be stopped


class Refused(ValueError):
    """A request that gets a sentence instead of an answer."""

    def __init__(self, what: str, *values, status: int = 400):
        """`what`: of PAGE, with its `values`."""
        super().__init__(what)
        self.what, self.values, self.status = what, values, status

    def said(self, speech: str) -> str:
        return PAGE[speech][self.what].format(*self.values)


class Desk:
    """A model, the one before it, the catalogue, and the file of corrections."""

    def __init__(
        self,
        writer: Writer,
        base: Callable[[], Writer],
        sources: Sources,
        machine: Machine,
        file: Path,
        strict: bool = False,
    ):
        """`base` loads the model as it was before training, on the first wish; corrections go to `file`. `strict`:
        tables get no answer that states what nothing supports."""
        self._writers: dict[str, Writer | None] = {"after": writer, "before": None}
        self._base, self._strict = base, strict
        self.stop = Event()  # once it is set, whatever is being written ends
        self._heed_stop(writer)
        sources.count = sources.count or SOURCES
        self._sources, self._machine, self.file = sources, machine, file

    def _heed_stop(self, writer: Writer) -> None:
        def look(*_) -> None:
            if self.stop.is_set():
                raise Refused("no more", status=503)

        writer.model.get_input_embeddings().register_forward_pre_hook(look)  # at every token

    def answer(self, asked: dict) -> dict:
        """{title, attributes, candidates, temperature, which}: candidates, the fewest unsupported first."""
        record, which = record_of(asked), asked.get("which", "after")
        if which not in list(self._writers):  # a list or an object has no hash
            raise Refused("not understood", "which is before or after.")
        count = number_of(asked, "candidates", 4, 1, MOST_CANDIDATES)
        temperature = number_of(asked, "temperature", 0.7, 0, 2)
        if self._writers[which] is None:
            try:
                self._writers[which] = self._base()
                self._heed_stop(self._writers[which])
            except Exception as error:  # no memory for it, no network: the page goes on without
                print(error, file=sys.stderr)
                raise Refused("no base", status=503) from None
        writer = self._writers[which]
        greedy = temperature < 0.01  # smaller ones overflow
        sampling = replace(writer.sampling, greedy=greedy, temperature=temperature or 1.0)
        writer = replace(writer, sampling=sampling, candidates=1)
        products = self._sources.nearest(record)
        context = self._sources.context(products)
        (prompt,) = writer.encoder.prompts(
            [writer.encoder.template.asked(self._sources.as_taught(record))], [context], writer.window
        )
        if len(prompt) >= writer.window:
            raise Refused("too long for the model")
        copies = range(1 if greedy else int(count))
        with self._machine.autocast():
            prompts = [Prompt(prompt, [given(record), context], number) for number in copies]
            written = list(replace(writer, rows=len(copies)).write(prompts))
        candidates = [
            {"text": shown(w.text), "unsupported": [[c.start, c.start + len(c.text)] for c in w.unsupported]}
            for w in sorted(written, key=lambda w: len(w.unsupported))
        ]
        found = [{"uid": shown(p.uid), "title": shown(p.title), "matched": list(p.matched)} for p in products]
        taught = bool(products) or writer.claims is None
        return {"record": record, "candidates": candidates, "sources": found, "taught": taught}

    def table(self, name: str, body: bytes) -> bytes:
        """The table with its descriptions filled in, as CSV."""
        with tempfile.TemporaryDirectory() as folder:
            file, out = Path(folder) / f"table{Path(name).suffix.lower()[:8]}", Path(folder) / "out.csv"
            try:
                file.write_bytes(body)
                titles = read_titles(file, most=MOST_TITLES)
            except (UsageError, DataError, OSError, ValueError) as error:
                print(error, file=sys.stderr)
                raise Refused("no table") from None
            if not 0 < len(titles.asked) <= MOST_TITLES:
                raise Refused("too many titles", MOST_TITLES)
            records = [title.record(self._sources.attributes, {}) for title in titles.asked]
            numbered = list(zip(range(len(records)), titles.asked, records, strict=True))
            answers = Answers(out, titles, {})
            with self._machine.autocast():
                for entry in entries_of(self._writers["after"], numbered, self._sources, self._strict):
                    answers.add(entry)
            answers.finish(copies=1)
            return out.read_bytes()

    def verdict(self, given_: dict) -> dict:
        """Append a correction, as `catalogue.corrections` reads it. What is rejected has an empty content."""
        record, verdict = record_of(given_), given_.get("verdict")
        if verdict not in VERDICTS:
            raise Refused("not understood", "verdict is accept, edit or reject.")
        answer, text = (text_of(given_, key, MOST_CHARS * 10) for key in ("answer", "text"))
        content = {"accept": answer, "edit": text, "reject": ""}[verdict]
        if verdict != "reject" and not content:
            raise Refused("no text")
        line = {"uid": f"correction-{uuid4().hex}"} | record | {"content": content}
        line |= {"correction": verdict, "proposed": answer}
        with self.file.open("ab") as file:  # one write: a line is whole or absent
            file.write(json.dumps(line, ensure_ascii=False).encode("utf-8") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return {"saved": verdict}


def shown(text: str) -> str:
    """With a mark for each control and each lone surrogate; places in it stay."""
    return ACTING.sub("\ufffd", text)


def text_of(asked: dict, key: str, most: int = MOST_CHARS) -> str:
    text = asked.get(key, "")
    if not isinstance(text, str):
        raise Refused("not understood", f"{key} is no text.")
    if len(text) > most:
        raise Refused("too long", key, most, status=413)
    return text.encode("utf-8", "replace").decode("utf-8").strip()  # lone surrogates cannot be written


def number_of(asked: dict, key: str, default: float, least: float, most: float) -> float:
    value = asked.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused("not understood", f"{key} is no number.")
    try:
        check_number(value, key, least, most)
    except UsageError as error:
        raise Refused("not understood", error) from None
    return value


def record_of(asked: dict) -> Record:
    if not isinstance(asked, dict):
        raise Refused("not understood", "This is no JSON object.")
    if not (title := title_of(text_of(asked, "title"))):
        raise Refused("no title")
    values = asked.get("attributes", {})
    if not isinstance(values, dict) or len(values) > MOST_ATTRIBUTES:
        raise Refused("not understood", f"attributes are at most {MOST_ATTRIBUTES} names with their values.")
    named = {attribute_name(name[:100]): text_of(values, name) for name in values}
    attributes = {name: value for name, value in named.items() if name and value}
    return {"title": title} | ({"attributes": attributes} if attributes else {})
