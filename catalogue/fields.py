"""Which fields of a source are the title, the content and the uid of a record."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

# Names as they look after `_plain`, the most certain first. A pair stands for both fields or for none.
PAIRS = (("instruction", "output"), ("prompt", "completion"))
TITLES = ("title", "name", "product_name", "product_title", "titulo", "nome", "nome_do_produto", "item_name")
CONTENTS = (
    "content",
    "description",
    "long_description",
    "product_description",
    "body_html",
    "body",
    "descricao",
    "descricao_completa",
)
UIDS = ("uid", "id", "asin", "sku", "handle", "codigo")


@dataclass(frozen=True)
class Fields:
    """The names of the three fields as the source spells them; None where it has, or the user named, none."""

    title: str | None = None
    content: str | None = None
    uid: str | None = None

    @property
    def found(self) -> int:
        """How many of title and content are known."""
        return (self.title is not None) + (self.content is not None)


def choose_fields(names: Iterable[str], given: Fields = Fields()) -> Fields:
    """The fields of a source whose records have `names`; those in `given` go before any other."""
    names = list(dict.fromkeys(names))
    by_plain = {_plain(name): name for name in reversed(names)}  # of two that look alike the first

    def first(wanted: Iterable[str]) -> str | None:
        return next((by_plain[name] for name in wanted if name in by_plain), None)

    def named(name: str) -> str | None:
        return name if name in names else by_plain.get(_plain(name))

    title, content = first(TITLES), first(CONTENTS)
    if title is None or content is None:
        for pair in PAIRS:
            if all(name in by_plain for name in pair):
                title, content = (by_plain[name] for name in pair)
                break
    return Fields(
        title=named(given.title) if given.title else title,
        content=named(given.content) if given.content else content,
        uid=named(given.uid) if given.uid else first(UIDS),
    )


def describe(fields: Fields, names: Iterable[str]) -> str:
    """The choice in words, with the next thing to try where a field was not found."""
    names = list(dict.fromkeys(map(printable, names)))
    parts = [f'{what} from "{printable(name)}"' for what, name in _items(fields) if name is not None]
    missing = [what for what, name in _items(fields)[:2] if name is None]
    if missing:
        known = ", ".join(f'"{name}"' for name in names[:12]) or "none"
        options = " and ".join(f"--{what}_field NAME" for what in missing)
        parts.append(f"no field for the {' and the '.join(missing)} among {known}: name it with {options}")
    elif fields.uid is None:
        parts.append("uid is the number of the line")
    if any("\\udc" in name for name in names):
        parts.append("the names are not UTF-8: try --encoding cp1252")
    return ", ".join(parts)


def printable(text: str) -> str:
    """`text` with escapes for what UTF-8 cannot encode: bytes of another encoding, lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _items(fields: Fields) -> list[tuple[str, str | None]]:
    return [("title", fields.title), ("content", fields.content), ("uid", fields.uid)]


def _plain(name: str) -> str:
    """'Descrição' -> 'descricao', 'Body (HTML)' -> 'body_html', 'product-name' -> 'product_name'."""
    letters = unicodedata.normalize("NFD", name.casefold())
    words = "".join(c if c.isalnum() else " " for c in letters if not unicodedata.combining(c)).split()
    return "_".join(words)
