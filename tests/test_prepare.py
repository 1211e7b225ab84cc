"""`prepare` and `data_prep.py`: nothing lost, nothing twice, nothing torn."""

import gzip
import html
import json
import os
import re
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import psutil
import pytest
from conftest import shared_assets
from hypothesis import example, given, settings
from hypothesis import strategies as st

import data_prep
from catalogue import prepare as module
from catalogue.duplicates import THRESHOLD, shingles
from catalogue.fields import Fields
from catalogue.judge import Options, Reason, read_record, split_of
from catalogue.outputs import SPLITS, settle
from catalogue.prepare import prepare
from catalogue.records import MAX_RECORD_BYTES
from catalogue.workers import interrupts_held, ordered
from text.errors import DataError

ROOT = Path(__file__).parent.parent
CONTENT = "A mug that keeps the coffee hot."


def product(number: int, **fields) -> bytes:
    record = {"uid": f"B{number}", "title": f"Mug {number}", "content": f"{CONTENT} Number {number}.", **fields}
    return json.dumps(record).encode("utf-8")


def catalogue(path: Path, lines: list[bytes]) -> Path:
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def records(folder: Path, split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


ONE_OF_EACH = [
    (b"", "blank line"),
    (b"  \r", "blank line"),
    (b"{not json", "broken line"),
    (b'{"title": "caf\xe9\xc3\xa9", "content": "torn"}', "not UTF-8"),
    (b"[" * 100_000, "broken line"),
    (b'{"uid": ' + b"9" * 5000 + b"}", "broken line"),
    (b'["a list"]', "not an object"),
    (b"null", "not an object"),
    (b'"' + b"x" * MAX_RECORD_BYTES, "longer than 4 MB"),
    (product(1, title=None), "missing title"),
    (product(1, title="&nbsp; \u200b"), "missing title"),
    (product(1, title={"en": "Mug"}), "missing title"),
    (product(1, title='<span class="a-size-medium a-color-secondary"'), "markup fragment as title"),
    (product(1, content=None), "empty content"),
    (product(1, content="<p> </p>"), "empty content"),
    (product(1, content=[]), "empty content"),
    (product(1, content=True), "empty content"),
    (product(1, title="A Mug with a lid of iron", content="a mug with a <b>lid</b> of iron"), "content equal to title"),
    (product(1, content="A mug."), "content too short"),
    (product(0, uid="other", title="MUG 0"), "exact duplicate"),
    (product(0, title="Another title"), "near duplicate"),
]  # fmt: skip


def test_every_line_is_accounted_for_under_its_reason(tmp_path):
    source = catalogue(tmp_path / "trn.json", [product(0), *(line for line, _ in ONE_OF_EACH), product(2)])
    counts = prepare([source], tmp_path / "data")
    expected = [reason for _, reason in ONE_OF_EACH]
    assert counts.reasons == {reason: expected.count(reason) for reason in Reason}
    assert counts.records == 2
    assert counts.lines == 2 + len(ONE_OF_EACH)
    report = json.loads((tmp_path / "data" / "report.json").read_text(encoding="utf-8"))
    assert (report["lines"], report["kept"], report["reasons"]) == (counts.lines, counts.kept, counts.reasons)
    assert report["inputs"] == ["trn.json"]


def test_broken_lines_are_listed_with_number_reason_and_raw_start(tmp_path):
    source = catalogue(
        tmp_path / "trn.json", [product(0), b"{caf" + b"x" * 500, b"", b"[1]\r", b"{caf\xe9\xe9\xe9\xe9"]
    )
    prepare([source], tmp_path / "data")
    assert records(tmp_path / "data", "rejects") == [
        {"input": "trn.json", "line": 2, "reason": "broken line", "start": "{caf" + "x" * 196},
        {"input": "trn.json", "line": 4, "reason": "not an object", "start": "[1]"},
        {"input": "trn.json", "line": 5, "reason": "not UTF-8", "start": "{caf\\xe9\\xe9\\xe9\\xe9"},
    ]


field = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.lists(st.text())
any_line = (
    st.binary(max_size=60)
    | st.fixed_dictionaries({}, optional={"uid": field, "title": field, "content": field}).map(
        lambda record: json.dumps(record).encode("utf-8")
    )
    | st.integers(0, 3).map(product)
)


@settings(max_examples=150, deadline=None)
@example([b'"', b'""""""title":"content":'])  # keys outside of all brackets
@given(st.lists(any_line, max_size=12))
def test_any_bytes_are_accounted_for(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("any")
    source = folder / "trn.json"
    source.write_bytes(b"\n".join([product(99), product(98), product(97), *lines]))
    counts = prepare([source], folder / "data", Options(val_share=0, test_share=0))
    data = source.read_bytes()
    assert counts.lines == data.count(b"\n") + (not data.endswith(b"\n"))
    kept = records(folder / "data", "train")
    assert len(kept) == counts.kept["train"] == counts.lines - sum(counts.reasons.values())
    assert all(record["uid"] and record["title"] and len(record["content"]) >= 20 for record in kept)


def test_fields_may_be_lists_numbers_and_need_no_uid(tmp_path):
    source = catalogue(
        tmp_path / "trn.json",
        [
            b'\xef\xbb\xbf{"title": 1984, "content": ["A novel &amp;", "a <b>warning</b>, first printed in 1949."]}\r',
            product(5, uid=17, title=["Mug", "5"]),
        ],
    )
    prepare([source], tmp_path / "data", Options(val_share=0, test_share=0))
    assert records(tmp_path / "data", "train") == [
        {"uid": "1", "title": "1984", "content": "A novel & a warning, first printed in 1949."},
        {"uid": "17", "title": "Mug 5", "content": f"{CONTENT} Number 5."},
    ]
    nothing = {"title": float("nan"), "content": "what pandas writes for nothing"}
    assert read_record(nothing, Fields("title", "content"), 20) == "missing title"


def test_accents_survive_as_they_are_in_the_file(tmp_path):
    source = catalogue(tmp_path / "trn.json", [product(1, title="Caneca térmica de aço inoxidável")])
    prepare([source], tmp_path / "data", Options(val_share=0, test_share=0))
    assert '"title": "Caneca térmica de aço inoxidável"'.encode() in (tmp_path / "data" / "train.jsonl").read_bytes()


def test_the_same_bytes_come_out_twice_and_from_gzip(tmp_path):
    lines = [product(number) for number in range(300)]
    plain = catalogue(tmp_path / "trn.json", lines)
    packed = tmp_path / "sub" / "trn.json"  # gzip is known by its content, not by its name
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    for source, name in ((plain, "a"), (plain, "b"), (packed, "c")):
        prepare([source], tmp_path / name)
    assert everything(tmp_path / "a") == everything(tmp_path / "b") == everything(tmp_path / "c")
    assert set(module.OUTPUTS) - set(everything(tmp_path / "a")) == {"report.html"}


def test_no_title_lands_in_two_splits_and_shares_hold(tmp_path):
    variants = ("Mug {}", "MUG {}!", "mug  {}", "<b>Mug</b> {}")
    lines = [
        product(i, title=title.format(i), content=f"{CONTENT} {i} {title}") for i in range(3000) for title in variants
    ]
    prepare([catalogue(tmp_path / "trn.json", lines)], tmp_path / "data", Options(val_share=0.1, test_share=0.2))
    numbers = {s: {r["title"].split()[-1].strip("!") for r in records(tmp_path / "data", s)} for s in SPLITS}
    assert not (numbers["train"] & numbers["val"] or numbers["train"] & numbers["test"])
    assert not numbers["val"] & numbers["test"]
    assert len(numbers["val"]) / 3000 == pytest.approx(0.1, abs=0.02)
    assert len(numbers["test"]) / 3000 == pytest.approx(0.2, abs=0.03)


def test_the_split_of_a_title_is_the_same_on_every_machine():
    titles = [f"Caneca térmica {number}" for number in range(12)]
    assert "".join(split_of(title, 0.25, 0.25)[1] for title in titles) == "raaeeraarerr"  # second letters


def test_any_number_of_workers_writes_the_same_bytes(tmp_path):
    lines = [product(i % 2500, uid=None, content=f"<p>{CONTENT}</p> {f'Word {i}. ' * 30}") for i in range(3000)]
    lines[700] = b"{"
    source = catalogue(tmp_path / "trn.json", lines)
    for workers in (1, 2, 3):
        counts = prepare([source, source], tmp_path / str(workers), Options(report=workers < 3), workers=workers)
    one, two, three = (everything(tmp_path / str(workers)) for workers in (1, 2, 3))
    assert one == two
    assert one == three | {name: one[name] for name in ("report.html",)}
    assert counts.lines == 6000
    assert counts.reasons["exact duplicate"] == 2999


def test_a_worker_s_error_ends_the_run(tmp_path):
    with pytest.raises(ZeroDivisionError):
        list(ordered((1).__truediv__, [1, 2, 0, 3], workers=2))


def test_near_duplicates_never_land_in_different_splits_and_can_be_kept(tmp_path):
    text = " ".join(f"word{i}" for i in range(60))
    lines = [product(i, content=f"{text.replace('word30', f'other{i}')}!") for i in range(200)]
    source = catalogue(tmp_path / "trn.json", lines)
    counts = prepare([source], tmp_path / "data", Options(test_share=0.3))
    assert (counts.records, counts.reasons["near duplicate"]) == (1, 199)
    assert prepare([source], tmp_path / "data", Options(drop_near_duplicates=False)).records == 200


def test_the_bundled_catalogue_loses_hardly_a_record_as_a_near_duplicate(tmp_path):
    counts = prepare([ROOT / "examples" / "catalogue.json.gz"], tmp_path / "data")
    assert counts.records > 15_400  # of the few without a brand, two may be described almost alike
    assert counts.reasons["near duplicate"] < counts.records / 500


def test_the_encoding_is_given_or_told_by_evidence(tmp_path):
    lines = [json.dumps({"title": f"Açúcar {i}", "content": "Açúcar não refinado, para o café. é"}, ensure_ascii=False)
             for i in range(30)]  # fmt: skip
    source = tmp_path / "loja.jsonl"
    source.write_text("\n".join([*lines, lines[0].replace("Açúcar 0", "\x81")]), encoding="latin-1")
    for encoding in (None, "cp1252"):
        options = Options(encoding=encoding, drop_near_duplicates=False, val_share=0)
        counts = prepare([source], tmp_path / "data", options)
        assert (counts.records, counts.reasons["not UTF-8"]) == (30, 1)  # byte 0x81 is no letter of cp1252
        assert counts.as_cp1252 == (0 if encoding else 30)
        assert "Açúcar" in records(tmp_path / "data", "train")[0]["title"]
    with pytest.raises(DataError, match="no encoding 'klingon'"):
        prepare([source], tmp_path / "data", Options(encoding="klingon"))


def test_progress_adds_up_to_the_size_of_the_inputs(tmp_path):
    plain = catalogue(tmp_path / "a.json", [product(number) for number in range(6000)])
    packed = tmp_path / "b.json.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    steps: list[int] = []
    prepare([plain, packed], tmp_path / "data", progress=steps.append)
    assert sum(steps) == plain.stat().st_size + packed.stat().st_size
    assert min(steps) >= 0
    assert len(steps) > 4


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, RuntimeError])
def test_a_failure_midway_leaves_the_older_outputs_and_no_half_file(tmp_path, error):
    source = catalogue(tmp_path / "trn.json", [product(number) for number in range(6000)])
    prepare([catalogue(tmp_path / "old.json", [product(1)])], tmp_path / "data", Options(val_share=0, test_share=0))
    before = everything(tmp_path / "data")
    calls = []

    def fail_later(_):
        calls.append(1)
        if len(calls) == 3:
            raise error

    with pytest.raises(error):
        prepare([source], tmp_path / "data", progress=fail_later)
    assert everything(tmp_path / "data") == before


