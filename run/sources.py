"""The products of the catalogue that an answer can be checked against, or is taken from."""

from pathlib import Path

from catalogue.claims import Claims
from catalogue.index import FILE_NAME, Catalogue, Product
from run.sayings import SAID
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

    def show(self, products: list[Product], said: dict[str, str] = SAID["en"]) -> None:
        if not self.count:
            return
        if not products:
            print(f"  {said['no source']}")
        for number, product in enumerate(products[: self.count], start=1):
            print(f"  [{number}] {product.uid}  {product.title}  ({said['matched']}: {', '.join(product.matched)})")

    def switch(self, count: int | None) -> None:
        """List so many products; None: list some, or none any more. Raises `DataError` when there is no catalogue."""
        self._catalogue = self._catalogue or Catalogue(self.folder)
        self.count = count if count is not None else 0 if self.count else 3
