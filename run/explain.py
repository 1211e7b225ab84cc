"""`python train.py --explain`: one optimizer step, number by number, in the terminal and as explain.html.

The loop of train.py takes its first two steps as it always does; `run/microscope.py` takes pictures of them. Here the
numbers are computed again by hand, from the definitions, and have to be those of the pictures.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from catalogue.page import as_text, page, row, section, table_of, tiles_of
from model.attention import use_flat_attention
from model.cross_entropy import CHUNK_ROWS
from model.lora import lora_layers
from model.loss import mean_loss, plain_loss
from model.muon import ITERATIONS, MOMENTUM, UPDATE_RMS, orthogonal
from run.cli import UsageError
from run.device import Machine
from run.files import write_text
from run.memory import MemoryPlan
from run.metrics import read_metrics
from run.microscope import AdamW, Forward, Matrix, Microscope, Picture, correction_of, logits_gradient
from run.report import curve
from run.session import Session
from run.state import TrainState
from run.terminal import one_line
from run.units import short, size
from text.batch import Encoder, StepBatch

EXACT, HALF = 1e-5, 3e-2  # how far numbers may be apart that are summed in another order: in fp32, in half precision
BAR, WIDTH = 30, 110  # characters in the terminal


@dataclass(frozen=True)
class Check:
    """Something computed by hand, and how far it is from what was seen in the step."""

    what: str
    difference: float
    at_most: float

    @property
    def holds(self) -> bool:
        return self.difference <= self.at_most  # nan never does

    def __str__(self) -> str:
        if not self.holds:
            return f"✗ {self.what}: NOT SO, {self.difference:.2e} apart"
        how = f"within {self.difference:.0e}" if self.difference else "exactly"
        return f"✓ {self.what}" + (f": {how}" if self.at_most else "")  # at most 0: true or not


@dataclass
class Part:
    """One thing to look at: a sentence, a table, bars of (name, number as shown, length, CSS), what was checked."""

    title: str
    lead: str
    head: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    bars: list[tuple[str, str, float, str]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    html: str = ""  # for the page, before the rows
    marked: tuple[str, list[tuple[int, int]]] = ("", [])  # for the terminal, likewise: a text, and what is underlined


def explained(
    train_loader: Iterator[StepBatch],
    session: Session,
    model: PreTrainedModel,
    encoder: Encoder,
    optimizer: torch.optim.AdamW,
    scaler: torch.amp.GradScaler,
    state: TrainState,
    memory: MemoryPlan,
) -> Iterator[StepBatch]:
    """The batches of the first two steps; after the second, what happened in them is printed and written as a page.

    In fp16 a step whose scale overflows is not counted: the next one is the second. Raises `UsageError` when the first
    step has no supervised token, `RuntimeError` when a number by hand is not the one that was seen.
    """
    first = last = microscope = None
    for batch in train_loader:
        last = picture_of(batch, state)
        if first is None:
            first, microscope = last, Microscope(session.machine, model, optimizer, scaler, last.target)
            losses = two_ways(model, first, session.machine)
        with microscope.looking_at(last):
            yield batch
        if last is not first and not last.skipped:
            break
    log = {entry["step"]: entry for entry in read_metrics(session.folder / "metrics.jsonl")}
    log = [{key: math.nan if value is None else value for key, value in log[p.number].items()} for p in (first, last)]
    exact = EXACT if session.machine.precision == "fp32" else HALF
    tokenizer, config = encoder.tokenizer, session.config
    parts = [
        the_record(first, tokenizer),
        the_flat_batch(first),
        the_shapes(first, model),
        the_logits(first, tokenizer, log[0]["loss"]),
        the_loss(first, losses, log[0]["loss"], exact, bool(config.dropout or config.lora_dropout)),
        the_logits_gradient(first, tokenizer, exact),
        the_gradients(last, log[1]["grad_norm"], config.max_grad_norm),
        the_update(first, last, microscope, tokenizer),
        *([the_matrix(last, microscope)] if last.matrix else []),
        *([the_adapter(first, last, microscope, session.machine, exact)] if microscope.lora else []),
        the_memory(last, model, memory, log[1]),
        the_time(last, log[1]),
    ]
    tiles = [
        (f"{log[0]['loss']:.4f}", "loss of the first step, nats per supervised token"),
        (f"{math.log(len(first.logits)):.4f}", f"ln {len(first.logits):,}: of a model that knows nothing"),
        (
            f"{first.learning_rate:.2g}, {last.learning_rate:.2g}",
            f"learning rate of steps {first.number}, {last.number}",
        ),
        (f"{sum(check.holds for p in parts for check in p.checks)}", "numbers computed again by hand, the same"),
    ]
    path = Path(session.command.config.output_dir) / "explain.html"
    write_text(path, as_page(config.model_name_or_path, tiles, parts))
    with tqdm.external_write_mode():  # the bar of the loop steps aside
        for part in parts:
            show(part)
        print(f"\nThe same as a page: {path}. Nothing else was kept: this was no training.")
    if failed := [str(check) for part in parts for check in part.checks if not check.holds]:
        raise RuntimeError("; ".join(failed))


def picture_of(batch: StepBatch, state: TrainState) -> Picture:
    """Nothing is on it yet. The record is the shortest that has a supervised token. Raises `UsageError`."""
    micro_batches = batch.micro_batches(state.micro_batch_tokens)
    rows = [row for row in batch.rows if len(row.ids) > max(row.first_supervised, 1)]
    if not rows:
        raise UsageError(f"No record of step {state.step + 1} has an answer within --max_length: raise it.")
    chosen = min(rows, key=lambda row: len(row.ids))
    for number, micro_batch in enumerate(micro_batches):
        start = 0
        for length in micro_batch.lengths:
            if micro_batch.ids[start : start + length].tolist() == chosen.ids:
                return Picture(state.step + 1, batch, micro_batches, chosen, number, start)
            start += length
    raise AssertionError("a record of the step stands in none of its micro-batches")


@torch.no_grad()
def two_ways(model: PreTrainedModel, picture: Picture, machine: Machine) -> tuple[float, float]:
    """The mean loss of a step without dropout, before it is taken: as it is trained with, in chunks, and the plain way,
    each record by itself with all its logits and torch's own `cross_entropy`."""
    batches = [batch.to(machine.device) for batch in picture.micro_batches]
    model.eval()
    with machine.autocast():
        chunked = mean_loss(model, batches)
        model.set_attn_implementation("sdpa")
        plain = mean_loss(model, batches, plain_loss)
    use_flat_attention(model)
    model.train()
    return chunked, plain