class Killed(BaseException):
    """Stands for kill -9: nothing that the program does about it is allowed to help."""


@pytest.mark.parametrize("step", range(40))
def test_killed_at_any_step_a_folder_holds_all_the_older_or_all_the_new_outputs(tmp_path, monkeypatch, step):
    """Every call that changes the disk is a step; from the chosen one on all of them fail."""
    old = catalogue(tmp_path / "old.json", [product(1)])
    new = catalogue(tmp_path / "new.json", [product(2), product(3)])
    options = Options(val_share=0, test_share=0, catalogue=False)
    prepare([new], tmp_path / "whole", options)
    prepare([old], tmp_path / "data", options)
    (tmp_path / "data" / "report.html").write_text("of the older data", encoding="utf-8")
    before = everything(tmp_path / "data")
    steps = []

    def mortal(change):
        def call(*args, **options):
            steps.append(change)
            if len(steps) > step:
                raise Killed
            return change(*args, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "write_text"):
            patch.setattr(Path, name, mortal(getattr(Path, name)))
        patch.setattr(os, "fsync", mortal(os.fsync))
        killed = False
        try:
            prepare([new], tmp_path / "data", options)
        except Killed:
            killed = True
    settle(tmp_path / "data")  # as any reader does
    after = {name: content for name, content in everything(tmp_path / "data").items() if not name.endswith(".new")}
    assert after == everything(tmp_path / "whole") if not killed else after in (before, everything(tmp_path / "whole"))
    assert killed == (len(steps) > step)
    prepare([new], tmp_path / "data", options)
    assert everything(tmp_path / "data") == everything(tmp_path / "whole")


