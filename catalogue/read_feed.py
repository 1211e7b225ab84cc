"""Records in XML: the product feeds of shops, such as Google Merchant's in RSS or Atom."""

import io
import re
from collections import Counter
from collections.abc import Iterator

from lxml import etree

from catalogue.encoding import CHUNK_BYTES
from catalogue.fields import Fields, choose_fields, one_line
from catalogue.records import Layout
from catalogue.sources import Source
from text.errors import DataError

_BEGINS = re.compile(rb"\s*<(?:\?xml|!--|!DOCTYPE\s|[A-Za-z_][\w:.-]*[\s/>])")
_WEB_PAGE = re.compile(rb"\s*<(?:!doctype\s+html|html|head|body|table|meta)\b", re.IGNORECASE)
GOOGLE = "{http://base.google.com/"
SAFE = {"resolve_entities": False, "load_dtd": False, "no_network": True, "remove_comments": True}


def looks_like_xml(sample: bytes) -> bool:
    return bool(_BEGINS.match(sample))


def looks_like_a_web_page(sample: bytes) -> bool:
    return bool(_WEB_PAGE.match(sample))


def read_feed(stream: io.BufferedReader, encoding: str | None, given: Fields, place: Source) -> Layout:
    """`encoding`: of `stream`; None: as its first line declares it. `given` are the fields that the user named, `place`
    is for messages.

    The products are the elements of the one kind whose children have the names of the fields, else the most frequent.
    """
    try:
        parser = etree.XMLParser(encoding=encoding, recover=True, **SAFE)  # the sample is cut somewhere
        sample = etree.fromstring(_ACTIVE.sub(_as_text, stream.peek()), parser)
    except (etree.XMLSyntaxError, LookupError):
        sample = None
    children: dict[str, list[str]] = {}
    count = Counter()
    for element in sample.iter(etree.Element) if sample is not None else ():
        if len(element):
            children.setdefault(element.tag, []).extend(map(_name, element.iterchildren(etree.Element)))
            count[element.tag] += 1
    tag = max(children, key=lambda tag: (choose_fields(children[tag], given).found, count[tag]), default="product")
    others = [other for other in children if other != tag and choose_fields(children[other], given).found == 2]
    left = f", not {', '.join(_tag(other) for other in others)}" if others else ""
    what = f"XML, its {_tag(tag)} elements{left}"
    return Layout(what, _products(stream, tag, encoding, place))


def _products(stream: io.BufferedReader, tag: str, encoding: str | None, place: Source) -> Iterator[dict]:
    """One product at a time, the rest of the tree thrown away."""
    try:
        for _, element in etree.iterparse(_Mended(stream), tag=tag, encoding=encoding, **SAFE):
            yield _record(element)
            element.clear()
            for done in (element, *element.iterancestors()):
                while done.getprevious() is not None:
                    del done.getparent()[0]
    except (etree.XMLSyntaxError, LookupError) as error:
        hint = (
            " Try --encoding cp1252."
            if "encod" in str(error) or "UTF-8" in str(error)
            else " Mend it, or export it anew."
        )
        raise DataError(f"{place} is no whole XML: {one_line(error)}.{hint}") from None


# What would act on the parser: an entity but the five of XML, which might stand for a file or for gigabytes, or is
# HTML's; an & that is none; controls. All of it is text.
_ACTIVE = re.compile(
    rb"&#(?:x0*(?:[0-8bcefBCEF]|1[0-9a-fA-F])|0*(?:[0-8]|1[124-9]|2[0-9]|3[01]));"
    rb"|&(?!#\d{1,7};|#x[0-9a-fA-F]{1,6};|(?:amp|lt|gt|quot|apos);)|[\x00-\x08\x0b\x0c\x0e-\x1f]"
)
LONGEST_ENTITY = 10  # bytes


def _as_text(found: re.Match) -> bytes:
    return b"&amp;" if found[0] == b"&" else b" "


class _Mended:
    """A stream in which an `&` is an `&`; that in HTML inside a product is resolved where it is cleaned."""

    def __init__(self, stream: io.BufferedReader):
        self._stream, self._rest = stream, b""

    def read(self, _: int = -1) -> bytes:
        while more := self._stream.read(CHUNK_BYTES):
            chunk = self._rest + more
            cut = chunk.rfind(b"&", len(chunk) - LONGEST_ENTITY)  # it may go on in the next chunk
            cut = len(chunk) if cut < 0 else cut
            chunk, self._rest = chunk[:cut], chunk[cut:]
            if chunk:
                return _ACTIVE.sub(_as_text, chunk)
        chunk, self._rest = self._rest, b""
        return _ACTIVE.sub(_as_text, chunk)


def _record(element: etree.Element) -> dict:
    """The texts of its children by their names without a namespace; of those that come several times, a list. Of
    <title> and <g:title> the second, which is made for the feed."""
    by_tag: dict[str, list[str]] = {}
    for child in element.iterchildren(etree.Element):
        if text := "".join(child.itertext()).strip():
            by_tag.setdefault(child.tag, []).append(text)
    record = {}
    for tag in sorted(by_tag, key=lambda tag: not tag.startswith(GOOGLE)):  # stable: else the first of them counts
        texts = by_tag[tag]
        record.setdefault(etree.QName(tag).localname, texts[0] if len(texts) == 1 else texts)
    return record


def _tag(tag: str) -> str:
    return f"<{one_line(etree.QName(tag).localname)}>"


def _name(element: etree.Element) -> str:
    return etree.QName(element).localname