# -- the record -------------------------------------------------------------------------------------------------------


def pieces_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """Each token as text; one that is only a part of a character as the tokenizer spells it."""
    texts = [tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in ids]
    spelled = tokenizer.convert_ids_to_tokens(ids)
    return [s if "\ufffd" in text or not text else text for s, text in zip(spelled, texts, strict=True)]


def quoted(piece: str) -> str:
    return f"'{one_line(piece)}'"


def the_record(picture: Picture, tokenizer: PreTrainedTokenizerBase) -> Part:
    record, pieces = picture.row, pieces_of(tokenizer, picture.row.ids)
    first, length = record.first_supervised, len(pieces)
    rows = []
    for i, (token, piece) in enumerate(zip(record.ids, pieces, strict=True)):
        following = quoted(pieces[i + 1]) if i + 1 < length else "nothing"
        counted = i + 1 < length and i + 1 >= first
        told = following if counted or i + 1 == length else f"({following})"
        yes = "yes" if i >= first else "no"
        rows.append([str(picture.start + i), str(i), str(token), quoted(piece), yes, told])
    head = ["place", "position", "id", "token", "supervised", "predicts"]
    lead = (
        f"Record {record.uid} of step {picture.number}, {length} tokens, {length - first} of them supervised "
        "(underlined, or blue): the answer and its end token. The place is that in the flat batch; the position begins "
        "at 0 with each record. A place predicts the token after it, so what is learned begins one place before the "
        "answer. In brackets: predicted as well, but not in the loss."
    )
    chips = "".join(
        f'<span class="{"hit" if i >= first else ""}">{as_text(one_line(piece))}</span>'
        for i, piece in enumerate(pieces)
    )
    middle = {0, 1, *range(first - 2, first + 4), length - 2, length - 1}
    shown = []
    for i in sorted(i for i in middle if 0 <= i < length):
        if i and i - 1 not in middle:
            shown.append(["..."] * len(head))
        shown.append(rows[i])
    html = f'<div class="tokens">{chips}</div><details><summary>All {length} places</summary>{table_of(rows, head)}'
    text, spans = "", []
    for i, piece in enumerate(map(one_line, pieces)):
        spans += [(len(text), len(text) + len(piece))] if i >= first else []
        text += piece
    return Part("A record as the model sees it", lead, head, shown, html=html + "</details>", marked=(text, spans))


