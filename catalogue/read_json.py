"""Records in JSON: an object a line, an array, objects one after another, or an object that holds the array."""

import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator

from catalogue.encoding import CHUNK_BYTES
from catalogue.fields import Fields, choose_fields, one_line
from catalogue.records import MAX_RECORD_BYTES, START_BYTES, Broken, Layout, TooLong

SAMPLE_LINES = 50
MOST_DEPTH = 12  # of objects among which the records are looked for
_BEGINS = re.compile(rb'\s*(?:\{\s*(?:"|\}|\Z)|\[\s*(?:["{}\[\]0-9-]|\Z|true|false|null))')


def looks_like_json(sample: bytes) -> bool:
    return bool(_BEGINS.match(sample))


def read_json(stream: io.BufferedReader, given: Fields) -> Layout:
    """`given` are the fields named by the user: they help to find the array that an object holds."""
    sample = stream.peek()
    first = sample.lstrip().partition(b"\n")[0]
    lines, is_array = _whole_lines(sample), first[:1] == b"["
    if not is_array and (arrays := _arrays_inside(sample, given, certain=lines > 0.5)):
        key, *others = arrays
        opener = re.compile(rb'"%s"\s*:\s*\[' % re.escape(key))
        left = "".join(f', "{_shown(other)}"' for other in others) + " left alone" * bool(others)
        return Layout(f'JSON, the array "{_shown(key)}"{left}', elements(stream, opener, again=opener))
    if lines > 0.5 or (_is_whole(first) and not (is_array and b"{" in first)):
        return Layout("JSON, an object a line", json_lines(stream))
    if is_array:
        return Layout("JSON, an array", elements(stream, ARRAY, again=NEXT_ARRAY))
    return Layout("JSON, objects one after another", elements(stream))


def _is_whole(line: bytes) -> bool:
    try:
        return isinstance(value := json.loads(line), (dict, list)) and len(value) > 0
    except (ValueError, RecursionError):
        return False


def _whole_lines(sample: bytes) -> float:
    """The share of the lines in `sample` that are an object of their own; the last one may be cut."""
    *lines, _ = sample.split(b"\n")
    lines = [line for line in lines if line.strip()][:SAMPLE_LINES]
    return sum(line.lstrip().startswith(b"{") and _is_whole(line) for line in lines) / max(1, len(lines))


# A string, perhaps cut off by the end of the sample, and whether it is a key; or a bracket.
_TOKENS = re.compile(rb'"([^"\\]*(?:\\.[^"\\]*)*)(?:"|\\?\Z)\s*(:?)|[\[\]{}]', re.DOTALL)


def _arrays_inside(sample: bytes, given: Fields, certain: bool) -> list[bytes]:
    """The keys, as they stand in the file, of the arrays of records in an object, as Shopify's {"products": [{...}]}:
    the one to read first. None of them: the object is a record itself.

    Of the objects in `sample` at any depth, the fields are looked for among the keys of each. Both have to be found,
    unless the array is all that the object begins with, and not `certain`.
    """
    names: dict[tuple[bytes, ...], list[bytes]] = defaultdict(list)  # the keys of the objects on one way
    count = Counter()  # of those objects
    way, key = [], b""  # the brackets that are open, each with the key that it stands behind
    for token in _TOKENS.finditer(sample):
        mark = token[0][:1]
        if mark == b'"' and token[2]:
            key = token[1]
            if 0 < len(way) <= MOST_DEPTH:  # outside of all brackets it is the key of nothing
                names[tuple(way)].append(key)
        elif mark in b"{[":
            way.append(mark + key)
            if len(way) <= MOST_DEPTH:
                count[tuple(way)] += 1
            key = b""
        elif mark in b"]}" and way:
            way.pop()
            key = b""
    found = {way: choose_fields([_shown(key) for key in keys], given).found for way, keys in names.items()}
    most = max(found.values(), default=0)
    if most < 2 and (certain or len(names[(b"{",)]) > 1):
        return []
    best = [way for way, fields in found.items() if (fields == most if most == 2 else len(way) == 3)]
    if most == 2 and min(map(len, best)) == 1:  # the object at the top
        return []
    best = sorted(best, key=lambda way: (-count[way], len(way)))
    return list(dict.fromkeys(way[-2][1:] for way in best if way[-1] == b"{" and way[-2:-1] and way[-2][:1] == b"["))


