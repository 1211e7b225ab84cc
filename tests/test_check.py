"""Words that nothing supports are taken back while an answer is written."""

import itertools

import pytest
import torch
from conftest import tiny_gpt2, write_data
from test_claims import RECORDS
from test_sample import END, PROMPTS

from catalogue.claims import Claims
from catalogue.index import FILE_NAME, Catalogue, write_catalogue
from model.sample import PATIENCE, Answer, Sampling, take_back, write
from run.candidates import Prompt, Writer
from run.check import MOST, Check, without_last_words
from run.loop import Loop
from run.sources import Sources
from text.answer import decode
from text.batch import Encoder
from text.bpe import train_bpe
from text.template import QA


def written(model, prompts, sampling, rows=1, check=None) -> list[Answer]:
    answers = [Answer(prompt, number) for number, prompt in enumerate(prompts)]
    waiting = iter(answers)
    for _ in write(model, lambda: next(waiting, None), END, sampling, rows, check=check):
        pass
    return answers


def never(tokens):
    """Takes back any of `tokens`, two tokens later, as a word is."""

    def check(answer: Answer) -> int | None:
        seen = answer.ids if answer.stopped else answer.ids[:-2]
        return next((place for place, token in enumerate(seen) if token in tokens), None)

    return check


def test_what_is_taken_back_is_what_transformers_suppresses():
    torch.manual_seed(3)
    model = tiny_gpt2()
    for prompt, sampling in itertools.product(PROMPTS, [Sampling(greedy=True, max_new_tokens=24)]):
        (plain,) = written(model, [prompt], sampling)
        refused = sorted(set(plain.ids[3:12]))[:PATIENCE]
        (checked,) = written(model, [prompt], sampling, check=never(refused))
        model.set_attn_implementation("sdpa")
        ids = torch.tensor([prompt])
        theirs = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, suppress_tokens=refused,
            eos_token_id=END, pad_token_id=END,
        )[0, len(prompt) :].tolist()  # fmt: skip
        assert checked.taken_back and not set(checked.ids) & set(refused)
        # The last two tokens are not judged any more: nothing is known to follow them.
        assert checked.ids[:-2] == theirs[: len(checked.ids) - 2] != plain.ids[: len(checked.ids) - 2]


def test_taken_back_or_not_an_answer_does_not_depend_on_who_shares_its_batch():
    model, sampling = tiny_gpt2(), Sampling(max_new_tokens=16, temperature=1.5)
    check = never(range(0, 1000, 7))
    together, alone = (written(model, PROMPTS * 3, sampling, rows, check) for rows in (5, 1))
    assert together == alone and sum(answer.taken_back for answer in together) > 5
    for answer in together:
        assert len(answer.log_ps) == len(answer.ids) + (answer.stopped is True)


def test_of_what_was_refused_three_times_one_token_more_is_taken_back():
    answer = Answer([1], 0, ids=[10, 11, 12, 13], log_ps=[-1.0] * 4)
    for token in (12, 22, 32):
        answer.ids[2:] = [token, 13]
        take_back(answer, 2)
        assert answer.ids == [10, 11]
    assert answer.refused == {2: {12, 22, 32}}
    answer.ids += [42]
    take_back(answer, 2)
    assert answer.ids == [10] and answer.refused == {1: {11}} and answer.taken_back == 4
    for token in (21, 31):
        answer.ids += [token, 12]
        take_back(answer, 1)
    answer.ids += [41]
    take_back(answer, 1)
    assert answer.ids == [] and answer.refused == {0: {10}}
    answer.ids += [20]
    take_back(answer, 0)
    assert answer.refused == {0: {10, 20}}  # there is none before the first


@pytest.fixture
def check(tmp_path) -> Check:
    folder = write_data(tmp_path / "data", RECORDS)
    write_catalogue(folder / FILE_NAME, folder / "train.jsonl")
    tokenizer = train_bpe((QA.prompt_for(r["title"]) + r["content"] for r in RECORDS), vocab_size=400)
    return Check(Claims(Catalogue(folder)), tokenizer)


