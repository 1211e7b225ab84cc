"""The local page: a model that is asked, and corrected, in a browser on the same machine.

Only 127.0.0.1 is listened on, and only requests that name it as Host, and as Origin if they name one, are answered: so
no other page in the browser can ask the model or write a correction. One answer is written at a time.
"""

import asyncio
import json
import os
import re
import secrets
import socket
import sys
from pathlib import Path

from run.cli import UsageError
from run.desk import Desk, Refused
from run.sayings import PAGE, language_of

FILE = Path(__file__).with_suffix(".html")
TABLE, BODY = 2**22, 2**18  # bytes of a table, of any other request
WAITING = 8  # requests, the one that is answered included


def application(desk: Desk, port: int, speech: str | None = None):
    """The ASGI application; for tests without a socket too. `speech`: of its sentences; None: the browser's."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    hosts, lock, waiting = {f"127.0.0.1:{port}", f"localhost:{port}"}, asyncio.Lock(), set()

    def check(request: Request, kind: str) -> None:
        if request.headers.get("host") not in hosts:
            raise Refused("not understood", "Wrong Host.", status=403)
        if "origin" in request.headers and request.headers["origin"] not in {f"http://{host}" for host in hosts}:
            raise Refused("not understood", "Wrong Origin.", status=403)
        if kind and request.headers.get("content-type", "").partition(";")[0].strip() != kind:
            raise Refused("not understood", f"Only {kind} is taken here.", status=415)

    def speech_of(request: Request) -> str:
        return speech or language_of(request.headers.get("accept-language", ""))

    def refusal(request: Request, error: Refused) -> Response:
        return JSONResponse({"error": error.said(speech_of(request))}, error.status)

    async def page(request: Request) -> Response:
        try:
            check(request, "")
        except Refused as error:
            return refusal(request, error)
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        spoken = speech_of(request)
        words = PAGE[spoken] | {"NONCE": nonce, "LANG": spoken, "WORDS": json.dumps(PAGE[spoken]), "MOST": str(TABLE)}
        text = re.sub(r"\[\[([\w ]+)]]", lambda mark: words[mark[1]], FILE.read_text(encoding="utf-8"))
        return Response(text, 200, headers, "text/html")

    async def post(request: Request) -> Response:
        path, me = request.url.path, object()
        kind = "application/octet-stream" if path == "/table" else "application/json"
        try:
            check(request, kind)
            if len(waiting) >= WAITING:
                raise Refused("too many requests", status=503)
            waiting.add(me)
            body = b""
            async for piece in request.stream():
                body += piece
                if len(body) > (TABLE if path == "/table" else BODY):
                    raise Refused("too large", status=413)
            async with lock:
                if path == "/table":
                    name = request.query_params.get("name", "")
                    table = await run_in_threadpool(desk.table, name, body)
                    return Response(table, media_type="text/csv")
                try:
                    asked = json.loads(body)
                except (ValueError, RecursionError):
                    raise Refused("not understood", "This is no JSON.") from None
                work = desk.verdict if path == "/verdict" else desk.answer
                return JSONResponse(await run_in_threadpool(work, asked))
        except Refused as error:
            return refusal(request, error)
        except Exception as error:  # its words may hold paths
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return refusal(request, Refused("no success", status=500))
        finally:
            waiting.discard(me)

    posts = [Route(path, post, methods=["POST"]) for path in ("/answer", "/table", "/verdict")]
    return Starlette(routes=[Route("/", page), *posts])


def serve(desk: Desk, port: int, speech: str | None = None) -> int:
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
        try:
            config = uvicorn.Config(
                application(desk, port, speech),
                log_level="error",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=5,
            )
            print(f"http://127.0.0.1:{port}  (corrections: {desk.file}; Ctrl-C ends it)", flush=True)
            server = uvicorn.Server(config)
            end = server.handle_exit

            def handle_exit(*signal) -> None:
                desk.stop.set()  # else it would wait for a table to be written to its end
                end(*signal)

            server.handle_exit = handle_exit  # type: ignore[method-assign,assignment]  # uvicorn has no other way
            server.run([listening])
        except KeyboardInterrupt:
            print("Stopped.", file=sys.stderr)
    return 0