def the_flat_batch(picture: Picture) -> Part:
    lengths = [len(row.ids) for row in picture.batch.rows]
    flat, padded, supervised = sum(lengths), len(lengths) * max(lengths), picture.batch.supervised
    grid = sum(len(batch.lengths) * max(batch.lengths) for batch in picture.micro_batches)
    numbers = [
        (f"padded to the longest: {len(lengths)} x {max(lengths)}", padded, " class=out"),
        (f"attention alone, micro-batches: {len(picture.micro_batches)}", grid, ""),
        ("flat: every linear layer", flat, ""),
        ("supervised: the head", supervised, ""),
    ]
    lead = (
        f"The {len(lengths)} records of the step have {min(lengths)} to {max(lengths)} tokens. Laid end to end they "
        f"are {flat:,}; padded they would be {padded:,}: {1 - flat / padded:.0%} of the places are not computed. The "
        f"head, a small model's largest matrix, sees only the {supervised:,} places that predict a supervised token."
    )
    bars = [(name, f"{count:,}", count / padded, css) for name, count, css in numbers]
    sent = torch.cat([batch.ids for batch in picture.micro_batches])
    got = torch.cat([forward.ids for forward in picture.forwards]).to(sent.device)
    same = Check("the model got these tokens and no others", float(not torch.equal(sent, got)), 0)
    return Part("What flat batching saves", lead, bars=bars, checks=[same])