@pytest.mark.parametrize(
    "text, stopped, claim",
    [
        ("This blue ceramic mug holds 350 ml now", False, None),
        ("This red ceramic mug", False, "red"),
        ("This red ceramic", False, None),  # "ceramic" may not be whole
        ("This red", False, None),
        ("This red", True, "red"),
        ("It holds 250 ml", False, None),
        ("It holds 250 ml and it", False, "250 ml"),
        ("It holds 250 ml and", False, "250 ml"),
        ("It holds 0.35 l and", False, None),
        ("It holds 0.35 l and it", False, None),
        ("It holds 350 x 3", False, None),
        ("Coffee stays warm in it. " * 20 + "It is a Kelbra mug and", False, "Kelbra"),
        ("A Kelbra mug. " + "Coffee stays warm in it. " * 20, False, None),  # judged long ago
        ("A Kelbra mug that keeps coffee warm for you and", False, None),  # and this one, eight words ago
        ("It has a size of 40 x 30 x 21 cm and it", False, "40"),  # the longest that there is
        ("", False, None),
        ("", True, None),
    ],
)
def test_a_word_is_judged_when_it_is_whole(check, text, stopped, claim):
    ids = check.tokenizer(" " + text).input_ids
    place = check.first_unsupported(Answer([1], 0, ids=ids, stopped=stopped), ["Velmora blue ceramic mug, 350 ml"])
    assert (place is None) == (claim is None)
    if claim:
        assert decode(check.tokenizer, ids[:place]) == text[: text.index(claim)].rstrip()
        assert decode(check.tokenizer, ids[: place + 1]) != decode(check.tokenizer, ids[:place])


@pytest.mark.parametrize("claim", ["350 ml", "0.35 l", "40 x 30 cm"])
def test_what_is_supported_is_never_taken_back_however_the_answer_goes_on(check, claim):
    """Looked at through a window, "350 ml" was the bare word "ml" once its number had left it."""
    ids = check.tokenizer(f" It holds {claim}, enough for a row of pots and for coffee that stays warm. " * 4).input_ids
    answers = [Answer([1], 0, ids=ids[:length]) for length in range(1, len(ids) + 1)]
    assert not any(check.first_unsupported(answer, [f"Mug, {claim}, pots, row"]) for answer in answers)
    settled = [check.settled(answer) for answer in answers]
    assert settled == sorted(settled) and settled[-1] > len(ids) - 40


def test_after_the_most_nothing_is_taken_back(check):
    ids = check.tokenizer(" This red ceramic mug").input_ids
    assert check.first_unsupported(Answer([1], 0, ids=ids, taken_back=MOST - 1), ["mug"]) is not None
    assert check.first_unsupported(Answer([1], 0, ids=ids, taken_back=MOST), ["mug"]) is None


def test_without_its_last_words():
    assert without_last_words("a b  c\n d", 2) == "a b"
    assert without_last_words("a b", 2) == without_last_words("", 1) == ""


@pytest.fixture
def writer(check) -> Writer:
    """Of random weights, which say much that nothing supports."""
    torch.manual_seed(1)
    model = tiny_gpt2(len(check.tokenizer))
    encoder = Encoder(check.tokenizer, QA, 64)
    return Writer(model, encoder, Sampling(max_new_tokens=120, temperature=1.2), check.claims)


def test_one_checked_answer_states_less_and_unchecked_is_what_the_model_says(writer):
    prompts = [Prompt([i + 5, 7], ["Blue mug"], i) for i in range(12)]
    checked, alone = (
        list(Writer(writer.model, writer.encoder, writer.sampling, writer.claims, 1, 4, unchecked).write(prompts))
        for unchecked in (False, True)
    )
    bare = Writer(writer.model, writer.encoder, writer.sampling, None).write(prompts)
    assert [answer.text for answer in alone] == [answer.text for answer in bare]
    counts = [sum(len(answer.unsupported) for answer in answers) for answers in (checked, alone)]
    assert counts[0] < counts[1] / 2


@pytest.mark.parametrize("stream", range(12))
def test_what_is_printed_while_it_is_written_is_never_taken_back(writer, check, stream, tmp_path, capsys):
    prompt = Prompt([9, stream + 5], ["Blue mug"], stream)
    (whole,) = writer.write([prompt])
    loop = Loop(writer, Sources(tmp_path / "data", 0, False), False, "en")
    assert loop._aloud(writer, prompt).strip() == whole.text
    assert capsys.readouterr().out.strip() == whole.text

    settled: list[list[int]] = []

    def place(answer: Answer) -> int | None:
        if (taken := check.first_unsupported(answer, prompt.texts)) is None:
            settled.append(answer.ids[: check.settled(answer)])
        return taken

    (answer,) = written(writer.model, [prompt.ids], writer.sampling, check=place)
    assert all(ids == answer.ids[: len(ids)] for ids in settled)
    assert max(settled, key=len)