def test_ctrl_c_between_two_renames_comes_after_the_last(tmp_path, monkeypatch):
    source = catalogue(tmp_path / "trn.json", [product(number) for number in range(300)])
    prepare([source], tmp_path / "whole")
    prepare([catalogue(tmp_path / "old.json", [product(1)])], tmp_path / "data", Options(val_share=0, test_share=0))
    rename, renamed = Path.replace, []

    def interrupted(path, target):
        renamed.append(target)
        if len(renamed) == 3:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare([source], tmp_path / "data")
    assert everything(tmp_path / "data") == everything(tmp_path / "whole")


def test_data_that_cannot_be_used_is_said_in_a_sentence(tmp_path):
    def error(inputs, **options):
        with pytest.raises(DataError) as caught:
            prepare(inputs, tmp_path / "data", Options(**options))
        return str(caught.value)

    good = catalogue(tmp_path / "good.json", [product(number) for number in range(500)])
    torn = tmp_path / "torn.json.gz"
    torn.write_bytes(gzip.compress(good.read_bytes())[:-20])
    scrambled = tmp_path / "scrambled.json.gz"
    scrambled.write_bytes(gzip.compress(b"")[:10] + b"\xff" * 50)
    empty = tmp_path / "empty.json"
    empty.touch()
    one = catalogue(tmp_path / "one.json", [product(1)])
    array = catalogue(tmp_path / "array.json", [b"[", b"{}", b"]", b""])
    assert "Extreme Classification Repository" in error([tmp_path / "nix.json"])
    assert "nix.json" in error([good, tmp_path / "nix.json"])
    (tmp_path / "folder").mkdir()
    assert "holds no catalogue" in error([tmp_path / "folder"])
    assert "damaged or was cut off" in error([torn])
    assert "damaged or was cut off" in error([scrambled])
    assert "no field for the title and the content among none" in error([array])
    assert "There is nothing in it" in error([empty])
    assert "must not be negative" in error([good], val_share=float("nan"))
    assert "must not be negative" in error([good], val_share=0.5, test_share=0.5)
    assert "at least 1" in error([good], min_content_chars=0)
    assert "left to train on" in error([one], test_share=0.999999, val_share=0)
    assert not everything(tmp_path / "data")


