"""The local page: who is answered, what is refused, and a correction that changes what the model says."""

import asyncio
import json
import random
import re
from types import SimpleNamespace

import pytest
from conftest import RECORDS, write_data

from catalogue.judge import Options
from catalogue.prepare import prepare
from model.sample import Sampling
from run.candidates import Writer
from run.desk import Desk
from run.device import pick_machine
from run.loading import load
from run.serve import WAITING, application
from run.sources import Sources
from text.template import QA

pytest.importorskip("starlette")
HOST = "127.0.0.1:7860"


def call(app, path="/answer", body=b"{}", method="POST", **headers) -> SimpleNamespace:
    """One request, as a server hands it over."""
    headers = {"host": HOST, "content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"name=a.csv",
        "headers": [(k.encode(), v.encode()) for k, v in headers.items()], "root_path": "", "scheme": "http",
        "http_version": "1.1",
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    told = b"".join(m.get("body", b"") for m in sent).decode("utf-8")
    return SimpleNamespace(status=sent[0]["status"], text=told, headers=dict(sent[0]["headers"]))


def ask(app, path="/answer", **asked) -> SimpleNamespace:
    return call(app, path, json.dumps(asked).encode())


def desk_of(weights, tmp_path) -> Desk:
    model, encoder = load(str(weights), QA)
    sampling = Sampling(max_new_tokens=12, greedy=False, temperature=0.7, seed=1)
    raw = tmp_path / "raw.jsonl"
    raw.write_text("".join(json.dumps(record) + "\n" for record in RECORDS), encoding="utf-8")
    prepare([raw], tmp_path / "catalogue", Options(val_share=0, test_share=0), say=lambda said: None)
    sources = Sources(tmp_path / "catalogue", 0, False)
    writer = Writer(model, encoder, sampling, sources.claims())
    return Desk(writer, lambda: writer, sources, pick_machine("cpu"), tmp_path / "corrections.jsonl")


@pytest.fixture
def desk(gpt2_folder, tmp_path) -> Desk:
    return desk_of(gpt2_folder, tmp_path)


@pytest.fixture
def app(desk):
    return application(desk, 7860)


def test_the_page_asks_for_nothing_from_elsewhere(app):
    page = call(app, "/", b"", "GET")
    assert page.status == 200 and "default-src 'none'" in page.headers[b"content-security-policy"].decode()
    assert not re.search(r"https?://|innerHTML", page.text)


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1:1"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"content_type": "text/plain"}, 415),
        ({"origin": f"http://{HOST}"}, 200),
    ],
)
def test_only_the_page_itself_is_answered(app, headers, status):
    assert call(app, body=b'{"title": "Mug", "candidates": 1}', **headers).status == status


def test_titles_are_text_within_limits(app):
    assert json.loads(ask(app, title="<script>", candidates=1).text)["record"]["title"] == "<script>"
    assert ask(app, title="a" * 100_000).status == 413
    assert ask(app, title="Mug\x00\x1b[31m\ud800", candidates=1).status == 200
    assert call(app, body=b" " * 2**19).status == 413


def test_candidates_come_with_what_nothing_supports_and_their_sources(app):
    told = json.loads(ask(app, title="Blue Mug", candidates=3).text)
    assert len(told["candidates"]) == 3 and told["taught"] and told["sources"][0]["title"] == "Blue Mug"
    assert not json.loads(ask(app, title="Zyzzyva").text)["taught"]


def test_a_table_comes_back_with_its_columns(app):
    table = call(app, "/table", b"title,colour\nMug,blue\n", content_type="application/octet-stream")
    assert table.status == 200 and "title,colour,description" in table.text and "Mug,blue," in table.text


def test_fuzzed_requests_neither_crash_nor_tell_paths(app, tmp_path):
    chance = random.Random(0)
    values = ["", "Mug", None, 3, -1, 1e308, True, [], {}, ["x"], {"a": 1}, "\ud800", "\x00", "../../etc", "x" * 3000]
    keys = ("title", "attributes", "candidates", "temperature", "which", "verdict", "answer", "text")
    for _ in range(1000):
        asked = {key: chance.choice(values) for key in keys if chance.random() < 0.6}
        body = json.dumps(chance.choice([asked, asked, asked, chance.choice(values)])).encode()
        if chance.random() < 0.2:
            body = body[: chance.randrange(len(body) + 1)] + chance.randbytes(3)
        reply = call(app, chance.choice(("/answer", "/verdict", "/table", "/none")), body)
        assert reply.status in (200, 400, 404, 413, 415), (reply, body)
        assert str(tmp_path) not in reply.text and "Traceback" not in reply.text


def test_verdicts_are_prepared_and_the_rejected_ones_counted(app, desk, tmp_path):
    kept = "The owner says it is a mug of tin."
    assert ask(app, "/verdict", title="Mug", answer=kept, verdict="accept").status == 200
    assert (
        ask(app, "/verdict", title="Cup", answer="x", verdict="edit", text="A cup of clay, made by hand.").status == 200
    )
    assert ask(app, "/verdict", title="Bowl", answer="It flies to the moon and back.", verdict="reject").status == 200
    options = Options(val_share=0, test_share=0)
    counts = prepare([desk.file], tmp_path / "out", options, say=lambda said: None)
    told = (tmp_path / "out" / "train.jsonl").read_text(encoding="utf-8")
    assert counts.records == 2 and kept in told and "made by hand" in told and "moon" not in told
    assert ask(app, "/verdict", title="Mug", verdict="edit", text="").status == 400


def test_a_correction_that_is_trained_on_changes_the_answer(app, desk, gpt2_folder, tmp_path, train):
    before = json.loads(ask(app, title="Blue Mug", temperature=0).text)["candidates"][0]["text"]
    text = "A tin mug, tin, tin, tin."
    ask(app, "/verdict", title="Blue Mug", answer=before, verdict="edit", text=text)
    prepare([desk.file], tmp_path / "p", Options(val_share=0, test_share=0), say=lambda said: None)
    lines = (tmp_path / "p" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    write_data(tmp_path / "data", [json.loads(line) for line in lines], RECORDS[:1], RECORDS[1:2])
    train("--model", gpt2_folder, "--max_steps", 50, "--learning_rate", 1e-2, "--run_name", "corrected")
    after = desk_of(tmp_path / "runs" / "corrected" / "final", tmp_path).answer({"title": "Blue Mug", "temperature": 0})
    assert before != after["candidates"][0]["text"] and "tin" in after["candidates"][0]["text"]


def test_more_than_can_wait_are_refused(app, desk):
    desk.answer = lambda asked: {}

    async def all_at_once():
        replies = []

        async def one():
            async def receive():
                await gate.wait()
                return {"type": "http.request", "body": b"{}", "more_body": False}

            async def send(message):
                if message["type"] == "http.response.start":
                    replies.append(message["status"])
                    gate.set()

            headers = [(b"host", HOST.encode()), (b"content-type", b"application/json")]
            scope = {"type": "http", "method": "POST", "path": "/answer", "query_string": b"", "headers": headers}
            await app(scope | {"root_path": "", "scheme": "http"}, receive, send)

        gate = asyncio.Event()
        await asyncio.gather(*(one() for _ in range(WAITING + 2)))
        return replies

    replies = asyncio.run(all_at_once())
    assert replies.count(503) == 2 and replies.count(200) == WAITING
