"""The interactive loop of generate.py: a title or a question in, an answer out; and commands that begin with /."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill

from catalogue.clean import clean
from model.adapter import is_adapter, load_adapter
from model.errors import ModelUnavailable, UnsupportedModel
from model.lora import unwrap
from model.sample import Answer, write
from run.answers import left_out_for, say_unsupported, show
from run.candidates import Prompt, Writer
from run.cli import UsageError, as_path, nearest, whole_number
from run.folders import find_run, weights_of
from run.loading import encoder_of
from run.memory import OutOfMemory
from run.sayings import SAID
from run.sources import Sources
from run.titles import plain
from text.answer import StableText, stop_rule
from text.errors import DataError
from text.stream import Record, given
from text.template import QA, load_template

LEAVE = ("sair", "quit", "exit")
COMMANDS = ["/help", "/before", "/again", "/sources", "/temp", "/candidates", "/adapter", "/save", "/stats", "/quit"]


def reader() -> Callable[[str], str]:
    """What asks for a line: with history and editing on a terminal, else plain."""
    if sys.stdout.isatty():
        try:
            from prompt_toolkit import PromptSession
            from prompt_toolkit.completion import WordCompleter
            from prompt_toolkit.output import create_output

            # To the stream itself: run/terminal.py would show the codes that move the cursor.
            output, commands = create_output(stdout=sys.__stdout__), WordCompleter(COMMANDS, sentence=True)
            return PromptSession(output=output, completer=commands, complete_while_typing=False).prompt
        except Exception:
            pass
    return input


class Loop:
    """Answers aloud: each is printed as it is written if there is one try at it, and then what of it nothing supports.

    `load_base` makes a writer with the model as it was before training, the first time that it is wanted.
    """

    def __init__(
        self,
        writer: Writer,
        sources: Sources,
        strict: bool,
        speech: str,
        name: str = "",
        adapters: Sequence[Path] = (),
        load_base: Callable[[], Writer] | None = None,
        output_dir: Path = Path("checkpoints"),
    ):
        self.writer, self.sources, self.strict, self.name = writer, sources, strict, name
        self.adapters, self.load_base, self.output_dir = list(adapters), load_base, output_dir
        self.said, self.numbers = SAID[speech], 0
        self.rows = writer.rows  # as many answers at once as there was found to be memory for
        self.base: Writer | None = None
        self.answers: list[dict] = []
        self.seconds: list[float] = []
        self.last: Record | None = None

    def say(self, what: str, *values) -> None:
        print(self.said[what].format(*values), file=sys.stderr)

    def run(self, attributes: dict[str, str], copies: int) -> int:
        """Until the user leaves."""
        ask = reader()
        self.say("begin")
        for number, folder in enumerate(self.adapters, start=1):
            print(f"/{number}  {folder}", file=sys.stderr)
        try:
            while (line := plain(ask(self.said["ask"]))).lower().removeprefix("/") not in LEAVE:
                try:
                    if line.startswith("/"):
                        self.command(*line.partition(" ")[::2])
                    elif title := clean(line):
                        self.last = {"title": title} | ({"attributes": attributes} if attributes else {})
                        for _ in range(copies):
                            self.answer(self.last)
                except KeyboardInterrupt:  # of this answer; at the prompt it ends the loop
                    self.say("stopped")
                except (UsageError, DataError, ModelUnavailable, UnsupportedModel, OutOfMemory) as error:
                    print(error, file=sys.stderr)
        except (EOFError, KeyboardInterrupt):
            print()
        return 0

    def command(self, name: str, value: str) -> None:
        name, value = name.lower(), value.strip()
        if name in (f"/{number + 1}" for number in range(len(self.adapters))):
            name, value = "/adapter", name[1:]
        match name:
            case "/help":
                print(wrapped(self.said["help"], shutil.get_terminal_size().columns), file=sys.stderr)
            case "/again" | "/before" if self.last is None and not value:
                self.say("nothing")
            case "/again" if self.writer.sampling.greedy and self.writer.tries == 1:
                self.say("greedy")
            case "/again":
                self.answer(self.last, again=True)
            case "/before":
                self.before({"title": clean(value)} if clean(value) else self.last)
            case "/sources":
                self.list_sources(value)
            case "/temp":
                self.temperature(value)
            case "/candidates":
                self.candidates(value)
            case "/adapter":
                self.adapter(value)
            case "/save":
                self.save(value)
            case "/stats":
                self.stats()
            case _:
                near = nearest(name, COMMANDS)
                self.say("unknown, near" if near else "unknown", name, near)

    def answer(self, record: Record, again: bool = False) -> None:
        """Print the answer to one title, and its sources if they are wanted."""
        writer, products = self.writer, self.sources.nearest(record)
        context, began = self.sources.context(products), time.perf_counter()
        question = writer.encoder.template.asked(self.sources.as_taught(record))
        (ids,) = writer.encoder.prompts([question], [context], writer.window)
        if len(ids) >= writer.window:
            return self.say("too long", writer.window)
        if writer.claims and not products:
            self.say("not taught")
        elif self.sources.grounded and products:
            self.say("grounded", products[0].uid, products[0].title)
        prompt = Prompt(ids, [given(record), context], self.numbers, again)
        self.numbers += 1
        if writer.tries > 1 or self.strict:
            (found,) = writer.write([prompt])
            if self.strict and found.unsupported:
                return print(left_out_for(record["title"], found), file=sys.stderr)
            show(found, self.said["unsupported"])
            text, unsupported = found.text, found.unsupported
        else:
            text = self._aloud(writer, prompt)
            unsupported = writer.claims.unsupported(text, prompt.texts) if writer.claims else []
            say_unsupported(unsupported, self.said["unsupported"])
        self.sources.show(products, self.said)
        self.seconds.append(time.perf_counter() - began)
        self.answers.append({**record, "answer": text, "unsupported": [claim._asdict() for claim in unsupported]})

    @staticmethod
    def _aloud(writer: Writer, prompt: Prompt) -> str:
        """Print one answer as it is written, in pieces that no later token can change; returns it."""
        encoder, stop = writer.encoder, writer.encoder.template.stop
        text, rule = StableText(encoder.tokenizer, stop), stop_rule(encoder.tokenizer, stop)
        waiting, pieces = [Answer(prompt.ids, prompt.number)], []
        check = writer.check
        place = (lambda answer: check.first_unsupported(answer, prompt.texts)) if check else None

        def put(piece: str) -> None:
            pieces.append(piece)
            print(piece, end="", flush=True)

        def next_answer() -> Answer | None:
            return waiting.pop() if waiting else None

        done = 0
        for ((answer, ended),) in write(writer.model, next_answer, encoder.end_token, writer.sampling, 1, rule, place):
            settled = check.settled(answer) if check and not ended else len(answer.ids)
            for token in answer.ids[done:settled]:
                put(text.feed(token))
            done = max(done, settled)
        put(text.rest())
        print()
        return "".join(pieces)

    def before(self, record: Record) -> None:
        """The answers of the model before training and of this one, one under the other."""
        if self.base is None:
            self.base = self.load_base()
        self.last, trained = record, self.writer
        try:
            print(self.said["before"], end="", flush=True)
            self.writer = replace(self.base, sampling=trained.sampling)
            self.answer(record)
        finally:
            self.writer = trained
        print(self.said["after"], end="", flush=True)
        self.answer(record)

    def list_sources(self, value: str) -> None:
        count = whole_number(value, 1000)
        if value and count is None:
            return self.say("number", "/sources", "0 ... 1000", "5")
        self.sources.switch(count)
        self.say("sources" if self.sources.count else "sources off", self.sources.count)

    def temperature(self, value: str) -> None:
        try:
            found = float(value.replace(",", "."))
            if not 0 <= found <= 100:
                raise ValueError(value)
        except ValueError:
            return self.say("number", "/temp", "0 ... 100", "0.8")
        sampling = replace(self.writer.sampling, temperature=max(found, 0.01), greedy=found < 0.01)
        # The likeliest answer is one: there is nothing to choose from.
        self.writer = replace(self.writer, sampling=sampling, candidates=1 if found < 0.01 else self.writer.candidates)
        self.say("temp", f"{found:g}")

    def candidates(self, value: str) -> None:
        count = whole_number(value, 256)
        if not count:
            return self.say("number", "/candidates", "1 ... 256", "8")
        if not self.writer.claims:
            return self.say("no judge")
        self.writer = replace(self.writer, candidates=count, rows=min(count, self.rows))
        self.say("candidates", count)

    def adapter(self, value: str) -> None:
        """List the adapters, or put another one over the same base, which stays in memory."""
        if not self.adapters:
            return self.say("no adapters")
        if not value:
            return print("\n".join(f"/{n}  {folder}" for n, folder in enumerate(self.adapters, start=1)))
        number = whole_number(value, len(self.adapters))
        folder = self.adapters[number - 1] if number else adapter_folder(value, self.output_dir)
        try:
            encoder = self._put_on(folder)
        except (ModelUnavailable, UnsupportedModel, DataError) as error:
            print(error, file=sys.stderr)
            folder = Path(self.name)
            encoder = self._put_on(folder)
        self.writer, self.name = replace(self.writer, encoder=encoder), str(folder)
        self.adapters = list(dict.fromkeys([*self.adapters, folder]))
        self.say("adapter", folder)

    def _put_on(self, folder: Path):
        """Returns the encoder with the adapter's template."""
        unwrap(self.writer.model)
        load_adapter(self.writer.model, folder)
        return encoder_of(self.writer.model.name_or_path, load_template(folder, default=QA))

    def save(self, value: str) -> None:
        if not value or as_path(value).is_dir():
            return self.say("file")
        lines = (json.dumps(answer, ensure_ascii=False) + "\n" for answer in self.answers)
        try:
            with Path(value).open("x", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
                file.writelines(lines)
        except FileExistsError:
            return self.say("there", value)
        except OSError as error:
            raise UsageError(f"{value} cannot be written: {error.strerror}.") from None
        self.say("saved", len(self.answers), value)

    def stats(self) -> None:
        model, sampling = self.writer.model, self.writer.sampling
        rate = 60 * len(self.seconds) / sum(self.seconds) if self.seconds else 0.0
        self.say(
            "stats",
            self.name,
            model.num_parameters(),
            str(model.dtype).removeprefix("torch."),
            model.device,
            len(self.seconds),
            rate,
            self.seconds[-1] if self.seconds else 0.0,
            0 if sampling.greedy else f"{sampling.temperature:g}",
            self.writer.tries,
        )


def wrapped(text: str, width: int) -> str:
    """Lines that are too long for the terminal go on below their second column, and break between words."""
    indent = " " * (21 if width >= 50 else 4)
    return "\n".join(
        fill(line, width - 1, subsequent_indent=indent if line[:1] == " " else "", break_on_hyphens=False)
        for line in text.split("\n")
    )


def adapter_folder(name: str, output_dir: Path) -> Path:
    """The folder of an adapter: itself, or what a LoRA run of that name or path saved. Raises `UsageError`."""
    folder = as_path(name)
    if not is_adapter(folder):
        folder = weights_of(find_run(name, output_dir))
    if not is_adapter(folder):
        raise UsageError(f"{name} holds a whole model, not an adapter: use --run {name}.")
    return folder
