"""Generation: one token at a time with a key-value cache, by hand.

Each answer has a random stream of its own, keyed by (seed, its number), so it does not depend on which other prompts
happened to share its batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from model.load import context_length


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. `greedy` takes the likeliest; 0 or 1.0 switches the other knobs off."""

    max_new_tokens: int = 220
    greedy: bool = False
    temperature: float = 0.7
    top_k: int = 50
    top_p: float = 0.95
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    seed: int = 42


@dataclass(frozen=True)
class Answer:
    ids: list[int]  # without the end token
    stopped: bool  # by the end token or the stop rule, not by the length
    # Of its tokens, the end token among them, given the prompt; nats, by the unaltered logits. Its last digits are not
    # the same in every batch.
    log_p: float = field(default=0.0, compare=False)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: list[list[int]],
    end_token: int,
    sampling: Sampling,
    batch_size: int = 32,
    stop_rule: Callable[[list[int]], bool] | None = None,
    numbers: list[int] | None = None,
    greedy: list[bool] | None = None,
) -> list[Answer]:
    """One `Answer` for each prompt, in order. `stop_rule` may end an answer by what has been written of it.

    `numbers`: of the answers, where these prompts are a part of more; by default from 0. `greedy`: which of them take
    the likeliest token whatever `sampling` says; by default none.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # like lengths share a batch: less padding
    answers: list[Answer | None] = [None] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        streams, log_p = [numbers[i] for i in chosen] if numbers else chosen, [0.0] * len(chosen)
        rows = [prompts[i] for i in chosen]
        likeliest = [greedy[i] for i in chosen] if greedy else None
        steps = list(tokens_of(model, rows, end_token, sampling, streams, stop_rule, likeliest, log_p))
        for row, i in enumerate(chosen):
            ids = [tokens[row] for tokens in steps if tokens[row] is not None]
            stopped = ids[-1:] == [end_token]
            ruled = not stopped and stop_rule is not None and stop_rule(ids)
            answers[i] = Answer(ids[:-1] if stopped else ids, stopped or ruled, log_p[row])
    return answers


@torch.no_grad()
def tokens_of(
    model: PreTrainedModel,
    prompts: list[list[int]],
    end_token: int,
    sampling: Sampling,
    numbers: list[int],
    stop_rule: Callable[[list[int]], bool] | None = None,
    greedy: list[bool] | None = None,
    log_p: list[float] | None = None,
) -> Iterator[list[int | None]]:
    """For each step the next token of every prompt, the end token included; None for those that have ended. To `log_p`,
    if it is given, those of the tokens are added.

    Prompts are padded on the left, so that all of them end, and go on, in the same column. An answer also ends where
    the model's context does; a prompt that fills the context by itself has none.
    """
    device, longest, context = model.device, max(map(len, prompts)), context_length(model.config)
    ids = torch.tensor([[end_token] * (longest - len(p)) + p for p in prompts], device=device)  # (n, L)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    streams = [torch.Generator().manual_seed((sampling.seed * 1_000_003 + number) % 2**63) for number in numbers]
    written: list[list[int]] = [[] for _ in prompts]
    ended = [len(prompt) >= context for prompt in prompts]
    cache = None
    for _ in range(sampling.max_new_tokens):
        if all(ended):
            return
        positions = (mask.cumsum(dim=1) - 1).clamp(0, context - 1)[:, -ids.shape[1] :]
        output = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, cache=cache, use_cache=True, logits_to_keep=1
        )
        cache = output.cache
        # Every stream moves on at every step, so that it does not matter when the others end.
        uniform = torch.stack([torch.rand((), generator=stream, dtype=torch.float64) for stream in streams])
        logits = output.logits[:, -1].float()  # (n, V)
        tokens = next_tokens(logits, written, sampling, uniform, greedy)
        chosen = tokens.tolist()
        if log_p is not None:
            for row, value in enumerate(logits.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0].tolist()):
                log_p[row] += 0.0 if ended[row] else value
        yield [None if end else token for token, end in zip(chosen, ended, strict=True)]
        for row, token in enumerate(chosen):
            if not ended[row]:
                written[row].append(token)
                full = len(prompts[row]) + len(written[row]) >= context
                ended[row] = token == end_token or full or (stop_rule is not None and stop_rule(written[row]))
        ids = torch.tensor(chosen, device=device)[:, None]
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)


def next_tokens(
    logits: Tensor, written: list[list[int]], sampling: Sampling, uniform: Tensor, greedy: list[bool] | None = None
) -> Tensor:
    """`logits` (n, V), the tokens `written` so far, `uniform` (n,) in [0, 1), which are `greedy` -> next tokens (n,).

    Temperature, then top-k, then top-p, as transformers orders them. The two repetition rules look at the answer
    only: a word of the title must be free to appear in its description.
    """
    logits = penalised(logits, written, sampling)
    if sampling.greedy:
        return logits.argmax(dim=-1)
    k = min(sampling.top_k or logits.shape[-1], logits.shape[-1])
    values, tokens = (logits / sampling.temperature).topk(k)  # (n, k), largest first
    p = values.double().softmax(dim=-1)
    before = p.cumsum(dim=-1) - p  # probability of all likelier tokens
    if 0 < sampling.top_p < 1:
        p = p.masked_fill(before >= sampling.top_p, 0.0)
    total = p.cumsum(dim=-1)
    threshold = uniform.to(p.device)[:, None] * total[:, -1:]
    place = (total <= threshold).sum(dim=-1, keepdim=True).clamp(max=k - 1)  # inverse of the distribution function
    drawn = tokens.gather(-1, place)[:, 0]
    return torch.where(torch.tensor(greedy, device=drawn.device), tokens[:, 0], drawn) if greedy else drawn


def penalised(logits: Tensor, written: list[list[int]], sampling: Sampling) -> Tensor:
    """Repetition penalty (Keskar et al., 2019, "CTRL") and the ban of repeated n-grams (Paulus et al., 2017)."""
    if sampling.repetition_penalty == 1.0 and not sampling.no_repeat_ngram_size:
        return logits
    logits = logits.clone()
    for row, tokens in enumerate(written):
        if sampling.repetition_penalty != 1.0 and tokens:
            seen = torch.tensor(sorted(set(tokens)), device=logits.device)
            score = logits[row, seen]
            factor = torch.where(score < 0, sampling.repetition_penalty, 1 / sampling.repetition_penalty)
            logits[row, seen] = score * factor
        if banned := repeating_tokens(tokens, sampling.no_repeat_ngram_size):
            logits[row, banned] = -torch.inf
    return logits


def repeating_tokens(tokens: list[int], n: int) -> list[int]:
    """The tokens that would complete an n-gram that `tokens` already holds."""
    if n <= 0 or len(tokens) < n:
        return []
    tail = tokens[len(tokens) - n + 1 :]
    return [tokens[i + n - 1] for i in range(len(tokens) - n + 1) if tokens[i : i + n - 1] == tail]
