"""Generation by hand: answers are written a token at a time, many at once, over keys and values that are kept.

A batch has a fixed number of rows. Whenever an answer ends, its row takes the next prompt that waits, so the batch
stays full to the end of a file. Each answer has a random stream of its own, keyed by (seed, its number), and begins in
column 0 of its row, so it does not depend on which others happened to share its batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from model.keys_values import KeysValues, use_keys_values
from model.load import context_length

PATIENCE = 3  # tokens that are refused at one place; then the one before it is taken back too
FEW = 256  # of the likeliest tokens: as a rule what is drawn is among them


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


@dataclass
class Answer:
    """An answer, whole or so far."""

    prompt: list[int] = field(compare=False)
    number: int = field(compare=False)  # decides what is drawn
    greedy: bool = field(default=False, compare=False)  # the likeliest tokens, whatever `Sampling` says
    ids: list[int] = field(default_factory=list)  # without the end token
    stopped: bool = False  # by the end token or the stop rule, not by the length
    # Of each token, the end token among them, given those before it; nats, by the unaltered logits. The last digits
    # are not the same in every batch.
    log_ps: list[float] = field(default_factory=list, compare=False)
    refused: dict[int, set[int]] = field(default_factory=dict, compare=False)  # tokens that may not stand at a place
    taken_back: int = field(default=0, compare=False)  # how often tokens were


Kind = TypeVar("Kind", bound=Answer)  # what its caller knows more of


def generate(
    model: PreTrainedModel,
    prompts: list[list[int]],
    end_token: int,
    sampling: Sampling,
    rows: int = 32,
    stop_rule: Callable[[list[int]], bool] | None = None,
) -> list[Answer]:
    """An answer to each prompt, in order; `rows` are written at once, `stop_rule` may end one by its tokens so far."""
    answers = [Answer(prompt, number) for number, prompt in enumerate(prompts)]
    waiting, rows = iter(answers), max(1, min(rows, len(prompts)))
    for _ in write(model, lambda: next(waiting, None), end_token, sampling, rows, stop_rule):
        pass
    return answers


@torch.inference_mode()
def write(
    model: PreTrainedModel,
    next_answer: Callable[[], Kind | None],
    end_token: int,
    sampling: Sampling,
    rows: int,
    stop_rule: Callable[[list[int]], bool] | None = None,
    check: Callable[[Kind], int | None] | None = None,
) -> Iterator[list[tuple[Kind, bool]]]:
    """Write answers, `rows` at once. Yields after each token those that are in work, and which of them are finished.

    `next_answer` is asked whenever a row is free: for an empty answer, or None where none waits just now. An answer
    also ends where the model's context does; a prompt that fills the context by itself has none. `check` is asked after
    each token for the place from which on they are taken back, None if they may stay. Leaves the attention of the model
    in its way (`use_flat_attention` for the other one).
    """
    use_keys_values(model)
    device, context = model.device, context_length(model.config)
    keys_values = KeysValues(rows, device)
    places: list[Kind | None] = [None] * rows
    holds: list[list[int]] = [[] for _ in range(rows)]  # the prompt that was last read into a row
    token, position = [end_token] * rows, [0] * rows  # what each row reads next, and where
    uniform = torch.zeros(rows, sampling.max_new_tokens, dtype=torch.float64)
    history = torch.zeros(rows, sampling.max_new_tokens, dtype=torch.long, device=device)
    every_row, greedy = torch.arange(rows, device=device), [False] * rows
    while True:
        done = []
        for row in range(rows):
            while places[row] is None and (answer := next_answer()):
                if len(answer.prompt) >= context or not sampling.max_new_tokens:
                    done.append((answer, True))
                    continue
                read_prompt(model, keys_values, row, answer.prompt, sampling.max_new_tokens, holds)
                # The last token of the prompt is read by the step that all rows take together.
                token[row], position[row] = answer.prompt[-1], len(answer.prompt) - 1
                places[row], greedy[row] = answer, answer.greedy
                stream = torch.Generator().manual_seed((sampling.seed * 1_000_003 + answer.number) % 2**63)
                torch.rand(sampling.max_new_tokens, generator=stream, dtype=torch.float64, out=uniform[row])
        in_work = [row for row in range(rows) if places[row]]
        if not in_work:
            if done:
                yield done
            return
        now = torch.tensor([position, token, [len(place.ids) if place else 0 for place in places]]).to(device)
        keys_values.step(now[0], max(position[row] for row in in_work))
        output = model(
            input_ids=now[1][:, None], position_ids=now[0][:, None], use_cache=False, keys_values=keys_values
        )
        logits, count = output.logits[:, -1].float(), now[2]  # (rows, V)
        chance = uniform.gather(1, count.cpu()[:, None])[:, 0]
        log_p_of = logits.log_softmax(dim=-1)  # before anything is forbidden
        for row in in_work:
            if refused := places[row].refused.get(len(places[row].ids)):
                logits[row, list(refused)] = -torch.inf
        drawn = next_tokens(logits, history, count, sampling, chance, torch.tensor(greedy).to(device))
        history[every_row, count] = drawn
        log_p = log_p_of.gather(1, drawn[:, None])[:, 0].tolist()
        chosen = drawn.tolist()
        for row in in_work:
            answer, new = places[row], chosen[row]
            answer.log_ps.append(log_p[row])
            answer.stopped = new == end_token
            if not answer.stopped:
                answer.ids.append(new)
                answer.stopped = stop_rule is not None and stop_rule(answer.ids)
            if check and (place := check(answer)) is not None:
                take_back(answer, place)
            token[row] = answer.ids[-1] if answer.ids else answer.prompt[-1]
            position[row] = len(answer.prompt) + len(answer.ids) - 1
            full = position[row] + 1 >= context or len(answer.ids) >= sampling.max_new_tokens
            done.append((answer, answer.stopped or full))
            if answer.stopped or full:  # the row stays at its last column, behind a prompt that others may copy
                places[row] = None
        yield done


def take_back(answer: Answer, place: int) -> None:
    """Take back the tokens from `place` on, of which the first is refused there from now on; or from a place before it
    where PATIENCE others were refused already. What was refused behind it may be tried again."""
    while place and len(answer.refused.get(place, ())) >= PATIENCE:
        place -= 1
    answer.refused = {before: tokens for before, tokens in answer.refused.items() if before <= place}
    answer.refused.setdefault(place, set()).add(answer.ids[place])
    del answer.ids[place:], answer.log_ps[place:]
    answer.stopped, answer.taken_back = False, answer.taken_back + 1


def read_prompt(
    model: PreTrainedModel, keys_values: KeysValues, row: int, prompt: list[int], more: int, holds: list[list[int]]
) -> None:
    """All of a prompt but its last token into `row`, by itself, so that its numbers are the same in any batch; from
    another row where it stands already. Its answer has up to `more` tokens."""
    length = len(prompt) - 1
    columns = min(len(prompt) + more, context_length(model.config))
    keys_values.read(row, columns)
    if prompt in holds:
        keys_values.copy(holds.index(prompt), row, length)
    elif length:
        ids = torch.tensor([prompt[:-1]], device=model.device)
        positions = torch.arange(length, device=model.device)[None]
        # Through the head too, for one token: of a model divided among processes only the whole is put together again.
        model(input_ids=ids, position_ids=positions, use_cache=False, keys_values=keys_values, logits_to_keep=1)
    holds[row] = prompt


def next_tokens(
    logits: Tensor, history: Tensor, count: Tensor, sampling: Sampling, uniform: Tensor, greedy: Tensor | None = None
) -> Tensor:
    """`logits` (n, V); `history` (n, L), of which the first `count` (n,) tokens are written; `uniform` (n,) in [0, 1);
    which are `greedy` (n,) bool -> next tokens (n,).

    Temperature, then top-k, then top-p, as transformers orders them. The two repetition rules look at the answer
    only: a word of the title must be free to appear in its description.
    """
    logits = penalised(logits, history, count, sampling)
    if sampling.greedy or (greedy is not None and bool(greedy.all())):
        return logits.argmax(dim=-1)
    logits, vocabulary = logits / sampling.temperature, logits.shape[-1]
    k = min(sampling.top_k or vocabulary, vocabulary)
    few = min(k, FEW)
    drawn, found = inverse(logits, few, k, sampling.top_p, uniform)
    if not found:  # a flat distribution: only then is the whole vocabulary sorted
        drawn, _ = inverse(logits, k, k, sampling.top_p, uniform)
    return drawn if greedy is None else torch.where(greedy, logits.argmax(dim=-1), drawn)


def inverse(logits: Tensor, few: int, k: int, top_p: float, uniform: Tensor) -> tuple[Tensor, bool]:
    """The inverse of the distribution function at `uniform`, likelier tokens first, by the `few` likeliest of the `k`
    that may be drawn; and whether these were enough."""
    values, tokens = logits.topk(few)  # (n, few), largest first
    all_k = values if few == k else logits  # k is larger than `few` only where it is the whole vocabulary, or most
    if few < k < logits.shape[-1]:
        all_k = logits.topk(k, sorted=False).values
    p = (values.double() - all_k.double().logsumexp(dim=-1, keepdim=True)).exp()
    total = p.cumsum(dim=-1)
    if top_p < 1:
        p = p.masked_fill(total - p >= top_p, 0.0)  # what likelier tokens have already
        enough = few == k or bool((total[:, -1] >= top_p).all())
        total = p.cumsum(dim=-1)
        threshold = uniform.to(p.device)[:, None] * total[:, -1:]
    else:
        threshold = uniform.to(p.device)[:, None] * (total[:, -1:] if few == k else 1.0)
        enough = few == k or bool((total[:, -1:] > threshold).all())
    place = (total <= threshold).sum(dim=-1, keepdim=True).clamp(max=few - 1)
    return tokens.gather(-1, place)[:, 0], enough


def penalised(logits: Tensor, history: Tensor, count: Tensor, sampling: Sampling) -> Tensor:
    """Repetition penalty (Keskar et al., 2019, "CTRL") and the ban of repeated n-grams (Paulus et al., 2017), by the
    first `count` (n,) tokens of `history` (n, L)."""
    n, penalty, longest = sampling.no_repeat_ngram_size, sampling.repetition_penalty, history.shape[1]
    if penalty == 1.0 and not n:
        return logits
    logits, column = logits.clone(), torch.arange(longest, device=logits.device)
    if penalty != 1.0:
        row, place = (column < count[:, None]).nonzero(as_tuple=True)
        seen = row, history[row, place]
        score = logits[seen]
        logits[seen] = score * torch.where(score < 0, penalty, 1 / penalty)
    if 0 < n <= longest:
        # A window of n tokens repeats when its first n - 1 are the last n - 1 that were written.
        windows = history.unfold(1, n, 1)  # (n, L - n + 1, n)
        tail = (count[:, None] - n + 1 + column[: n - 1]).clamp(min=0)
        same = (windows[..., :-1] == history.gather(1, tail)[:, None]).all(dim=-1)
        row, place = (same & (column[: longest - n + 1] + n <= count[:, None])).nonzero(as_tuple=True)
        logits[row, windows[row, place, -1]] = -torch.inf
    return logits
