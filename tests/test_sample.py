"""Generation by hand against transformers' own."""

import pytest
import torch
from conftest import ARCHITECTURES, tiny_gpt2
from transformers import AutoModelForCausalLM
from transformers.generation import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from model.load import load_model
from model.lora import Lora, lora_layers, merge, wrap
from model.sample import Sampling, generate, next_tokens, penalised

PROMPTS = [[5, 6, 7], [300, 20, 1, 9, 44, 8, 8], [77], [12, 13, 14, 15]]
END = 0


@pytest.mark.parametrize("weights", ["whole", "lora", "merged", "4-bit", "lora on 4-bit"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_tokens_equal_those_of_transformers(architecture, weights, tmp_path):
    if four_bit := "4-bit" in weights:
        pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes")
    torch.manual_seed(3)
    config = ARCHITECTURES[architecture]()
    config.hidden_size = 64  # 4-bit weights come in blocks of 64
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = load_model(tmp_path, four_bit=four_bit)
    assert four_bit == any(p.dtype == torch.uint8 for p in model.parameters())
    if "lora" in weights or weights == "merged":
        whole = generate_theirs(model, PROMPTS[1])
        wrap(model, Lora(r=4, alpha=64))
        for layer in lora_layers(model).values():
            torch.nn.init.normal_(layer.lora_B)
        adapted = generate_theirs(model, PROMPTS[1])
        assert adapted != whole  # else the adapter would not be tested
    if weights == "merged":
        merge(model)
        assert generate_theirs(model, PROMPTS[1]) == adapted
    answers = generate(model, PROMPTS, END, Sampling(greedy=True, max_new_tokens=24), rows=3)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        theirs = generate_theirs(model, prompt)
        assert answer.ids == theirs[: len(answer.ids)] and answer.stopped == (theirs[-1] == END)


def generate_theirs(model, prompt: list[int]) -> list[int]:
    model.set_attn_implementation("sdpa")
    ids, end = torch.tensor([prompt]), {"eos_token_id": END, "pad_token_id": END}
    more = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 24}
    return model.generate(ids, **end, **more, renormalize_logits=False)[0, len(prompt) :].tolist()


def test_an_answer_does_not_depend_on_who_shares_its_batch():
    model = tiny_gpt2()
    together = generate(model, PROMPTS, END, Sampling(max_new_tokens=12), rows=4)
    apart = generate(model, PROMPTS, END, Sampling(max_new_tokens=12), rows=1)
    assert together == apart
    assert generate(model, PROMPTS, END, Sampling(max_new_tokens=12, seed=1)) != together


def test_an_answer_stops_at_the_end_token_and_leaves_it_out():
    model = tiny_gpt2()
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(model.transformer.wte.weight[END] * 100)  # END is always the likeliest
    (answer,) = generate(model, [[5]], END, Sampling(greedy=True))
    assert answer.ids == [] and answer.stopped


def test_an_answer_ends_with_the_context_of_the_model():
    model = tiny_gpt2(n_positions=20)
    long, short, full = generate(model, [[5] * 15, [6, 7], [8] * 25], END, Sampling(greedy=True, max_new_tokens=50))
    assert (len(long.ids), len(short.ids), len(full.ids)) == (5, 18, 0)
    assert short == generate(model, [[6, 7]], END, Sampling(greedy=True, max_new_tokens=50))[0]


@pytest.mark.parametrize("temperature, top_k, top_p", [(0.7, 50, 0.95), (1.3, 0, 0.5), (1.0, 5, 1.0), (0.5, 1000, 0.2)])
def test_draws_follow_the_distribution_of_transformers(temperature, top_k, top_p):
    torch.manual_seed(0)
    logits = torch.randn(1, 60) * 3
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    expected = warpers(None, logits.clone()).softmax(-1)[0].double()

    draws = 20_001
    uniform = torch.arange(draws, dtype=torch.float64) / draws  # every quantile once: no chance in this test
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    nothing = torch.zeros(draws, 1, dtype=torch.long), torch.zeros(draws, dtype=torch.long)
    tokens = next_tokens(logits.expand(draws, -1), *nothing, sampling, uniform)
    share = torch.bincount(tokens, minlength=60).double() / draws
    assert (share - expected).abs().max() < 2 / draws + 1e-6


def test_repetition_rules_equal_those_of_transformers():
    torch.manual_seed(0)
    logits, written = torch.randn(2, 60), [[1, 2, 3, 1, 2], [7, 7, 7, 8, 9]]
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor(written), logits.clone())
    theirs = NoRepeatNGramLogitsProcessor(3)(torch.tensor(written), theirs)
    history, count = torch.tensor([[*tokens, 2, 3] for tokens in written]), torch.tensor([5, 5])  # the rest is no token
    ours = penalised(logits, history, count, Sampling(repetition_penalty=1.3, no_repeat_ngram_size=3))
    torch.testing.assert_close(ours, theirs)


def test_the_repetition_rules_leave_the_prompt_alone():
    logits, nothing = torch.zeros(1, 10), (torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    for n in (1, 2, 3, 4):
        assert torch.equal(
            penalised(logits, *nothing, Sampling(repetition_penalty=2.0, no_repeat_ngram_size=n)), logits
        )


@pytest.mark.parametrize("few", [1, 7, 60])
@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (0, 0.9), (20, 1.0), (20, 0.9)])
def test_a_few_likeliest_tokens_draw_what_all_of_them_draw(monkeypatch, few, top_k, top_p):
    torch.manual_seed(0)
    logits, uniform = torch.randn(500, 60) * 3, torch.rand(500, dtype=torch.float64)
    nothing = torch.zeros(500, 1, dtype=torch.long), torch.zeros(500, dtype=torch.long)
    sampling = Sampling(temperature=0.9, top_k=top_k, top_p=top_p)
    whole = next_tokens(logits, *nothing, sampling, uniform)
    monkeypatch.setattr("model.sample.FEW", few)
    assert torch.equal(next_tokens(logits, *nothing, sampling, uniform), whole)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_are_filled_again_and_alike_prompts_are_read_once(architecture):
    """Continuous batching changes no answer: twenty prompts, some of them alike, in three rows and each alone."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[architecture]()).eval()
    prompts = [PROMPTS[i % 4] + [i // 8] * (i % 3) for i in range(20)]
    read = []
    model.get_input_embeddings().register_forward_pre_hook(lambda module, args: read.append(tuple(args[0].shape)))
    sampling = Sampling(max_new_tokens=15, temperature=1.5)

    def rule(ids):
        return ids[-1] % 5 == 0

    together = generate(model, prompts, END, sampling, 3, rule)
    assert len({len(answer.ids) for answer in together}) > 1 and read.count((3, 1)) < 20 * 15 / 2
    alone = [generate(model, prompts[:i] + [prompt], END, sampling, 1, rule)[-1] for i, prompt in enumerate(prompts)]
    assert together == alone
    read.clear()
    generate(model, [PROMPTS[1]] * 3, END, sampling, rows=3)
    assert sum(shape != (3, 1) for shape in read) == 1  # once, and copied
