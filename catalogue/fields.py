"""Which fields of a source are the title, the content and the uid of a record."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from catalogue.corrections import KEYS

# Names as they look after `_plain`, the most certain first.
NAMES = {
    "title": "title name product_name product_title titulo nome nome_do_produto item_name",
    "content": "content description long_description product_description body_html body descricao descricao_completa "
    "summary",
    "uid": "uid id asin sku handle codigo",
}
SAMPLE_ROWS = 20  # of a table, among which its header is
AUTO = "auto"  # of the attributes: those fields whose values the descriptions repeat
REPEATED, FEWEST_REPEATED = 0.5, 3  # share and number of a field's values that stand in their descriptions
MOST_ATTRIBUTE_CHARS = 100  # a longer value is a text and no fact
# A pair stands for both fields or for none.
PAIRS = ({"title": "instruction", "content": "output"}, {"title": "prompt", "content": "completion"})


@dataclass(frozen=True)
class Fields:
    """The names of the fields as the source spells them; None where it has, or the user named, none."""

    title: str | None = None
    content: str | None = None
    uid: str | None = None
    attributes: tuple[str, ...] = ()  # named as the user did; of a source, those that it has, as it spells them

    @property
    def found(self) -> int:
        """How many of title and content are known."""
        return (self.title is not None) + (self.content is not None)


def choose_fields(names: Sequence[str], given: Fields = Fields()) -> Fields:
    """The fields of a source whose records have `names`; those in `given` go before any other."""
    by_plain = {_plain(name): name for name in reversed(names)}  # of two that look alike the first
    chosen = {}
    for field, known in NAMES.items():
        chosen[field] = next((by_plain[name] for name in known.split() if name in by_plain), None)
    if chosen["title"] is None or chosen["content"] is None:
        pair = next((pair for pair in PAIRS if by_plain.keys() >= set(pair.values())), {})
        chosen |= {field: by_plain[name] for field, name in pair.items()}
    # Fields that a user named are the catalogue's; corrections.jsonl, given beside it, has its own.
    otherwise = chosen if set(names) >= KEYS else dict.fromkeys(NAMES)
    for field in NAMES:
        if name := getattr(given, field):
            chosen[field] = name if name in names else by_plain.get(_plain(name), otherwise[field])
    # One that is not there yet may come: of records in JSON only the first are looked at.
    named = (name if name in names else by_plain.get(_plain(name), name) for name in given.attributes if name != AUTO)
    return Fields(**chosen, attributes=tuple(name for name in named if name not in chosen.values()))


def repeated_fields(records: Iterable[dict[str, str]], fields: Fields) -> tuple[str, ...]:
    """Those that are not in `fields` yet and whose values tend to stand word for word in the description: colours,
    sizes, brands.

    `records`: texts by field, a few hundred of one source.
    """
    others = {fields.title, fields.content, fields.uid, *fields.attributes}
    counts: dict[str, list[int]] = {}  # values, and those of them that are repeated
    for record in records:
        content = f" {_plain(record.get(fields.content, ''))} ".replace("_", " ")
        for name, value in record.items():
            words = _plain(value).replace("_", " ")
            if _plain(name) and name not in others and words and len(value) <= MOST_ATTRIBUTE_CHARS:
                found = counts.setdefault(name, [0, 0])
                found[0] += 1
                found[1] += f" {words} " in content
    return tuple(n for n, (all_, hits) in counts.items() if hits >= max(FEWEST_REPEATED, REPEATED * all_))


def attribute_name(field: str) -> str:
    """As a record and a prompt have it, however a file spells it: "Tamanho " and "tamanho" are one attribute."""
    return " ".join(_plain(field).split("_"))[:MOST_ATTRIBUTE_CHARS]


def header_row(rows: Sequence[Sequence[str]], given: Fields) -> int:
    """Which of the first `rows` of a table is its header: above it may stand the name of the shop, a date, nothing."""
    return max(range(len(rows)), key=lambda row: (choose_fields(rows[row], given).found, any(rows[row])), default=0)


def describe(fields: Fields, names: Iterable[str], repeated: Iterable[str] = ()) -> str:
    """The choice in words, with the next thing to try where a field was not found, or one could serve."""
    names = list(dict.fromkeys(map(one_line, names)))
    chosen = ((field, getattr(fields, field)) for field in NAMES)
    parts = [f'{field} from "{one_line(name)}"' for field, name in chosen if name is not None]
    there = [name for name in fields.attributes if one_line(name) in names]
    if there:
        parts.append(f"attributes from {quoted(there)}")
    if absent := [name for name in fields.attributes if name not in there]:
        parts.append(f"no field {quoted(absent)} for the attributes so far")
    if more := [name for name in repeated if name not in fields.attributes]:
        parts.append(f"the descriptions repeat {quoted(more)}: --attributes auto takes such fields along")
    missing = [field for field in ("title", "content") if getattr(fields, field) is None]
    if missing:
        known = quoted(names[:12]) or "none"
        options = " and ".join(f"--{field}_field NAME" for field in missing)
        parts.append(f"no field for the {' and the '.join(missing)} among {known}: name it with {options}")
    elif fields.uid is None:
        parts.append("uid is the number of the line")
    if any("\\udc" in name for name in names):
        parts.append("the names are not UTF-8: name their encoding with --encoding")
    return ", ".join(parts)


def quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{one_line(name)}"' for name in names)


def printable(text: str) -> str:
    """`text` with escapes for what UTF-8 cannot encode: bytes of another encoding, lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(name: object) -> str:
    """A name from outside, for a sentence: printable, and its line breaks are escapes."""
    return re.sub(r"[\r\n\t]", lambda mark: repr(mark[0])[1:-1], printable(str(name)))


def unaccented(text: str) -> str:
    """`text` decomposed and without its combining marks: 'ação' -> 'acao'."""
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


def _plain(name: str) -> str:
    """'Descrição' -> 'descricao', 'Body (HTML)' -> 'body_html', 'product-name' -> 'product_name'."""
    return "_".join(re.findall(r"[^\W_]+", unaccented(name.casefold())))
