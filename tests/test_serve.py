"""The local page: who is answered, what is refused, and a correction that changes what the model says."""

import asyncio
import gzip
import json
import random
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import RECORDS, zipped

from catalogue.judge import Options
from catalogue.prepare import prepare
from model.sample import Sampling
from run.candidates import Writer
from run.desk import Desk, shown
from run.device import pick_machine
from run.loading import load
from run.sayings import PAGE
from run.serve import FILE, WAITING, application
from run.sources import Sources
from text.template import QA

pytest.importorskip("starlette")
HOST = "127.0.0.1:7860"


def call(app, path="/answer", body=b"{}", method="POST", name="a.csv", **headers) -> SimpleNamespace:
    """One request, as a server hands it over."""
    headers = {"host": HOST, "content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(),
        "query_string": f"name={name}".encode(),
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
    assert not re.search(r"https?://|innerHTML|\[\[\w", page.text)


def test_the_page_and_its_refusals_speak_the_browser_s_language_or_the_one_that_is_asked_for(app, desk):
    assert PAGE["en"].keys() == PAGE["pt"].keys()
    for what, text in PAGE["en"].items():
        assert re.findall("{.*?}", text) == re.findall("{.*?}", PAGE["pt"][what]), what
    used = set(re.findall(r"words\.(\w+)|words\['([\w ]+)']|\[\[([a-z ]+)]]", FILE.read_text(encoding="utf-8")))
    assert {"".join(names) for names in used} < PAGE["en"].keys() and len(used) > 20
    for accepted, speech in (("pt-BR,pt;q=0.9,en;q=0.8", "pt"), ("en-US,pt;q=0.5", "en"), ("", "en"), ("*", "en")):
        page = call(app, "/", b"", "GET", accept_language=accepted).text
        assert f'<html lang="{speech}">' in page and PAGE[speech]["describe"] in page
    refused = call(app, body=b'{"title": " "}', accept_language="pt")
    assert json.loads(refused.text)["error"] == "Falta o título."
    portuguese = application(desk, 7860, "pt")
    assert '<html lang="pt">' in call(portuguese, "/", b"", "GET", accept_language="en").text
    assert "2,000" in json.loads(call(portuguese, body=json.dumps({"title": "a" * 3000}).encode()).text)["error"]


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


def test_what_is_shown_holds_no_control_and_its_places_stay():
    assert shown("a\x00b\x1b[31m\u202ec\ud800\n<b>") == "a\ufffdb\ufffd[31m\ufffdc\ufffd\n<b>"


def test_candidates_come_with_what_nothing_supports_and_their_sources(app):
    told = json.loads(ask(app, title="Blue Mug", candidates=3).text)
    assert len(told["candidates"]) == 3 and told["taught"] and told["sources"][0]["title"] == "Blue Mug"
    assert not json.loads(ask(app, title="Zyzzyva").text)["taught"]


def test_a_table_comes_back_with_its_columns(app):
    table = call(app, "/table", b"title,colour\nMug,blue\n", content_type="application/octet-stream")
    assert table.status == 200 and "title,colour,description" in table.text and "Mug,blue," in table.text


TABLES = [
    b"title,colour\nMug,blue\n",
    b"title\n",
    b"",
    b'[{"title": "Mug"}]',
    b'{"nome": "Caneca"}\n',
    b"Mug\n<script>\n",
]
NAMES = ["", "a.csv", "a.json", "a.xlsx", "a.zip", "a.gz", "a.txt", "a.xml", "..", "../../etc/passwd", "a" * 300]
NAMES += ["%00.csv", "a.%00", "%ED%A0%80.csv"]


@pytest.mark.slow
def test_fuzzed_requests_neither_crash_nor_tell_paths(app, desk, tmp_path, capsys):
    chance, work = random.Random(0), tmp_path / "work"
    values = [
        "",
        "Mug",
        None,
        3,
        -1,
        1e308,
        True,
        [],
        {},
        ["x"],
        {"a": 1},
        "\ud800",
        "\x00",
        "../../etc",
        "x" * 3000,
        "edit",
    ]
    keys = ("title", "attributes", "candidates", "temperature", "which", "verdict", "answer", "text")
    work.mkdir()
    tables, before = 0, [path.name for path in tmp_path.iterdir()]
    writer = desk._writers["after"]
    desk._writers |= {"after": replace(writer, sampling=replace(writer.sampling, max_new_tokens=2))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(work))
        for _ in range(1000):
            path = chance.choice(("/answer", "/verdict", "/table", "/none"))
            headers = {"content_type": "application/octet-stream"} if path == "/table" else {}
            if chance.random() < 0.1:
                headers |= chance.choice([{"host": "evil.example"}, {"origin": "null"}, {"content_type": "text/plain"}])
            asked = {key: chance.choice(values) for key in keys if chance.random() < 0.6}
            body = json.dumps(chance.choice([asked, asked, asked, chance.choice(values)])).encode()
            if path == "/table":
                body = chance.choice([*TABLES, zipped(**{"../a.csv": TABLES[0]}), gzip.compress(TABLES[0]), body])
            if chance.random() < 0.2:
                place = chance.randrange(len(body) + 1)
                body = body[:place] + chance.randbytes(3) + body[place + chance.randrange(4) :]
            reply = call(app, path, body, name=chance.choice(NAMES), **headers)
            is_strange = not headers.items() <= {("content_type", "application/octet-stream")}
            expected = (403, 404, 415) if is_strange else (200, 400, 404, 413)
            assert reply.status in expected, (reply, path, body)
            told = reply.text.replace("../../etc", "")  # which was asked for
            assert not any(word in told for word in (str(tmp_path), "Traceback", "/tmp", "site-packages")), reply
            tables += path == "/table" and reply.status == 200
    assert tables > 50 and not list(work.iterdir())  # tables were written, and nothing was left behind
    assert {path.name for path in tmp_path.iterdir()} <= {*before, "corrections.jsonl"}


def test_a_table_that_unpacks_to_more_than_is_taken_is_refused(app):
    many = b"title\n" + b"Mug\n" * 2**20
    for body, name in ((gzip.compress(many), "a.csv"), (zipped(a=many), "a.zip"), (many[:2400], "a.csv")):
        assert call(app, "/table", body, content_type="application/octet-stream", name=name).status == 400
    assert call(app, "/table", many, content_type="application/octet-stream").status == 413


def test_ctrl_c_ends_an_answer_and_a_table_at_the_next_token(app, desk):
    written = []

    def pressed(*_) -> None:
        written.append(1)
        if len(written) == 3:
            desk.stop.set()

    desk._writers["after"].model.register_forward_pre_hook(pressed)
    for path, body in (("/answer", b'{"title": "Mug"}'), ("/table", TABLES[0])):
        desk.stop.clear()
        written.clear()
        kind = "application/octet-stream" if path == "/table" else "application/json"
        reply = call(app, path, body, content_type=kind)
        assert reply.status == 503 and json.loads(reply.text)["error"] == PAGE["en"]["no more"] and len(written) == 3


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


@pytest.mark.slow
def test_a_correction_that_is_trained_on_beside_the_catalogue_changes_the_answer(
    app, desk, gpt2_folder, tmp_path, train
):
    """All the way: asked, edited on the page, prepared together with the catalogue, trained for 50 steps, asked again.
    The same steps on the catalogue alone do not teach it."""
    text = "A tin mug, tin, tin, tin."
    before = json.loads(ask(app, title="Blue Mug", temperature=0).text)["candidates"][0]["text"]
    assert ask(app, "/verdict", title="Blue Mug", answer=before, verdict="edit", text=text).status == 200

    def answer_after(name: str, inputs: list) -> str:
        data, options = tmp_path / "data", Options(val_share=0.15, test_share=0.15)  # by itself this title is held out
        counts = prepare(inputs, data, options, say=lambda said: None)
        assert counts.corrections == len(inputs) - 1 and counts.kept["train"] >= 5
        contents = [json.loads(line)["content"] for line in (data / "train.jsonl").open(encoding="utf-8")]
        assert (text in contents) == (name == "corrected")
        options = ("--max_steps", 50, "--learning_rate", 1e-2, "--question_share", 0)
        assert train("--model", gpt2_folder, "--run_name", name, "--data", data, *options) == 0
        desk = desk_of(tmp_path / "runs" / name / "final", tmp_path)
        return desk.answer({"title": "Blue Mug", "temperature": 0})["candidates"][0]["text"]

    catalogue = tmp_path / "raw.jsonl"
    assert "tin" not in answer_after("alone", [catalogue])
    after = answer_after("corrected", [catalogue, desk.file])
    assert "A tin mug, tin" in after and after != before


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
