"""The local page: a model that is asked, and corrected, in a browser on the same machine.

Only 127.0.0.1 is listened on, and only requests that name it as Host, and as Origin if they name one, are answered: so
no other page in the browser can ask the model or write a correction. One answer is written at a time.
"""

import asyncio
import json
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from catalogue.fields import attribute_name
from run.candidates import Writer
from run.cli import UsageError, check_number
from run.device import Machine
from run.sources import Sources
from run.titles import Answers, Asked, read_titles
from text.errors import DataError
from text.stream import Record, given

PAGE = Path(__file__).with_suffix(".html")
MOST_CHARS = 2000  # of a title or a value; of an answer or its correction ten times as many
MOST_ATTRIBUTES = 30
MOST_CANDIDATES = 16
SOURCES = 3  # products beside an answer, unless told
MOST_TITLES = 500  # of a table; longer ones are for --titles, which can be stopped and goes faster
MOST_BYTES = {"/table": 2**22}
BODY = 2**18  # bytes of any other request
WAITING = 8  # requests, the one that is answered included
VERDICTS = ("accept", "edit", "reject")


class Refused(ValueError):
    """A request that gets a sentence instead of an answer."""

    def __init__(self, sentence: str, status: int = 400):
        super().__init__(sentence)
        self.status = status


