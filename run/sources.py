"""The products of the catalogue that an answer can be checked against, or is taken from."""

import argparse
from pathlib import Path

from catalogue.claims import Claims
from catalogue.index import FILE_NAME, Catalogue, Product
from run.cli import integer
from text.errors import DataError
from text.stream import Record, given


class Sources:
    """What of the catalogue is shown under an answer, and what of it is put before a prompt."""

    def __init__(self, folder: Path, count: int, grounded: bool):
        """`count` products are listed, 0: none. Raises DataError when a catalogue is needed and there is none."""
        self.folder, self.count, self.grounded = folder, count, grounded
        self._catalogue = Catalogue(folder) if count or grounded or (folder / FILE_NAME).is_file() else None

    def claims(self) -> Claims | None:
        """What judges answers; None without a catalogue."""
        return Claims(self._catalogue) if self._catalogue else None

    @property
    def attributes(self) -> set[str]:
        """Names of those that products of the catalogue have."""
        return self._catalogue.attributes if self._catalogue else set()

    def as_taught(self, record: Record) -> Record:
        """How a model is asked: by a title in capitals in small letters, unless the catalogue has such titles. In
        capitals a word is other tokens, and who never saw them answers nonsense."""
        in_capitals = self._catalogue and record["title"].isupper() and not self._catalogue.has_capitals
        return record | {"title": record["title"].lower()} if in_capitals else record

    def nearest(self, record: Record) -> list[Product]:
        """As many as are listed, and at least one: without any, nothing resembles this product."""
        return self._catalogue.nearest(given(record), max(self.count, 1)) if self._catalogue else []

    def context(self, products: list[Product]) -> str:
        """What is put before the prompt, "" for nothing."""
        return products[0].content if self.grounded and products else ""

    def grounding(self, products: list[Product]) -> str:
        """What is said of that, "" for nothing."""
        return f"grounded on {products[0].uid}: {products[0].title}" if self.grounded and products else ""

    def show(self, products: list[Product]) -> None:
        if not self.count:
            return
        if not products:
            print("  This answer has no source: nothing in the catalogue matches.")
        for number, product in enumerate(products[: self.count], start=1):
            print(f"  [{number}] {product.uid}  {product.title}  (matched: {', '.join(product.matched)})")

    def switch(self, count: str) -> str:
        """Turn the list on or off, or set its length; returns what to say."""
        try:
            wanted = integer(0, most=1000)(count) if count else 0 if self.count else 3
        except (ValueError, argparse.ArgumentTypeError):
            return "/sources turns the list of sources on and off, /sources 5 makes it five products long."
        try:
            self._catalogue = self._catalogue or Catalogue(self.folder)
        except DataError as error:
            return str(error)
        self.count = int(wanted)
        return f"Sources: the {self.count} nearest products." if self.count else "Sources: off."
