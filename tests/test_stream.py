"""Order, random access and resuming."""

import json

import pytest

from text.errors import DataError
from text.stream import Permutation, RecordFile, line_offsets, records_of_steps, steps_per_epoch


@pytest.fixture
def file(tmp_path, records):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return RecordFile(path)


def test_random_access(file, records):
    assert len(file) == len(records)
    assert [file[i] for i in reversed(range(len(file)))] == records[::-1]


def test_a_last_line_without_newline_counts(tmp_path, records):
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in records), encoding="utf-8")
    assert list(RecordFile(path)) == records


def test_the_index_is_made_again_when_the_file_changes(file, records):
    with file.path.open("a", encoding="utf-8") as out:
        out.write(json.dumps(records[0]) + "\n")
    assert len(RecordFile(file.path)) == len(records) + 1
    file.path.with_name("train.jsonl.index").write_bytes(b"damaged")
    assert len(RecordFile(file.path)) == len(records) + 1
    assert line_offsets(file.path)[-1] == file.path.stat().st_size


@pytest.mark.parametrize("content", ["", "\n", "{}\n", "[1]\n", '{"uid": "1"}\n', "not json\n"])
def test_what_is_no_record_is_a_sentence(tmp_path, content):
    path = tmp_path / "train.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="data_prep.py"):
        RecordFile(path)[0]


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 1000])
def test_a_permutation_has_every_index_once(size):
    order = [Permutation(size, "42:0")[i] for i in range(size)]
    assert sorted(order) == list(range(size))


def test_a_permutation_depends_on_its_key_and_is_no_identity():
    first, again, other = (list(map(Permutation(1000, key).__getitem__, range(1000))) for key in ("a", "a", "b"))
    assert first == again != other
    in_place = sum(i == index for i, index in enumerate(first))
    assert in_place < 10  # a random permutation has one on average
    assert sum(abs(a - b) < 10 for a, b in zip(first, first[1:], strict=False)) < 60  # about 20 for a random one


def test_every_epoch_has_every_record_once_in_an_order_of_its_own(file, records):
    steps = list(records_of_steps(file, 4, seed=1, first_step=0, last_step=6))
    assert [len(step) for step in steps] == [4, 4, 3, 4, 4, 3]  # 11 records: the short step is not dropped
    first, second = (sum(steps[i : i + 3], []) for i in (0, 3))
    assert sorted(r["uid"] for r in first) == sorted(r["uid"] for r in second) == sorted(r["uid"] for r in records)
    assert first != second


def test_starting_in_the_middle_continues_the_same_order(file):
    whole = list(records_of_steps(file, 4, seed=1, first_step=0, last_step=9))
    assert list(records_of_steps(file, 4, seed=1, first_step=5, last_step=9)) == whole[5:]


def test_steps_per_epoch_rounds_up():
    assert [steps_per_epoch(n, 16) for n in (1, 16, 17, 32)] == [1, 1, 2, 2]
