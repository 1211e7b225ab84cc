"""The files of all inputs, opened: what each was taken for, which of its fields are wanted, its records in blocks."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from catalogue.clean import clean
from catalogue.fields import AUTO, Fields, choose_fields, describe, one_line, repeated_fields
from catalogue.judge import Block, Options, as_text, fields_of
from catalogue.layout import read_layout
from catalogue.records import MAX_RECORD_BYTES, Layout, Raw, TooLong
from catalogue.sources import Source, files_in, find_sources

BLOCK_BYTES, BLOCK_RECORDS = 1 << 18, 2_000  # a block, what a worker gets at a time, is full at either
FIELDS_SAMPLE = 200  # records of a block that are looked at to choose the fields; all of it when they are not there
MOST_NAMES = 1_000
SHOWN_RECORDS, SHOWN_CHARS = 3, 100


@dataclass
class Input:
    """One file that is read."""

    place: Source
    layout: Layout
    names: list[str]  # of the fields, as far as they were looked at
    fields: Fields
    given: Fields  # by the user
    repeated: tuple[str, ...] | None = None  # fields whose values the descriptions repeat; None: not looked at yet

    def look_at(self, records: list[Raw]) -> bool:
        """Whether fields wanted, or given, were found among the names in `records`; a table has its names already."""
        before = self.fields.found
        for sample in (records[:FIELDS_SAMPLE], records):
            if self.layout.header is None and self.fields.found < 2:
                keys = [key for source in self._parsed(sample) for key in source]
                self.names = list(dict.fromkeys([*self.names, *keys]))[:MOST_NAMES]
                self.fields = choose_fields(self.names, self.given)
        if self.repeated is None and self.fields.found == 2:
            texts = ({name: as_text(value) for name, value in s.items()} for s in self._parsed(records[:FIELDS_SAMPLE]))
            self.repeated = repeated_fields(texts, self.fields)
            if AUTO in self.given.attributes:
                self.fields = replace(self.fields, attributes=self.fields.attributes + self.repeated)
        return self.fields.found > before

    def _parsed(self, records: list[Raw]) -> Iterator[dict]:
        sources = (fields_of(raw, self.layout.header)[0] for raw in records)
        return (source for source in sources if isinstance(source, dict))

    @property
    def choice(self) -> str:
        """Which fields are taken, in words."""
        return describe(self.fields, self.names, self.repeated or ())

    def __str__(self) -> str:
        return f"{self.place}: {self.layout.what}; {self.choice}"


def open_inputs(sources: list[Source], options: Options, progress: Callable, say: Callable) -> Iterator[Input]:
    """The files of all `sources`; each must be read before the next one is asked for. Raises DataError."""
    for source in sources:
        for place, file in files_in(source, progress, say):
            layout = read_layout(file, place, options.fields, options.encoding, options.sheet)
            names = list(layout.header or ())
            yield Input(place, layout, names, choose_fields(names, options.fields), options.fields)


def blocks_of(
    sources: list[Source], options: Options, files: list[Input], progress: Callable, say: Callable
) -> Iterator[Block]:
    """The raw records of all `sources`, in order. What is opened is added to `files`, and said."""
    before = 0
    for file in open_inputs(sources, options, progress, say):
        files.append(file)
        number = file.layout.first
        while block := _next_block(file.layout.records):
            if file.look_at(block) or number == file.layout.first:
                say(str(file))
            yield Block(file.place, file.layout.header, file.fields, number, before, block)
            number, before = number + len(block), before + len(block)
        if number == file.layout.first:
            say(f"{file.place}: {file.layout.what}; without a record")


def _next_block(records: Iterator[Raw]) -> list[Raw]:
    block, size = [], 0
    for raw in islice(records, BLOCK_RECORDS):
        length = len(raw) if isinstance(raw, bytes) else sum(len(str(cell)) for cell in _cells(raw))
        block.append(raw if length <= MAX_RECORD_BYTES else TooLong())
        size += length
        if size >= BLOCK_BYTES:
            break
    return block


def _cells(raw: list | dict) -> Iterable:
    return raw.values() if isinstance(raw, dict) else raw


def described(inputs: list[Path], options: Options) -> Iterator[str]:
    """Lines for the screen: of each file its format and encoding, its fields, its first records. Raises DataError."""
    said: list[str] = []
    for file in open_inputs(find_sources(inputs, say=said.append), options, lambda count: None, said.append):
        records = _next_block(file.layout.records)
        file.look_at(records)
        yield from said
        said.clear()
        yield str(file.place)
        yield f"  {file.layout.what}"
        yield f"  fields: {', '.join(map(one_line, file.names)) or 'none'}"
        yield f"  {file.choice}"
        for number, raw in enumerate(records[:SHOWN_RECORDS], file.layout.first):
            source, as_cp1252 = fields_of(raw, file.layout.header)
            yield f"  record {number}{': read as cp1252' if as_cp1252 else ''}"
            named = source.items() if isinstance(source, dict) else [("left out", source)]
            yield from (f"    {one_line(name)}: {_shown(value)}" for name, value in named if value not in ("", None))
    yield from said


def _shown(value: object) -> str:
    text = clean(value) if isinstance(value, str) else one_line(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]} ..."
