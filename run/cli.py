"""The command line of every script: how arguments are read and how a script ends.

Exit codes: 0 done, 2 bad arguments or data, 3 environment, 4 out of memory, 5 non-finite loss, 6 disk, 130 interrupted.
An exception that carries an `exit_code` is a sentence for the user; any other is a bug and keeps its traceback.
"""

import argparse
import difflib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NoReturn

from run.terminal import one_line, take_over_streams

LOST_RANK = (
    "Another process of this run has ended, so this one ends too. The reason is in its own output above; "
    "go on from the last checkpoint with --resume, with as many processes as you like."
)
# As torch, the libraries of CUDA and the CPU's allocator say it, not all of them by an exception of their own.
FULL = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
ENVIRONMENT = 3
OUT_OF_MEMORY = 4
DISK = 6
INTERRUPTED = 130
MOST_CHARS = 1000  # of an error; a name in it may be longer
MOST = 2**53  # of a number without a limit of its own: up to here a float counts whole numbers

# On Windows the Fortran runtime in numpy's and torch's MKL ends the process at Ctrl-C, before Python hears of it. It
# reads this as it is loaded, and every script imports this module before them.
os.environ.setdefault("FOR_DISABLE_CONSOLE_CTRL_HANDLER", "1")
# A micro-batch has a new shape in each step. On Linux torch can let its blocks of GPU memory grow instead of taking
# others beside them; on Windows it cannot, and under WSL, which is one, it is known to fail.
named = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys()
if sys.platform == "linux" and "microsoft" not in os.uname().release.lower() and not named:
    os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
os.environ.setdefault("PYTHON_COLORS", "0")  # newer Pythons colour their help; run/terminal.py would show the codes


class UsageError(ValueError):
    """The arguments cannot be used as they are."""

    exit_code = 2


class Parser(argparse.ArgumentParser):
    """`argparse` where dashes count as underscores, nothing is abbreviated, and a typo gets a suggestion."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        return super().parse_known_args([underscored(arg) for arg in args], namespace)

    def parse_args(self, args=None, namespace=None):
        if args is None:  # the real command line: from here on libraries are imported, which takes seconds
            take_over_streams()
        sys.excepthook = _end_in_a_sentence
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].partition("=")[0]
            self.error(f"unknown argument {name}{did_you_mean(name, self._option_string_actions)}")
        return parsed

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {sentence(message)}\nAll options: python {self.prog} --help\n")


def _end_in_a_sentence(kind: type, error: BaseException, where) -> None:
    """The hook for what is raised outside of `run_script`: by what a script checks before it imports torch."""
    if (code := _said(error)) is None:
        return sys.__excepthook__(kind, error, where)
    sys.stderr.flush()
    os._exit(code)


def underscored(arg: str) -> str:
    """`--max-steps=5` -> `--max_steps=5`; the value keeps its dashes."""
    if not arg.startswith("--"):
        return arg
    name, equals, value = arg.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that is most like it, "" when none is near."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean NEAREST?`, or nothing when no known word is near."""
    near = nearest(word, known)
    return f"; did you mean {near}?" if near else ""


def number(kind: type, least: float, most: float) -> Callable[[str], float]:
    """For `add_argument(type=)`: an int or a float from `least` to `most`."""

    def read(text: str) -> float:
        value = kind(text)
        try:
            check_number(value, least=least, most=most)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value

    read.__name__ = kind.__name__  # argparse says it where the text is no number at all
    return read


integer, real = partial(number, int, most=MOST), partial(number, float, most=MOST)


def as_path(text: str) -> Path:
    """A path from outside; "" is none, though to `Path` it is the folder one is in, as with an unset $NAME. Raises
    `UsageError`."""
    if not text.strip():
        raise UsageError("it is empty.")
    try:
        Path(text).exists()  # which passes over a NUL
    except (OSError, ValueError) as error:
        raise UsageError(f"{sentence(text)} is no path ({getattr(error, 'strerror', None) or error}).") from None
    if "\0" in text:
        raise UsageError(f"{sentence(text)} is no path (there is a NUL in it).")
    return Path(text)


def whole_number(text: str, most: int) -> int | None:
    """A whole number from 0 to `most` that somebody typed; None where it is none."""
    return int(text) if text.isdecimal() and len(text) <= len(str(most)) and int(text) <= most else None


def path(text: str) -> Path:
    """For `add_argument(type=)`."""
    try:
        return as_path(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def check_number(value: float, name: str = "", least: float = -MOST, most: float = MOST) -> None:
    """The one place where a number from outside is checked. Raises `UsageError` unless `least` <= it <= `most`."""
    what = f"{name}: {str(value)[:24]}" if name else str(value)[:24]
    for fits, limit in ((value >= least, f"at least {least:g}"), (value <= most, f"at most {most:g}")):
        if not fits:  # asked in this way, nan never fits
            raise UsageError(f"{what} is not {limit}.")


def run_script(main: Callable[..., int | None], *args) -> NoReturn:
    """Call `main(*args)` and leave the process with its exit code, or with the one its error documents."""
    for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):  # as Ctrl-C, so that all is tidied up; under nohup: none
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:
            signal.signal(getattr(signal, name), signal.default_int_handler)
    try:
        code = main(*args)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        code = _said(error)
        if code is None and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise
        if code is None:
            code = 1
            traceback.print_exc()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # Under torchrun nothing is taken down: gloo's threads want the interpreter for their last tensors while
        # their destructor, which holds it, waits for them (seen in torch 2.13, one exit in three).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
    sys.exit(code or 0)


def _said(error: BaseException) -> int | None:
    """Print what `error` means to the user; the exit code. None for a bug."""
    if isinstance(error, KeyboardInterrupt):
        said, code = "\nInterrupted.", INTERRUPTED
    elif hasattr(error, "exit_code"):
        said, code = sentence(error), error.exit_code
    elif isinstance(error, RuntimeError) and any(words in str(error) for words in FULL):
        # where nothing can be done again with less
        said, code = sentence(f"Out of memory ({error}). What was saved is whole. Close other programs."), OUT_OF_MEMORY
    elif type(error).__name__.startswith("Dist") or "/gloo/" in str(error):  # in the middle of a sharded model
        said, code = LOST_RANK, ENVIRONMENT
    elif isinstance(error, OSError):
        what, why = sentence(error.filename or "Disk"), error.strerror or error
        said, code = f"{what}: {why}. {_disk_advice(error)}", DISK
    else:
        return None
    print(said, file=sys.stderr)
    return code


def sentence(error: object) -> str:
    """What is said of an error: one line, whatever names from outside are in it, with the beginning and the end."""
    said = one_line(error)
    return said if len(said) <= MOST_CHARS else f"{said[: MOST_CHARS - 300]} ... {said[-300:]}"


def _disk_advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return "Free some space, or choose another disk with --output_dir."
    return "Check that the path exists and may be written, or choose another with --output_dir."
