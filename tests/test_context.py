"""A text before the prompt in training: whose it is, how much of it, and that a resumed run draws the same."""

from conftest import RECORDS, write_data

from model.load import pocket_model
from text.batch import Encoder
from text.context import shortened, with_context, with_contexts
from text.stream import RecordFile
from text.template import QA


def drawn(folder, share, seed=7, first=0):
    file = RecordFile(write_data(folder, RECORDS) / "train.jsonl")
    return [record for step in with_contexts([RECORDS] * (200 - first), file, share, seed, first) for record in step]


def test_a_share_of_the_records_gets_one_half_of_them_their_own(tmp_path):
    records = drawn(tmp_path, 0.2)
    given = [record for record in records if "context" in record]
    assert 0.17 < len(given) / len(records) < 0.23
    own = [r for r in given if all(part in r["content"] for part in r["context"].split(". "))]
    assert 0.4 < len(own) / len(given) < 0.65
    others = {record["content"] for record in RECORDS}
    assert all(r in own or r["context"] in others for r in given)
    assert drawn(tmp_path, 0.0) == RECORDS * 200 and all("context" in r for r in drawn(tmp_path, 1.0))


def test_what_a_record_gets_depends_on_seed_step_and_uid_alone(tmp_path):
    assert drawn(tmp_path, 0.3)[150 * len(RECORDS) :] == drawn(tmp_path, 0.3, first=150)
    assert drawn(tmp_path, 0.3) != drawn(tmp_path, 0.3, seed=8)


def test_its_own_description_lacks_a_sentence():
    import random

    text = "It is blue. It holds 350 ml! Wash it by hand"
    seen = {shortened(text, random.Random(i)) for i in range(30)}
    assert seen == {"It holds 350 ml! Wash it by hand", "It is blue. Wash it by hand", "It is blue. It holds 350 ml!"}
    assert shortened("Lamp.", random.Random(0)) == "Lamp." and shortened("no end", random.Random(0)) == "no end"


def test_what_the_text_says_is_no_attribute_too(tmp_path):
    file = RecordFile(write_data(tmp_path, RECORDS) / "train.jsonl")
    record = RECORDS[0] | {"attributes": {"colour": "blue", "brand": "Kelbra"}}
    for key in map(str, range(60)):
        found = with_context(record, file, 1.0, key)
        if found["context"] in ("A blue mug for coffee.", "It holds 350 ml."):  # of itself, shortened
            said = "blue" in found["context"]
            assert found["attributes"] == {"brand": "Kelbra"} | ({} if said else {"colour": "blue"})
        else:
            assert found["attributes"] == record["attributes"]


def test_it_stands_before_the_prompt_as_in_generation(tokenizer):
    encoder = Encoder(tokenizer, QA, 256)
    record = RECORDS[0] | {"context": RECORDS[1]["content"]}
    (row,) = encoder.rows([record])
    (prompt,) = encoder.prompts([record["title"]], [record["context"]], 256)
    assert row.ids[: row.first_supervised] == prompt
    assert tokenizer.decode(prompt).startswith("Product description: Uma caneca")
    assert tokenizer.decode(row.ids).endswith(f"{RECORDS[0]['content']}{tokenizer.eos_token}")
    (without,) = encoder.rows([RECORDS[0]])
    assert row.ids[row.first_supervised :] == without.ids[without.first_supervised :]
    (long,) = encoder.rows([record | {"context": "A long story. " * 500}])
    assert len(long.ids) <= 256 and long.ids[long.first_supervised :] == row.ids[row.first_supervised :]


def test_pocket_learns_to_take_what_the_text_says(tmp_path, tokenizer):
    """A fact that only the text has: the loss of the answer falls below what the prompt alone allows."""
    import torch

    from model.attention import use_flat_attention
    from model.loss import summed_loss
    from text.batch import flatten

    torch.manual_seed(0)
    encoder, model = Encoder(tokenizer, QA, 128), pocket_model(tokenizer, 128, seed=1).train()
    use_flat_attention(model)
    colours = ("blue", "red", "green", "grey")
    records = [{"uid": c, "title": "Mug", "content": c, "context": f"It is {c}."} for c in colours]
    batch = flatten(encoder.rows(records))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(100):
        loss = summed_loss(model, batch) / len(batch.targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1  # without the text at least ln 4 / tokens of the answer