def _shown(key: bytes) -> str:
    return one_line(key.decode("utf-8", "replace"))


def json_lines(stream: io.BufferedReader) -> Iterator[bytes]:
    while line := stream.readline(MAX_RECORD_BYTES):
        if len(line) < MAX_RECORD_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while (rest := stream.readline(MAX_RECORD_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield TooLong(line[:START_BYTES])


# A string, closed or running into the end of what was read; or a bracket; between elements also a comma.
_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*(?P<close>"?)'
_INSIDE = re.compile(_STRING + rb"|[\[\]{}]", re.DOTALL)
_BETWEEN = re.compile(_STRING + rb"|[\[\]{},]", re.DOTALL)

ARRAY = re.compile(rb"\s*\[")
NEXT_ARRAY = re.compile(rb"\A\s*,?\s*\[")  # pages of an export, one after another
_OBJECTS = re.compile(rb"\[\s*\{")
MOST_KEY_BYTES = 300  # of what may stand between two arrays of records, so much is kept to find where the next begins


def elements(
    stream: io.BufferedReader, opener: re.Pattern | None = None, again: re.Pattern | None = None
) -> Iterator[bytes]:
    """The elements of the arrays that begin behind `opener`, and later ones behind `again`, as they stand in the file;
    without an opener the values in it. Only strings, brackets and commas are looked at.

    After a closing bracket too many, or what follows the end of an array and opens none, everything up to the end is
    one more element (a broken one). With an array inside an object, what stands around it is no element, unless it
    holds other arrays of objects: then it is a broken one. A file that ends before its array does gives the part of the
    last element that is there.
    """
    buffer = stream.read(CHUNK_BYTES)
    position = opener.search(buffer).end() if opener else 0
    start, depth, skipping, ended = position, 0, False, False  # the element began at `start`; depth counts inside it
    said = False  # of this stretch around the arrays
    while True:
        if ended and (next_array := again.search(buffer[start:])):
            start = position = start + next_array.end()
            ended = said = False
        found = (_INSIDE if depth else _BETWEEN).search(buffer, position) if not ended else None
        if found is None or found["close"] == b"":
            # All of the buffer was looked at, or its last string goes on behind it: take more.
            in_string = found is not None
            around = ended and again is not NEXT_ARRAY
            if around:
                if not said and (other := _OBJECTS.search(buffer, start)):
                    said = True
                    yield Broken(buffer[other.start() : other.start() + START_BYTES])
                buffer, start = buffer[max(start, len(buffer) - MOST_KEY_BYTES) :], 0
            if not skipping and len(buffer) - start > MAX_RECORD_BYTES:
                yield TooLong(buffer[start : start + START_BYTES])
                skipping = True
            if skipping:  # nothing of it is needed but that it is inside a string
                buffer = (b'"' + buffer[found.end() :]) if in_string else b""
                start = position = 0
            else:
                position = (found.start() if in_string else len(buffer)) - start
                buffer, start = buffer[start:], 0
            more = stream.read(1 << 18)
            buffer += more
            if more:
                continue
            if buffer.strip() and not skipping and not around:
                yield buffer
            return
        position = found.end()
        mark = found[0]
        if mark in (b"[", b"{"):
            depth += 1
            continue
        if mark in (b"]", b"}") and depth:
            depth -= 1
            if depth or opener:
                continue
            element = buffer[start:position]  # a value of its own ends with its bracket
        elif mark in (b",", b"]", b"}"):  # between elements: one has ended
            element = buffer[start : found.start()]
        else:
            continue
        if not skipping and (element.strip() or (mark == b"," and opener)):
            yield element
        skipping, start = False, position
        ended = bool(opener) and mark != b","
