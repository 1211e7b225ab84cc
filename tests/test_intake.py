"""Whatever comes in: hostile folders, pipes, stray quotes, odd archives. Nothing is lost, nothing else is touched."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import threading
import zipfile

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from catalogue.judge import Options, Reason
from catalogue.outputs import JOURNAL, OUTPUTS, settle
from catalogue.prepare import prepare
from text.errors import DataError

PLAIN = Options(catalogue=False, report=False, drop_near_duplicates=False)
posix = pytest.mark.skipif(os.name != "posix", reason="pipes with a name, SIGKILL")


def lines(count: int, mark: str = "") -> list[dict]:
    text = "A fine mug of the kind {} for people who count to {}"
    return [{"title": f"Mug {mark}{i}", "content": text.format(mark, i * 7919)} for i in range(count)]


def jsonl(records: list[dict]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def whole(folder) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS if (folder / name).exists()}


# -- the folder -------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["take", "drop", "x"]), inner),
    max_leaves=8,
)
NAMES = st.lists(st.sampled_from([*OUTPUTS, "../victim", "/victim", "sub/victim", "victim", "..", ".", ""]), max_size=4)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(plan=st.fixed_dictionaries({"take": NAMES, "drop": NAMES}) | JSON, raw=st.booleans())
def test_a_journal_from_anywhere_touches_nothing_but_our_own_names(tmp_path_factory, plan, raw):
    home = tmp_path_factory.mktemp("home")
    folder = home / "data"
    (folder / "sub").mkdir(parents=True)
    victims = [
        home / "victim",
        folder / "victim",
        folder / "sub" / "victim",
        home / "victim.new",
        folder / "victim.new",
    ]
    for victim in victims:
        victim.write_text("precious", encoding="utf-8")
    (folder / JOURNAL).write_text(json.dumps(plan)[: -1 if raw else None], encoding="utf-8")
    try:
        settle(folder)
    except DataError as error:
        assert JOURNAL in str(error) and "data_prep.py" in str(error)
    assert [victim.read_text(encoding="utf-8") for victim in victims] == ["precious"] * len(victims)
    (home / "a.jsonl").write_text(jsonl(lines(40)), encoding="utf-8")
    prepare([home / "a.jsonl"], folder, PLAIN)  # whatever stood there, new data can be prepared
    assert not (folder / JOURNAL).exists() and (folder / "train.jsonl").exists()


def test_a_folder_that_has_the_name_of_an_output_is_said_before_the_work(tmp_path):
    (tmp_path / "a.jsonl").write_text(jsonl(lines(40)), encoding="utf-8")
    (tmp_path / "data" / "train.jsonl").mkdir(parents=True)
    with pytest.raises(DataError, match=r"train\.jsonl is a folder"):
        prepare([tmp_path / "a.jsonl"], tmp_path / "data", PLAIN, progress=lambda count: pytest.fail("it began"))


def test_our_own_outputs_are_no_input(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text(jsonl(lines(60)), encoding="utf-8")
    prepare([tmp_path / "a.jsonl"], tmp_path / "data", PLAIN)
    before = whole(tmp_path / "data")
    monkeypatch.chdir(tmp_path / "data")
    for way in (tmp_path / "data" / "train.jsonl", tmp_path / "data" / ".." / "data" / "test.jsonl"):
        with pytest.raises(DataError, match="what would be written here"):
            prepare([way], tmp_path / "data", PLAIN)
    (tmp_path / "data" / "b.jsonl").write_text(jsonl(lines(10, "b")), encoding="utf-8")
    assert prepare([tmp_path / "data"], tmp_path / "data" / ".." / "data", PLAIN).lines == 10
    assert before != whole(tmp_path / "data")


@posix
@pytest.mark.parametrize("writers, rounds", [(2, 3), (4, 3), pytest.param(8, 15, marks=pytest.mark.slow)])
def test_several_preparations_at_once_leave_one_whole_set(tmp_path, writers, rounds):
    """Killed at random or not: the folder holds what somebody wrote whole, and who was told that it is ready was."""
    draw, sets = random.Random(writers), {}
    for n in range(writers):
        (tmp_path / f"{n}.jsonl").write_text(jsonl(lines(400 + n, f"set{n} ")), encoding="utf-8")
        prepare([tmp_path / f"{n}.jsonl"], tmp_path / f"alone{n}", PLAIN)
        sets[n] = (tmp_path / f"alone{n}" / "train.jsonl").read_bytes()
    script = [sys.executable, str(ROOT / "data_prep.py"), "--no_report", "--no_catalogue", "--no_near_duplicates"]
    for _ in range(rounds):
        processes = [
            subprocess.Popen(
                [*script, tmp_path / f"{n}.jsonl", "--output_dir", tmp_path / "data"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
            )
            for n in range(writers)
        ]
        if draw.random() < 0.7:
            timer = threading.Timer(draw.uniform(0.1, 0.6), processes[0].send_signal, [signal.SIGKILL])
            timer.start()
        for process in processes:
            out, errors = process.communicate(timeout=60)
            assert process.returncode in (0, 2, -signal.SIGKILL), errors
            # One that was killed may have said so before, as the last thing that it did.
            assert ("is ready" in out) == (process.returncode == 0) or process.returncode == -signal.SIGKILL
            assert process.returncode != 2 or "is being prepared into" in errors
        settle(tmp_path / "data")
        found = (tmp_path / "data" / "train.jsonl").read_bytes()
        assert found in sets.values()
        report = json.loads((tmp_path / "data" / "report.json").read_text(encoding="utf-8"))
        assert report["kept"]["train"] == found.count(b"\n")


# -- pipes ------------------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("way", ["/dev/stdin", "-", "<(cat {file})", "{fifo}"])
def test_a_pipe_is_read_from_its_beginning_to_its_end(tmp_path, way):
    (tmp_path / "a.jsonl").write_text(jsonl(lines(3000)), encoding="utf-8")
    os.mkfifo(tmp_path / "fifo")
    name = way.format(file=tmp_path / "a.jsonl", fifo=tmp_path / "fifo")
    feed = f"cat {tmp_path / 'a.jsonl'} > {tmp_path / 'fifo'} & " if "fifo" in way else ""
    options = f"--output_dir {tmp_path / 'data'} --no_report --no_catalogue --no_near_duplicates"
    command = f"{feed}cat {tmp_path / 'a.jsonl'} | {sys.executable} {ROOT / 'data_prep.py'} {name} {options}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, encoding="utf-8", timeout=60)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "data" / "report.json").read_text(encoding="utf-8"))
    assert report["lines"] == 3000 == sum(report["kept"].values())


# -- tables -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    at=st.lists(st.integers(1, 119), min_size=1, max_size=6, unique=True),
    closing=st.booleans(),
    columns=st.integers(2, 4),
)
def test_stray_quotes_swallow_no_row(tmp_path_factory, at, closing, columns):
    """An opening quote in some rows, or a closing one in the last of them: each other row is a record of its own."""
    first, last = (sorted(at)[-2], max(at)) if len(at) > 1 else (0, 0)
    assume(not closing or last - first > (4 if columns > 2 else 21))  # a cell of few lines may be meant so
    folder = tmp_path_factory.mktemp("quotes")
    rows = [",".join(["title", "content", "brand", "colour"][:columns])]
    for i in range(120):
        cells = [f"Mug {i}", f"A fine mug number {i * 7919} with words {i * 31}", f"Brand{i}", "blue"][:columns]
        if i in at:
            last = closing and i == max(at) and len(at) > 1
            cells[-1] = cells[-1] + '"' if last else '"' + cells[-1]
        rows.append(",".join(cells))
    (folder / "s.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    try:
        counts = prepare([folder / "s.csv"], folder / "data", PLAIN)
    except DataError:
        return
    assert counts.lines == 120 and counts.records >= 120 - 2 * len(at)
    contents = [json.loads(line)["content"] for name in ("train", "val", "test")
                for line in (folder / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]  # fmt: skip
    assert not any("Mug" in content for content in contents)  # none holds another row


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(st.text(st.sampled_from("ab ,;\"\n'\\0"), min_size=30, max_size=120), min_size=3, max_size=20))
def test_cells_that_are_quoted_on_purpose_stay_whole(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("cells")
    with (folder / "s.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["title", "content", "sku"])
        writer.writerows([f"Mug {i}", f"Begins {i} {text} ends", i] for i, text in enumerate(texts))
    try:
        counts = prepare([folder / "s.csv"], folder / "data", PLAIN)
    except DataError:
        return
    assert counts.lines == len(texts) and counts.reasons[Reason.BROKEN] == 0


# -- JSON and archives ------------------------------------------------------------------------------------------------


def test_a_number_of_hundreds_of_digits_is_a_title_like_another(tmp_path):
    rows = ['{"title": %s, "content": "some long description of a mug"}' % ("9" * n) for n in (310, 4300, 5000)]
    (tmp_path / "i.jsonl").write_text("\n".join(rows) + "\n" + jsonl(lines(30)), encoding="utf-8")
    counts = prepare([tmp_path / "i.jsonl"], tmp_path / "data", PLAIN)
    assert counts.lines == 33 and counts.lines == counts.records + sum(counts.reasons.values())


def test_every_member_of_an_archive_is_read_or_said(tmp_path):
    said = []
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        for name, count in (("x.jsonl", 10), ("x.jsonl", 30), ("../y.jsonl", 20), ("_z.jsonl", 10), ("notes.txt", 1)):
            archive.writestr(name, jsonl(lines(count, f"{name}{count} ")))
    counts = prepare([tmp_path / "d.zip"], tmp_path / "data", PLAIN, say=said.append)
    assert counts.lines == 60 and not (tmp_path / "y.jsonl").exists()
    (left,) = [sentence for sentence in said if "left alone" in sentence]
    assert "_z.jsonl" in left and "notes.txt" in left and "y.jsonl" not in left.replace("_z.jsonl", "")


@pytest.mark.parametrize("packing", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_member_is_a_sentence(tmp_path, packing, seed):
    path, draw = tmp_path / "d.zip", random.Random(seed)
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("x.jsonl", jsonl(lines(800)))
    raw = bytearray(path.read_bytes())
    for _ in range(20):
        raw[draw.randrange(40, len(raw) - 120)] = draw.randrange(256)
    path.write_bytes(bytes(raw))
    try:
        prepare([path], tmp_path / "data", PLAIN)
    except DataError as error:
        assert "d.zip" in str(error) and "\n" not in str(error)


def test_the_list_of_rejects_has_an_end_and_the_account_has_not(tmp_path, monkeypatch):
    monkeypatch.setattr("catalogue.prepare.MOST_REJECTS_BYTES", 5_000)
    (tmp_path / "a.jsonl").write_text(jsonl(lines(30)) + "x\n" * 20_000, encoding="utf-8")
    counts = prepare([tmp_path / "a.jsonl"], tmp_path / "data", PLAIN)
    assert counts.lines == 20_030 and counts.reasons[Reason.BROKEN] == 20_000
    assert 5_000 <= (tmp_path / "data" / "rejects.jsonl").stat().st_size < 5_300
