"""Records to rows to flat batches."""

import pytest
import torch

from text.batch import Encoder, ahead, flatten, split_by_tokens, step_batch
from text.template import QA


@pytest.fixture
def encoder(tokenizer):
    return Encoder(tokenizer, QA, max_length=256)


def test_training_prompt_is_the_generation_prompt_byte_for_byte(encoder, tokenizer, records):
    for record, row in zip(records, encoder.rows(records), strict=True):
        (prompt,) = encoder.prompts([record["title"]])
        assert row.ids[: row.first_supervised] == prompt
        assert tokenizer.decode(prompt) == QA.prompt_for(record["title"])
        assert tokenizer.decode(row.ids[:-1]) == QA.prompt_for(record["title"]) + " " + record["content"]


def test_the_final_end_token_is_supervised(encoder, tokenizer, records):
    for row in encoder.rows(records):
        batch = flatten([row])
        assert row.ids[-1] == tokenizer.eos_token_id
        assert batch.targets[-1] == tokenizer.eos_token_id
        assert batch.targets.tolist() == row.ids[row.first_supervised :]


def test_a_cut_record_ends_at_a_sentence_and_carries_no_end_token(tokenizer):
    content = "The first sentence is here. " * 30 + "The last one never comes"
    (row,) = Encoder(tokenizer, QA, max_length=120).rows([{"uid": "1", "title": "Mug", "content": content}])
    text = tokenizer.decode(row.ids)
    assert len(row.ids) <= 120
    assert text.endswith("sentence is here.") and tokenizer.eos_token_id not in row.ids


def test_a_record_without_a_sentence_end_is_cut_hard(tokenizer):
    (row,) = Encoder(tokenizer, QA, max_length=120).rows([{"uid": "1", "title": "Mug", "content": "word " * 500}])
    assert len(row.ids) == 120 and tokenizer.eos_token_id not in row.ids


def test_a_prompt_that_fills_the_length_supervises_nothing(tokenizer):
    (row,) = Encoder(tokenizer, QA, max_length=40).rows([{"uid": "1", "title": "Mug " * 99, "content": "A mug."}])
    assert len(row.ids) == 40 and len(flatten([row]).targets) == 0


def test_text_of_the_data_is_never_a_special_token(encoder, tokenizer):
    record = {"uid": "1", "title": "A <|endoftext|> mug", "content": "It says <|endoftext|> on it."}
    (row,) = encoder.rows([record])
    assert row.ids.count(tokenizer.eos_token_id) == 1 and row.ids[-1] == tokenizer.eos_token_id
    assert "<|endoftext|> on it." in tokenizer.decode(row.ids[:-1])


def test_accents_survive(encoder, tokenizer):
    text = "Pão, avó, coração, ½ kg, 30 °C, 日本, 🙂"
    (row,) = encoder.rows([{"uid": "1", "title": text, "content": text}])
    assert tokenizer.decode(row.ids[row.first_supervised : -1]).strip() == text


def test_loss_on_all_supervises_everything_but_the_first_token(tokenizer, records):
    row = Encoder(tokenizer, QA, max_length=256, loss_on="all").rows(records)[0]
    assert flatten([row]).targets.tolist() == row.ids[1:]


def test_a_flat_batch_is_its_rows_end_to_end(encoder, records):
    rows = encoder.rows(records)
    batch = flatten(rows)
    assert batch.ids.tolist() == [token for row in rows for token in row.ids]
    assert batch.lengths == [len(row.ids) for row in rows]
    assert torch.equal(batch.position_ids, torch.cat([torch.arange(length) for length in batch.lengths]))
    assert torch.equal(batch.ids[batch.rows + 1], batch.targets)


@pytest.mark.parametrize("budget", [1, 50, 200, 10_000])
def test_micro_batches_change_nothing_but_the_grouping(encoder, records, budget):
    rows = encoder.rows(records)
    groups = split_by_tokens(rows, budget)
    assert [row for group in groups for row in group] == rows
    for group in groups:
        assert len(group) == 1 or len(group) * max(len(row.ids) for row in group) <= budget
    step = step_batch(rows, budget)
    assert step.supervised == sum(len(flatten([row]).targets) for row in rows)
    assert sum(len(batch.ids) for batch in step.prepared) == sum(len(row.ids) for row in rows)
    assert [row.uid for row in step.rows] == [record["uid"] for record in records]
    assert [len(batch.lengths) for batch in step.micro_batches(1)] == [1] * len(records)
    assert step.micro_batches(budget) is step.prepared


def test_a_tokenizer_that_opens_with_a_bos_gets_exactly_one(tokenizer, records):
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    inner = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    inner.add_special_tokens(["<s>"])
    bos = inner.token_to_id("<s>")
    inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    with_bos = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="<|endoftext|>")
    for row in Encoder(with_bos, QA, max_length=256).rows(records):
        assert row.ids[0] == bos and row.ids.count(bos) == 1


def test_an_error_of_the_background_thread_arrives_in_the_loop():
    def items():
        yield 1
        raise ValueError("no such record")

    received = ahead(items())
    assert next(received) == 1
    with pytest.raises(ValueError, match="no such record"):
        next(received)


def test_the_background_thread_keeps_the_order_and_ends():
    assert list(ahead(range(100), depth=3)) == list(range(100))
