"""The way to the terminal: what could act on it is shown as an escape, and nobody who listens can end the work."""

import errno
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Controls but for tab and line break, marks that turn the direction of writing, other line ends, lone surrogates.
ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
CURSOR_UP = "\x1b[A"  # of progress bars that stand one over the other: here they stand one under the other
LEFT = {errno.EPIPE, errno.EIO} | ({errno.EINVAL} if os.name == "nt" else set())  # as Windows says EPIPE


def printable(text: str, keep: str = "") -> str:
    """`text` with what acts on a terminal as JSON writes it: ESC becomes \\u001b. So a line of JSON stays the same."""
    return ACTING.sub(lambda mark: mark[0] if mark[0] in keep else f"\\u{ord(mark[0]):04x}", text)


def one_line(text: object) -> str:
    """A name from outside, for a sentence of ours: printable, and its line breaks are none."""
    return printable(str(text).replace("\n", "\\n").replace("\t", "\\t"))


class Terminal(io.TextIOWrapper):
    """A standard stream that all text passes, that of libraries too, in `printable` characters.

    When its reader leaves (`| head`, a closed window) the rest goes nowhere, and `left` turns true.
    """

    left = False
    keep = ""

    def write(self, text: str) -> int:
        with self._to_nowhere_when_left():
            super().write(printable(text.replace(CURSOR_UP, ""), self.keep))
        return len(text)

    @property
    def can_mark(self) -> bool:
        """Whether somebody sees what is underlined: no pipe or file, no dumb terminal, and not told to leave escapes
        out (https://no-color.org)."""
        return self.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def write_marked(self, text: str, spans: list[tuple[int, int]]) -> None:
        """`text` with the characters of `spans` (start, end) underlined, where that can be seen."""
        if os.name == "nt" and self.isatty():
            os.system("")  # an older console understands such marks after its first command
        begin, end = ("\x1b[4m", "\x1b[24m") if self.can_mark else ("", "")
        done = 0
        for start, stop in spans:
            self.write(text[done:start])
            with self._to_nowhere_when_left():
                super().write(begin + printable(text[start:stop]) + end)
            done = stop
        self.write(text[done:])

    def flush(self) -> None:
        with self._to_nowhere_when_left():
            super().flush()

    @contextmanager
    def _to_nowhere_when_left(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in LEFT:
                raise
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            self.left = True


def take_over_streams() -> None:
    """To be called before any library keeps one of the standard streams for itself. Those of a notebook, which have no
    bytes below them and reach no terminal, stay as they are."""
    for descriptor in range(3):  # closed ones, as of a service: else the next file that is opened takes the place
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  it stays open
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if not isinstance(stream, Terminal) and (stream is None or hasattr(stream, "buffer")):
            buffer = stream.buffer if stream else open(descriptor, "wb", closefd=False)  # noqa: SIM115
            setattr(sys, name, Terminal(buffer, encoding="utf-8", line_buffering=True))  # the other: sys.__stdout__
    if isinstance(sys.stderr, Terminal):
        sys.stderr.keep = "\r"  # progress bars are drawn over their line