class Desk:
    """What the page can ask for, without the web around it."""

    def __init__(self, writer: Writer, base: Callable[[], Writer], sources: Sources, machine: Machine, file: Path):
        """`base` loads the model as it was before training, on the first wish; corrections go to `file`."""
        self._writers = {"after": lambda: writer, "before": base}
        sources.count = sources.count or SOURCES
        self._sources, self._machine, self.file = sources, machine, file

    def answer(self, asked: dict) -> dict:
        """{title, attributes, candidates, temperature, which}: candidates, the fewest unsupported first."""
        record, which = record_of(asked), asked.get("which", "after")
        if which not in list(self._writers):  # a list or an object has no hash
            raise Refused("which is before or after.")
        count = number_of(asked, "candidates", 4, 1, MOST_CANDIDATES)
        temperature = number_of(asked, "temperature", 0.7, 0, 2)
        if callable(self._writers[which]):
            try:
                self._writers[which] = self._writers[which]()
            except Exception as error:
                print(error, file=sys.stderr)
                raise Refused("The model before training cannot be had; the terminal says why.", 503) from None
        writer = self._writers[which]
        greedy = temperature < 0.01  # smaller ones overflow
        sampling = replace(writer.sampling, greedy=greedy, temperature=temperature or 1.0)
        writer = replace(writer, sampling=sampling, candidates=1)
        products = self._sources.nearest(record)
        context = self._sources.context(products)
        (prompt,) = writer.encoder.prompts([writer.encoder.template.asked(record)], [context], writer.window)
        if len(prompt) >= writer.window:
            raise Refused("This is longer than the model sees: shorten it.")
        copies = range(1 if greedy else int(count))
        with self._machine.autocast():
            written = writer.write([prompt for _ in copies], [[given(record), context] for _ in copies], list(copies))
        candidates = [
            {"text": w.text, "unsupported": [[c.start, c.start + len(c.text)] for c in w.unsupported]}
            for w in sorted(written, key=lambda w: len(w.unsupported))
        ]
        shown = [{"uid": p.uid, "title": p.title, "matched": list(p.matched)} for p in products]
        taught = bool(products) or writer.claims is None
        return {"record": record, "candidates": candidates, "sources": shown, "taught": taught}

    def table(self, name: str, body: bytes) -> bytes:
        """The table with its descriptions filled in, as CSV."""
        with tempfile.TemporaryDirectory() as folder:
            file, out = Path(folder) / f"table{Path(name).suffix.lower()[:8]}", Path(folder) / "out.csv"
            try:
                file.write_bytes(body)
                titles = read_titles(file)
            except (UsageError, DataError, OSError, ValueError) as error:
                print(error, file=sys.stderr)
                raise Refused("This table cannot be read; it needs a column called title, nome or titulo.") from None
            if not 0 < len(titles.asked) <= MOST_TITLES:
                raise Refused(f"A table of 1 to {MOST_TITLES} titles, please; longer ones: generate.py --titles.")
            with Answers(out, titles) as answers:
                for i, title in enumerate(titles.asked):
                    answers.write(i, self._entry(title))
            return out.read_bytes()

    def _entry(self, title: Asked) -> dict:
        try:
            found = self.answer(title.record(self._sources.attributes, {}))
        except Refused as error:
            return {"answer": "", "error": str(error)}
        best, note = (
            found["candidates"][0],
            {} if found["taught"] else {"note": "nothing in the catalogue resembles this"},
        )
        return {
            "answer": best["text"],
            "unsupported": [{"text": best["text"][a:b]} for a, b in best["unsupported"]],
        } | note

    def verdict(self, given_: dict) -> dict:
        """Append a correction. What is rejected keeps an empty content, so data_prep.py counts it and leaves it out."""
        record, verdict = record_of(given_), given_.get("verdict")
        if verdict not in VERDICTS:
            raise Refused("verdict is accept, edit or reject.")
        answer, text = (text_of(given_, key, MOST_CHARS * 10) for key in ("answer", "text"))
        content = {"accept": answer, "edit": text, "reject": ""}[verdict]
        if verdict != "reject" and not content:
            raise Refused("There is no text to keep.")
        line = {"uid": f"correction-{uuid4().hex}"} | record | {"content": content}
        line |= {"verdict": verdict, "proposed": answer}
        with self.file.open("ab") as file:  # one write: a line is whole or absent
            file.write(json.dumps(line, ensure_ascii=False).encode("utf-8") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return {"saved": verdict}


def text_of(asked: dict, key: str, most: int = MOST_CHARS) -> str:
    text = asked.get(key, "")
    if not isinstance(text, str):
        raise Refused(f"{key} is no text.")
    if len(text) > most:
        raise Refused(f"{key} is longer than {most:,} characters.", 413)
    return text.encode("utf-8", "replace").decode("utf-8").strip()  # lone surrogates cannot be written


def number_of(asked: dict, key: str, default: float, least: float, most: float) -> float:
    value = asked.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(f"{key} is no number.")
    try:
        check_number(value, key, least, most)
    except UsageError as error:
        raise Refused(str(error)) from None
    return value


def record_of(asked: dict) -> Record:
    if not isinstance(asked, dict):
        raise Refused("This is no JSON object.")
    if not (title := text_of(asked, "title")):
        raise Refused("There is no title.")
    values = asked.get("attributes", {})
    if not isinstance(values, dict) or len(values) > MOST_ATTRIBUTES:
        raise Refused(f"attributes are at most {MOST_ATTRIBUTES} names with their values.")
    named = {attribute_name(name[:100]): text_of(values, name) for name in values}
    attributes = {name: value for name, value in named.items() if name and value}
    return {"title": title} | ({"attributes": attributes} if attributes else {})


def application(desk: Desk, port: int):
    """The ASGI application; for tests without a socket too."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    hosts, lock, waiting = {f"127.0.0.1:{port}", f"localhost:{port}"}, asyncio.Lock(), set()

    def check(request: Request, kind: str) -> None:
        if request.headers.get("host") not in hosts:
            raise Refused("Wrong Host.", 403)
        if "origin" in request.headers and request.headers["origin"] not in {f"http://{host}" for host in hosts}:
            raise Refused("Wrong Origin.", 403)
        if kind and request.headers.get("content-type", "").partition(";")[0].strip() != kind:
            raise Refused(f"Only {kind} is taken here.", 415)

    async def page(request: Request) -> Response:
        try:
            check(request, "")
        except Refused as error:
            return JSONResponse({"error": str(error)}, error.status)
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        return Response(PAGE.read_text(encoding="utf-8").replace("NONCE", nonce), 200, headers, "text/html")

    async def post(request: Request) -> Response:
        path, me = request.url.path, object()
        kind = "application/octet-stream" if path == "/table" else "application/json"
        try:
            check(request, kind)
            if len(waiting) >= WAITING:
                raise Refused("Too many requests are waiting; try again in a moment.", 503)
            waiting.add(me)
            body = b""
            async for piece in request.stream():
                body += piece
                if len(body) > MOST_BYTES.get(path, BODY):
                    raise Refused("This is too long.", 413)
            async with lock:
                if path == "/table":
                    name = request.query_params.get("name", "")
                    table = await run_in_threadpool(desk.table, name, body)
                    return Response(table, media_type="text/csv")
                try:
                    asked = json.loads(body)
                except (ValueError, RecursionError):
                    raise Refused("This is no JSON.") from None
                work = desk.verdict if path == "/verdict" else desk.answer
                return JSONResponse(await run_in_threadpool(work, asked))
        except Refused as error:
            return JSONResponse({"error": str(error)}, error.status)
        except Exception as error:  # its words may hold paths
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return JSONResponse({"error": "This did not work; the terminal says why."}, 500)
        finally:
            waiting.discard(me)

    posts = [Route(path, post, methods=["POST"]) for path in ("/answer", "/table", "/verdict")]
    return Starlette(routes=[Route("/", page), *posts])


def serve(desk: Desk, port: int) -> int:
    """Answer until Ctrl-C; 0. `port` 0 takes a free one. Raises `UsageError` without the packages or the port."""
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError:
        raise UsageError("The page takes two packages more: pip install starlette uvicorn") from None
    with socket.socket() as listening:
        if os.name != "nt":  # there it would share the port with another program
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port))
        except OSError:
            raise UsageError(f"Port {port} is in use: name another with --port, or 0 for a free one.") from None
        port = listening.getsockname()[1]
        listening.listen()
        print(f"http://127.0.0.1:{port}  (corrections: {desk.file}; Ctrl-C ends it)", flush=True)
        config = uvicorn.Config(
            application(desk, port),
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        try:
            uvicorn.Server(config).run([listening])
        except KeyboardInterrupt:
            print("Stopped.", file=sys.stderr)
    return 0