def script(*args, cwd: Path) -> subprocess.CompletedProcess:
    """data_prep.py as a person runs it; its stderr is no terminal, so it shows no bar."""
    command = [sys.executable, str(ROOT / "data_prep.py"), *map(str, args)]
    environment = {**os.environ, "PYTHONWARNDEFAULTENCODING": ""}  # matplotlib opens a file without naming its encoding
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, encoding="utf-8", check=False)


def test_script_prints_where_the_lines_went_and_what_to_do_next(tmp_path):
    source = catalogue(tmp_path / "trn.json", [*(product(number) for number in range(98)), b"{", b"{"])
    done = script("trn.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert 'title from "title", content from "content", uid from "uid"' in done.stdout
    rows = {line.rsplit(maxsplit=2)[0].strip(): line.split()[-2:] for line in done.stdout.splitlines() if "%" in line}
    assert rows["lines read"] == ["100", "100.0%"]
    assert rows["kept"] == ["98", "98.0%"]
    assert rows["broken line"] == ["2", "2.0%"]
    assert int(rows["train"][0]) == len(records(tmp_path / "data", "train"))
    assert done.stdout.endswith("data is ready. Next: python train.py\n")
    elsewhere = script(source, "--output-dir", "other", "--min-content-chars=5", cwd=tmp_path)
    assert elsewhere.stdout.endswith("Next: python train.py --data other\n")


def test_script_exit_codes_and_one_sentence_instead_of_a_traceback(tmp_path):
    good = catalogue(tmp_path / "good.json", [product(number) for number in range(50)])
    bad = catalogue(tmp_path / "bad.json", [b"{"])
    for args, code, words in [
        ((), 2, "which catalogue?"),
        (("nix.json",), 2, "no file nix.json"),
        ((bad,), 2, "broken line 1"),
        ((good, "--val_shar", "0.1"), 2, "did you mean --val_share?"),
        ((good, "--test_share", "1"), 2, "below 1"),
        ((good, "--output_dir", good / "data"), 6, "--output_dir"),  # root may write anywhere but below a file
    ]:
        done = script(*args, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_ctrl_c_is_a_sentence_and_exit_130(tmp_path, monkeypatch, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    source = catalogue(tmp_path / "good.json", [product(1)])
    monkeypatch.setattr(module, "prepare", interrupted)
    monkeypatch.setattr(sys, "argv", ["data_prep.py", str(source)])
    assert data_prep.main() == 130
    assert "no half-written file" in capsys.readouterr().err


def started(folder: Path, *args) -> subprocess.Popen:
    """data_prep.py reading from a pipe that stays open, past its first block."""
    command = [sys.executable, str(ROOT / "data_prep.py"), "-", "--no_report", *args]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # A shell that started the tests in the background had them ignore SIGINT, and children inherit that.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=folder, start_new_session=True, preexec_fn=listen, **pipes)
    process.stdin.write(b"".join(product(number) + b"\n" for number in range(8000)))
    process.stdin.flush()
    assert b'title from "title"' in process.stdout.readline()
    return process


@pytest.mark.skipif(os.name != "posix", reason="signals as a terminal sends them, POSIX only")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_in_the_middle_is_exit_130_and_no_half_file(tmp_path, workers):
    process = started(tmp_path, "--workers", workers)
    os.killpg(process.pid, signal.SIGINT)  # a terminal interrupts the workers too, here while they start
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert b"no half-written file" in said
    assert b"Traceback" not in said
    assert not everything(tmp_path / "data")


@pytest.mark.skipif(os.name != "posix", reason="kill -9, POSIX only")
def test_kill_9_in_the_middle_leaves_the_older_outputs_and_no_worker(tmp_path):
    old = catalogue(tmp_path / "old.json", [product(1)])
    prepare([old], tmp_path / "data", Options(val_share=0, test_share=0))
    before = everything(tmp_path / "data")
    process = started(tmp_path, "--workers", "2")
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    assert {name: data for name, data in everything(tmp_path / "data").items() if not name.endswith(".new")} == before
    prepare([old], tmp_path / "data", Options(val_share=0, test_share=0))
    assert everything(tmp_path / "data") == before


@pytest.mark.skipif(os.name != "posix", reason="a limit on the size of files stands in for a full disk, POSIX only")
@pytest.mark.parametrize(
    "limit", [200_000, pytest.param(800_000, marks=pytest.mark.slow)]
)  # bytes: the training split does not fit; the catalogue
def test_a_full_disk_is_exit_6_and_leaves_the_older_outputs(tmp_path, limit):
    prepare([catalogue(tmp_path / "old.json", [product(1)])], tmp_path / "data", Options(val_share=0, test_share=0))
    before = everything(tmp_path / "data")
    catalogue(tmp_path / "good.json", [product(number) for number in range(8_000)])
    code = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "sys.argv[1:] = ['good.json']; import data_prep; from run.cli import run_script; run_script(data_prep.main)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr
    assert everything(tmp_path / "data") == before


def test_preparing_imports_no_torch():
    code = "import sys, data_prep, catalogue.prepare; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_real_products_keep_no_markup_and_no_entity_and_come_out_the_same_twice(tmp_path):
    inputs = [shared_assets("products", name) for name in ("lf_amazon_500.json", "meta_Gift_Cards.json.gz")]
    counts = prepare(inputs, tmp_path / "a")
    assert counts.lines == 2047
    assert counts.records > 900
    for split in SPLITS:
        for record in records(tmp_path / "a", split):
            text = f"{record['title']}\n{record['content']}"
            assert html.unescape(text) == text
            assert not re.search(r"<[A-Za-z/!?]", text)
    prepare(inputs, tmp_path / "b", workers=2)
    assert everything(tmp_path / "a") == everything(tmp_path / "b")


def test_near_duplicates_of_real_products_are_those_that_comparing_all_pairs_finds(tmp_path):
    source = shared_assets("products", "lf_amazon_500.json")
    everyone = prepare([source], tmp_path / "all", Options(drop_near_duplicates=False, val_share=0, test_share=0))
    kept: list[set] = []
    for record in records(tmp_path / "all", "train"):
        own = set(shingles(record["content"]).tolist())
        if all(len(own & other) / len(own | other) < THRESHOLD for other in kept):
            kept.append(own)
    assert prepare([source], tmp_path / "some").records == len(kept) < everyone.records - 30


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_what_interrupts_waits_until_the_block_is_left(name):
    """Also where another thread is given the signal."""
    number, reached = getattr(signal, name), []
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), interrupts_held():
            thread = threading.Thread(target=signal.raise_signal, args=[number])
            thread.start()
            thread.join()
            signal.raise_signal(number)
            reached.append(True)
    finally:
        signal.signal(number, before)
    assert reached
