"""What was corrected on the page is always trained on, stands in the place of what it corrects, and is counted."""

import json

import pytest

from catalogue.fields import Fields
from catalogue.judge import Options, Reason, split_of
from catalogue.prepare import prepare

TEXT = "A text about {}, long enough to be kept and unlike the others: {}."


def product(title: str, number: int, **more) -> dict:
    return {"uid": f"U{number}", "title": title, "content": TEXT.format(title, f"{number} " * 9)} | more


def correction(title: str, content: str, verdict: str = "edit", **more) -> dict:
    return {"uid": "c", "title": title, **more, "content": content, "correction": verdict, "proposed": "x"}


def prepared(tmp_path, *files: list[dict], **options) -> tuple:
    """The counts, and the records of each split."""
    inputs = []
    for number, records in enumerate(files):
        inputs.append(tmp_path / f"{number}.jsonl")
        inputs[-1].write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    counts = prepare(inputs, tmp_path / "out", Options(**options), say=lambda said: None)
    assert counts.lines == sum(map(len, files)) == counts.records + sum(counts.reasons.values())
    lines = {s: (tmp_path / "out" / f"{s}.jsonl").read_text(encoding="utf-8").splitlines() for s in counts.kept}
    assert {split: len(some) for split, some in lines.items()} == counts.kept
    return counts, {split: [json.loads(line) for line in some] for split, some in lines.items()}


@pytest.mark.parametrize("first", ["catalogue", "corrections"])
def test_each_is_trained_on_and_the_old_text_is_gone_from_every_split(tmp_path, first):
    catalogue = [product(f"Mug {number}", number) for number in range(200)]
    titles = [f"MUG, {number}!" for number in range(0, 200, 2)]
    held_out = [title for title in titles if split_of(title, 0.04, 0.07) != "train"]
    assert len(held_out) > 5  # else nothing is shown here
    corrected = [correction(title, f"Our {title}") for title in titles]
    files = [catalogue, corrected] if first == "catalogue" else [corrected, catalogue]
    counts, splits = prepared(tmp_path, *files)
    contents = [record["content"] for record in splits["train"]]
    assert all(f"Our {title}" in contents for title in titles)  # shorter than min_content_chars, which a person may be
    assert counts.reasons[Reason.CORRECTED] == counts.corrections == 100 and counts.records == 200
    assert not {r["uid"] for some in splits.values() for r in some} & {f"U{number}" for number in range(0, 200, 2)}
    assert not any(key in record for record in splits["train"] for key in ("correction", "proposed"))
    rows = {name.strip(): count for name, count, _ in counts.rows()}
    assert rows["of them corrections"] == rows["replaced by a correction"] == 100


def test_of_one_product_the_last_correction_counts_and_a_rejected_answer_is_counted(tmp_path):
    corrected = [correction("Mug", "first"), correction("mug", "second", "accept"), correction("Mug", "", "reject")]
    counts, splits = prepared(tmp_path, [product("Cup", 1)], corrected, val_share=0, test_share=0)
    assert [record["content"] for record in splits["train"][1:]] == ["second"]
    assert counts.reasons[Reason.CORRECTED] == counts.reasons[Reason.REJECTED] == 1
    counts, splits = prepared(tmp_path, [product("Mug", 1)], corrected[2:], val_share=0, test_share=0)
    assert counts.kept["train"] == 1 and not counts.corrections  # a rejected one replaces nothing


def test_another_colour_is_another_product_and_is_not_held_out(tmp_path):
    title = next(f"Mug {n}" for n in range(99) if split_of(f"Mug {n}", 0, 0.5) == "test")
    blue, red = (correction(title, f"Ours, {c}", attributes={"colour": c}) for c in ("blue", "red"))
    others = [product("Cup", 1), product(title, 2, colour="Blue"), product(title, 3, colour="green")]
    options = {"fields": Fields(attributes=("colour",))}
    counts, splits = prepared(tmp_path, others, [blue, red], **options, val_share=0, test_share=0)
    assert [r["uid"] for r in splits["train"]] == ["U1", "U3", "c", "c"] and counts.reasons[Reason.CORRECTED] == 1
    counts, splits = prepared(tmp_path, others, [blue, red], **options, val_share=0, test_share=0.5)
    assert not any(record["title"] == title for record in splits["test"]) and counts.reasons[Reason.CORRECTED] == 2


def test_fields_named_for_the_catalogue_are_not_those_of_the_corrections(tmp_path):
    shop = [{"sku": "1", "heading": "Cup", "details": "A cup of clay that is made by hand."}]
    fields = Fields("heading", "details")
    said = []
    for files in ([shop, [correction("Mug", "Ours")]], [[*shop, correction("Mug", "Ours")]]):
        counts, splits = prepared(tmp_path, *files, fields=fields, val_share=0, test_share=0)
        assert counts.kept["train"] == 2 and splits["train"][1]["content"] == "Ours"
    options = Options(fields=fields, val_share=0, test_share=0)
    prepare([tmp_path / "1.jsonl"], tmp_path / "out", options, say=said.append)
    assert "no field" not in said[0]


def test_a_catalogue_with_a_column_called_correction_is_a_catalogue(tmp_path):
    counts, _ = prepared(tmp_path, [product("Pen", 1, correction=["edit"], proposed={}), product("Ink", 2)])
    assert counts.corrections == 0 and counts.records == 2