def the_shapes(picture: Picture, model: PreTrainedModel) -> Part:
    batch, config, hidden = picture.micro_batches[picture.micro_batch], model.config, seen(picture).hidden
    n, longest, heads = len(batch.lengths), max(batch.lengths), config.num_attention_heads
    vocabulary = len(picture.logits)
    chunk = min(len(batch.targets), CHUNK_ROWS[hidden.device.type])
    rows = [["ids, position_ids", shape(batch.ids.shape), f"{n} records end to end"]]
    rows += [[name, shape(given), ""] for name, given in seen(picture).shapes.items()]
    rows += [
        [
            "on attention's grid",
            shape((n, heads, longest, hidden.shape[1] // heads)),
            "records, heads, longest, d / heads",
        ],
        ["out of the last block", shape(hidden.shape), "T tokens, d numbers each"],
        ["rows for the head", shape((len(batch.targets), hidden.shape[1])), "only what predicts a supervised token"],
        ["head", shape(model.get_output_embeddings().weight.shape), "V pieces of the vocabulary, d numbers each"],
        ["logits at once", shape((vocabulary, chunk)), f"of {vocabulary:,} x {len(batch.targets):,} in all"],
        ["loss", "()", "a sum, in fp64"],
    ]
    lead = f"Micro-batch {picture.micro_batch + 1} of {len(picture.micro_batches)}, in which the record stands."
    return Part("Shapes along the way", lead, ["what", "shape", ""], rows)


def shape(sizes) -> str:
    return f"({', '.join(str(size) for size in sizes)}{',' if len(sizes) == 1 else ''})"


def seen(picture: Picture) -> Forward:
    """The forward pass in which the record was."""
    return picture.forwards[picture.micro_batch]


# -- the loss ---------------------------------------------------------------------------------------------------------


def the_logits(picture: Picture, tokenizer: PreTrainedTokenizerBase, loss: float) -> Part:
    log_p = picture.logits.log_softmax(dim=0)
    p = log_p.exp()
    best, target = p.topk(min(5, len(p))).indices.tolist(), picture.target
    tokens = best + [target] * (target not in best)
    pieces = dict(zip(tokens, pieces_of(tokenizer, tokens), strict=True))
    names = {i: quoted(pieces[i]) + " (right)" * (i == target) for i in tokens}
    rows = [[names[i], str(i), f"{picture.logits[i]:.4f}", f"{p[i]:.6f}", f"{-log_p[i]:.4f}"] for i in tokens]
    (behind,) = pieces_of(tokenizer, [picture.row.ids[picture.place - picture.start]])
    lead = (
        f"At place {picture.place}, behind {quoted(behind)}, the model gives each of {len(p):,} pieces a score; "
        "softmax makes probabilities p of them. Here are the five likeliest and the right one. The loss of the place "
        f"is -ln p of the right one: {-log_p[target]:.4f}. Were all pieces as likely it would be ln {len(p):,} = "
        f"{math.log(len(p)):.4f}. The mean over the {picture.batch.supervised:,} supervised tokens of the step is "
        f"{loss:.4f}."
    )
    bars = [(names[i], f"{p[i]:.6f}", (p[i] / p.max()).item(), " class=out" * (i == target)) for i in tokens]
    head = ["piece", "id", "logit", "p", "-ln p"]
    return Part("Logits of one place", lead, head, rows, bars)


def the_loss(picture: Picture, losses: tuple[float, float], logged: float, exact: float, dropout: bool) -> Part:
    chunked, plain = losses
    rows = [["plain: each record alone, all its logits, cross_entropy", f"{plain:.8f}"]]
    rows.append(["in chunks on the flat batch, gradients made at once", f"{chunked:.8f}"])
    rows.append(["what the step itself logged" + ", with dropout" * dropout, f"{logged:.8f}"])
    lead = (
        f"The sum of -ln p over {picture.batch.supervised:,} supervised tokens, divided by their number: once, by the "
        "tokens of the whole step. It never needs all of the logits at once."
    )
    checks = [Check("the two ways give one loss", abs(plain - chunked) / plain, exact)]
    if not dropout:
        checks.append(Check("and it is the one in metrics.jsonl", abs(logged - chunked) / plain, exact))
    return Part("The loss, the plain way and in chunks", lead, ["", "nats per token"], rows, checks=checks)


def the_logits_gradient(picture: Picture, tokenizer: PreTrainedTokenizerBase, exact: float) -> Part:
    supervised, target, p = picture.batch.supervised, picture.target, picture.logits.softmax(dim=0)
    d = logits_gradient(picture.logits, target, supervised)
    others = torch.cat([d[:target], d[target + 1 :]])
    tokens = [target, *(i for i in d.topk(min(4, len(d))).indices.tolist() if i != target)]
    pieces = pieces_of(tokenizer, tokens)
    rows = [
        [quoted(piece), f"{p[i]:.6f}", "1" if i == target else "0", f"{d[i]:+.4e}"]
        for i, piece in zip(tokens, pieces, strict=True)
    ]
    logits = picture.logits.clone().requires_grad_()
    with torch.enable_grad():
        loss = cross_entropy(logits[None], torch.tensor([target], device=logits.device), reduction="sum") / supervised
        (by_autograd,) = torch.autograd.grad(loss, logits)
    came_back = seen(picture).gradient[picture.place].float() / picture.scale
    lead = (
        f"By the logits of that place the gradient of the loss is (p - onehot) / S, with S = {supervised:,}: the right "
        "piece is pushed up by what it lacks to 1, every other one down by its p. The step never holds this row as "
        "a tensor; what it sends back into the last hidden state was seen."
    )
    checks = [
        Check("the row sums to 0", abs(d.double().sum().item()) * supervised, EXACT),
        Check("the right one is negative, all others are not", float(d[target] >= 0 or bool((others < 0).any())), 0),
        Check("torch's autograd gives the same row", apart(by_autograd, d), EXACT),
        Check("times the head, it is what came back in the step", apart(came_back, picture.d_hidden), exact),
    ]
    return Part("p - onehot", lead, ["piece", "p", "onehot", "d loss / d logit"], rows, checks=checks)


def apart(a: Tensor, b: Tensor) -> float:
    """The length of the difference, as a share of that of `b`."""
    return ((a - b).norm() / b.norm().clamp(min=1e-30)).item()


# -- the update -------------------------------------------------------------------------------------------------------


def the_gradients(picture: Picture, logged: float, max_norm: float) -> Part:
    clipped = math.sqrt(sum(norm**2 for norm in picture.norms.values()))
    factor = min(1.0, max_norm / (logged + 1e-6)) if max_norm else 1.0
    lead = (
        f"Of step {picture.number}: {logged:.4f} over all weights, as it was logged. Above {max_norm:g} all of it is "
        f"scaled down to that norm, its direction kept: here times {factor:.4f}. These are the norms afterwards, layer "
        "by layer; their squares add up to that of the whole."
    )
    most = max(picture.norms.values(), default=0.0) or 1.0
    bars = [(name, f"{norm:.4f}", norm / most, "") for name, norm in picture.norms.items()]
    checks = []
    if math.isfinite(logged) and logged > 0:
        checks.append(Check("together they are the logged norm, clipped", abs(clipped / (logged * factor) - 1), 1e-4))
    return Part("Gradient norms by layer", lead, bars=bars, checks=checks)


def adamw_by_hand(n: AdamW) -> dict[str, float]:
    """Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2."""
    m = n.beta1 * n.m + (1 - n.beta1) * n.g
    v = n.beta2 * n.v + (1 - n.beta2) * n.g**2
    m_hat, v_hat = m / (1 - n.beta1**n.t), v / (1 - n.beta2**n.t)
    update = 0.0 - n.lr * (m_hat / (math.sqrt(v_hat) + n.eps) + n.weight_decay * n.w)  # 0 and not -0
    return {"m": m, "v": v, "m_hat": m_hat, "v_hat": v_hat, "update": update, "w": n.w + update}


def the_update(first: Picture, last: Picture, microscope: Microscope, tokenizer: PreTrainedTokenizerBase) -> Part:
    title = "One weight through AdamW, by hand"
    if microscope.weight is None:
        return Part(title, "Muon has every matrix that is trained here, so AdamW has none.")
    numbers = [picture.adamw for picture in (first, last)]
    by_hand = [adamw_by_hand(n) for n in numbers]
    name = f"{microscope.names[microscope.weight]}[{', '.join(map(str, microscope.place))}]"
    n = numbers[1]

    def line(label: str, formula: str, values: list[float]) -> list[str]:
        return [label, formula, *(f"{value:.8g}" for value in values)]

    rows = [
        line("lr", "warm-up: up from 0", [x.lr for x in numbers]),
        line("w", "before", [x.w for x in numbers]),
        line("g", "gradient, clipped", [x.g for x in numbers]),
        line("m", f"{n.beta1:g} m + {1 - n.beta1:.3g} g", [x["m"] for x in by_hand]),
        line("v", f"{n.beta2:g} v + {1 - n.beta2:.3g} g²", [x["v"] for x in by_hand]),
        line("m_hat", f"m / (1 - {n.beta1:g}^t)", [x["m_hat"] for x in by_hand]),
        line("v_hat", f"v / (1 - {n.beta2:g}^t)", [x["v_hat"] for x in by_hand]),
        line("update", f"-lr (m_hat / (√v_hat + {n.eps:g}) + {n.weight_decay:g} w)", [x["update"] for x in by_hand]),
        line("w'", "w + update", [x["w"] for x in by_hand]),
        line("w' seen", "what the optimizer left", [x.w_after for x in numbers]),
    ]
    checks = []
    for picture, x, mine in zip((first, last), numbers, by_hand, strict=True):
        if picture.skipped:
            continue
        step = f"step {picture.number}"
        checks.append(Check(f"{step}, m", abs(x.m_after - mine["m"]), 1e-5 * abs(mine["m"])))
        checks.append(Check(f"{step}, v", abs(x.v_after - mine["v"]), 1e-5 * mine["v"]))
        rounding = 2**-22 * abs(x.w) + 1e-5 * abs(mine["update"]) + 1e-30  # w' is fp32
        checks.append(Check(f"{step}, w'", abs(x.w_after - mine["w"]), rounding))
    still = "Step 1 has the learning rate 0, so nothing moves: it only starts the averages m and v. " * (
        first.learning_rate == 0
    )
    row = f", the row of {quoted(pieces_of(tokenizer, [microscope.place[0]])[0])} in the head" * (
        microscope.weight is microscope.model.get_output_embeddings().weight
    )
    lead = f"{name}{row}. {still}An update has about the size of lr, whatever that of g."
    head = ["", "", *(f"step {picture.number}{', skipped' * picture.skipped}" for picture in (first, last))]
    return Part(title, lead, head, rows, checks=checks)


def muon_by_hand(matrix: Matrix) -> tuple[Tensor, Tensor, Tensor]:
    """The direction that is made orthogonal, its orthogonal factor, and the weight after the update."""
    momentum = MOMENTUM * matrix.momentum + (1 - MOMENTUM) * matrix.g
    ahead = MOMENTUM * momentum + (1 - MOMENTUM) * matrix.g  # Nesterov's
    [factor], length = orthogonal([ahead]), UPDATE_RMS * max(matrix.w.shape) ** 0.5
    return ahead, factor, matrix.w - matrix.lr * (matrix.weight_decay * matrix.w + length * factor)


def the_matrix(picture: Picture, microscope: Microscope) -> Part:
    matrix, name = picture.matrix, microscope.names[microscope.matrix]
    ahead, factor, after = muon_by_hand(matrix)
    length = UPDATE_RMS * max(matrix.w.shape) ** 0.5
    before = torch.linalg.svdvals(ahead / ahead.norm().clamp(min=1e-30))
    step = matrix.lr * length
    moved = (matrix.w * (1 - matrix.lr * matrix.weight_decay) - matrix.w_after) / step if step else factor
    made = torch.linalg.svdvals(moved)
    rows = [
        [label, *(f"{value:.5f}" for value in (values[0], values[len(values) // 2], values[-1]))]
        for label, values in (("momentum, divided by its norm", before), ("the update that was taken", made))
    ]
    lead = (
        f"{name}, {shape(matrix.w.shape)}, in step {picture.number}. A matrix is a sum of parts, U S V'; a gradient "
        f"has a few long ones and many short ones. Muon makes all lengths in S about 1, by {ITERATIONS} iterations of "
        "Newton and Schulz; only a part without any gradient stays at 0. Below: singular values. The update is "
        f"{UPDATE_RMS:g} √{max(matrix.w.shape)} lr times that."
    )
    at_most = 2**-21 * matrix.w.abs().max().item() + 1e-3 * step * factor.abs().max().item()
    checks = [] if picture.skipped else [
        Check("W' by hand is the one that was seen", (matrix.w_after - after).abs().max().item(), at_most)
    ]  # fmt: skip
    lines = [
        ("momentum", list(enumerate(before.tolist(), 1)), ""),
        ("update", list(enumerate(made.tolist(), 1)), "out"),
    ]
    html = f'<div class="curves">{curve("Singular values, the largest first", lines)}</div>'
    head = ["singular values", "largest", "in the middle", "smallest"]
    return Part("One matrix through Muon", lead, head, rows, checks=checks, html=html)


@torch.no_grad()
def the_adapter(first: Picture, last: Picture, microscope: Microscope, machine: Machine, exact: float) -> Part:
    model, layer, name = microscope.model.eval(), microscope.lora, microscope.lora_name
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    a, b, s = layer.lora_A, layer.lora_B, layer.lora.scaling
    x, y, correction = last.lora
    with machine.autocast():
        wx, now = layer.base(x[None])[0].float(), layer(x[None])[0].float()
    moved = correction_of(layer, x)
    norms = {kind: [f"step {p.number}: {p.kinds[kind]:.3g}" for p in (first, last)] for kind in ("lora_A", "lora_B")}
    rows = [
        ["frozen", f"{short(frozen)} numbers, without gradient, without m and v"],
        ["trained", f"{short(trained)} in {len(lora_layers(model))} layers: {trained / (frozen + trained):.2%}"],
        ["here", f"W x -> {shape(wx.shape)}, A {shape(a.shape)}, B {shape(b.shape)}, s = {s:g}"],
        ["gradient norm of all A", ", ".join(norms["lora_A"])],
        ["gradient norm of all B", ", ".join(norms["lora_B"])],
        [f"|W x| in step {last.number}", f"{wx.norm():.6g}"],
        ["|s B A x| in it", f"{correction.norm():.3g}"],
        ["|s B A x| after its update", f"{moved.norm():.3g}"],
    ]
    lead = (
        f"y = W x + s B (A x), looked at in {name} for one token. W stays as it is. B begins at 0, so the model begins "
        "as it was, and A has no gradient until B has moved: what comes back to it passes through B."
    )
    checks = [Check("no frozen weight has a gradient", len(first.strays) + len(last.strays), 0)]
    if not layer.lora.dropout:
        checks.append(Check("W x + s B (A x) by hand is what the layer gave", apart(wx + correction, y.float()), exact))
    checks.append(Check("and what it gives after the update", apart(wx + moved, now), exact))
    return Part("LoRA: what is frozen, and what is added", lead, ["", ""], rows, checks=checks)


# -- memory and time --------------------------------------------------------------------------------------------------


def the_memory(picture: Picture, model: PreTrainedModel, memory: MemoryPlan, entry: dict) -> Part:
    def kept(forward: Forward) -> int:
        return sum(forward.kept.values())

    largest = max(picture.forwards, key=kept)
    activations = int(memory.kept + memory.activations_per_token * len(largest.ids))
    pairs = [
        ("weights", memory.weights, sum(p.nbytes for p in model.parameters())),
        ("gradients", memory.gradients, picture.gradient_bytes),
        ("optimizer", memory.optimizer, picture.state_bytes),
        (f"kept for the backward, {len(largest.ids):,} tokens", activations, kept(largest)),
        ("all that training adds", entry["planned_adds_bytes"], entry["training_adds_bytes"]),
    ]
    most = max(max(pair[1:]) for pair in pairs) or 1
    bars = []
    for name, planned, measured in pairs:
        bars.append((f"{name}: planned", size(planned), planned / most, " class=out"))
        bars.append((f"{name}: measured", size(measured), max(0, measured) / most, ""))
    lead = (
        "Planned before the first step, from the weights and two small passes; measured in the tensors of step "
        f"{picture.number}. The last pair is planned for the longest records; on a CPU it is measured for the whole "
        "process, with what the libraries hold."
    )
    return Part("Where the memory goes", lead, bars=bars)


def the_time(picture: Picture, entry: dict) -> Part:
    seconds = {"waiting for records": entry["data_wait"] * entry["seconds"], **picture.seconds}
    most = max(seconds.values()) or 1.0
    bars = [(name, f"{1000 * value:.1f} ms", value / most, "") for name, value in seconds.items()]
    lead = f"Step {picture.number}, on this machine; one step alone says little, so no number here is a benchmark."
    return Part("Where the time goes", lead, bars=bars)


# -- on the screen, as a page -----------------------------------------------------------------------------------------


def show(part: Part) -> None:
    print(f"\n{part.title}\n{'-' * len(part.title)}\n{fill(one_line(part.lead), WIDTH)}")
    text, spans = part.marked
    if text:
        write = getattr(sys.stdout, "write_marked", None)
        write(f"\n{text}\n", [(start + 1, end + 1) for start, end in spans]) if write else print(f"\n{text}")
    table = [part.head, *part.rows] if any(part.head) else part.rows
    widths = [max(len(line[i]) for line in table) for i in range(len(part.head))]
    print("", *("  " + "  ".join(map(str.ljust, line, widths)).rstrip() for line in table), sep="\n")
    if part.bars and not part.rows:
        name_width, width = max(len(name) for name, *_ in part.bars), max(len(shown) for _, shown, *_ in part.bars)
        for name, shown, length, _ in part.bars:
            print(f"  {name:{name_width}}  {shown:>{width}}  {'#' * round(BAR * length)}".rstrip())
    for check in part.checks:
        print(f"  {check}")


def as_page(model: str, tiles: list[tuple[str, str]], parts: list[Part]) -> str:
    lead = f"{model}: what the first two steps of a training did, seen from outside and computed again by hand."
    body = [f"<h1>One step under the microscope</h1><p>{as_text(lead)}</p>", tiles_of(tiles)]
    for part in parts:
        content = [part.html]
        if part.rows:
            content.append(table_of(part.rows, part.head if any(part.head) else None))
        if part.bars:
            lines = (row(f"<td>{as_text(n)}</td>", [as_text(shown)], 100 * x, css) for n, shown, x, css in part.bars)
            content.append(f"<table>{''.join(lines)}</table>")
        checks = "".join(f"<li>{as_text(str(check))}</li>" for check in part.checks)
        content.append(f'<ul class="checks">{checks}</ul>' if checks else "")
        body.append(section(part.title, part.lead, "".join(content)))
    return page("One step under the microscope", body)
