"""`--explain`: the numbers that it shows against references that share nothing with it, and what it leaves behind."""

import pytest
import torch
from conftest import RECORDS, logged, script, write_data
from kinds import folder_of
from test_report import EVIL, Tags
from torch.nn.functional import cross_entropy

from catalogue.prepare import prepare
from model.load import load_model, load_tokenizer
from model.muon import Muon, hidden_matrices
from run import explain
from run.cli import UsageError
from run.config import parse_train
from run.data import EXAMPLE_CATALOGUE
from run.folders import runs_in
from run.microscope import AdamW, layer_of, logits_gradient


@pytest.fixture
def explained(tmp_path, train, monkeypatch, capsys):
    """`explained("--model", ...)`: both pictures, the microscope, what was said, and the page."""
    seen = {}
    update = explain.the_update

    def the_update(first, last, microscope, tokenizer):
        seen.update(first=first, last=last, microscope=microscope)
        return update(first, last, microscope, tokenizer)

    monkeypatch.setattr(explain, "the_update", the_update)

    def run(*args):
        assert train("--explain", *args) == 0
        page = (tmp_path / "runs" / "explain.html").read_text(encoding="utf-8")
        return seen["first"], seen["last"], seen["microscope"], capsys.readouterr().out, page

    return run


def mean_loss_of(model, batch) -> torch.Tensor:
    """As a beginner writes it: each record alone, all logits, autograd through torch's own cross entropy."""
    loss, count = 0.0, 0
    for row in batch.rows:
        ids, labels = torch.tensor([row.ids]), torch.tensor(row.ids[1:])
        labels[: max(row.first_supervised - 1, 0)] = -100
        loss = loss + cross_entropy(model(ids).logits[0, :-1], labels, reduction="sum")
        count += (labels != -100).sum()
    return loss / count


def test_every_number_of_a_full_training_is_that_of_a_plain_loop(data, gpt2_folder, explained):
    """Two steps of torch's AdamW, not fused, on the untouched model: logits, gradients, moments and weights."""
    first, last, microscope, said, _ = explained("--model", gpt2_folder, "--max_steps", 50, "--micro_batch_tokens", 150)
    assert len(first.micro_batches) > 2 and microscope.weight is not None and first.lora is None
    model = load_model(gpt2_folder).train()
    trained = list(model.parameters())
    matrices, vectors = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, foreach=False, fused=False)
    name, place = microscope.names[microscope.weight], microscope.place
    weight = dict(model.named_parameters())[name]
    assert name == "transformer.wte.weight" and place == (first.target, 0)
    logits = model(torch.tensor([first.row.ids])).logits[0, first.row.first_supervised - 1]
    torch.testing.assert_close(first.logits, logits.detach(), rtol=1e-5, atol=1e-6)
    for picture, lr in ((first, 0.0), (last, 5e-5 / 2)):
        optimizer.zero_grad()
        mean_loss_of(model, picture.batch).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr
        number, before = picture.adamw, weight[place].item()
        optimizer.step()
        after = (
            weight.grad,
            weight.detach(),
            optimizer.state[weight]["exp_avg"],
            optimizer.state[weight]["exp_avg_sq"],
        )
        expected = (lr, before, *(tensor[place].item() for tensor in after))
        got = (number.lr, number.w, number.g, number.w_after, number.m_after, number.v_after)
        torch.testing.assert_close(torch.tensor(got), torch.tensor(expected), rtol=1e-4, atol=1e-10)
        norms = {}
        for key, p in model.named_parameters():
            norms[layer_of(key)] = norms.get(layer_of(key), 0.0) + p.grad.square().sum().item()
        assert picture.norms == pytest.approx({key: square**0.5 for key, square in norms.items()}, rel=1e-4)
    assert first.adamw.w == first.adamw.w_after == last.adamw.w != last.adamw.w_after
    assert f"{name}[{first.target}, 0]" in said and f"{last.adamw.w_after:.8g}" in said


def test_pocket_with_muon_on_the_example(tmp_path, explained):
    prepare([EXAMPLE_CATALOGUE], tmp_path / "data")
    first, last, microscope, said, page = explained("--model", "pocket", "--max_length", 128)
    assert isinstance(microscope.optimizer, Muon)
    hidden = hidden_matrices(microscope.model)
    assert any(microscope.matrix is p for p in hidden) and not any(microscope.weight is p for p in hidden)
    assert "8.3178" in said and abs(first.logits.logsumexp(0) - first.logits.mean() - 8.3178).item() < 0.2
    # one direction without a gradient (the sum over a row, which the norm behind it takes out), all others about 1
    matrix = last.matrix
    momentum = 0.2 * first.matrix.g * 0.8 + 0.2 * matrix.g  # 0.8: MOMENTUM
    direction = 0.8 * momentum + 0.2 * matrix.g
    u, lengths, v = torch.linalg.svd(direction, full_matrices=False)
    change = (matrix.w * (1 - matrix.lr * 0.01) - matrix.w_after) / (matrix.lr * 0.5 * max(matrix.w.shape) ** 0.5)
    along = (u.T @ change @ v.T).diagonal()[lengths > 1e-3 * lengths[0]]
    assert along.min() > 0.6 and along.max() < 1.3
    assert torch.equal(first.matrix.w, first.matrix.w_after)
    assert "One matrix through Muon" in page and page.count("<svg") == 1
    assert "✗" not in said and said.count("✓") >= 15


def test_lora_what_is_frozen_and_what_moves(data, gpt2_folder, explained):
    first, last, microscope, said, page = explained("--model", gpt2_folder, "--lora", "--lora_r", 4, "--max_steps", 50)
    assert microscope.names[microscope.weight].endswith("lora_B")
    for picture in (first, last):
        assert picture.kinds["lora_A"] == 0 and picture.kinds["lora_B"] > 0 and not picture.strays
        x, y, correction = picture.lora
        assert correction.count_nonzero() == 0
        torch.testing.assert_close(y, microscope.lora.base(x[None])[0].detach(), rtol=1e-5, atol=1e-6)
    n = last.adamw  # w begins at 0, so all of it is the update
    m, v = n.beta1 * first.adamw.m_after + 0.1 * n.g, n.beta2 * first.adamw.v_after + 0.001 * n.g**2
    assert n.w == 0 and n.w_after == pytest.approx(-n.lr * (m / 0.19) / ((v / 0.001999) ** 0.5 + 1e-8), rel=1e-4)
    frozen = dict(load_model(gpt2_folder).named_parameters())
    now = {name.replace(".base.", "."): p for name, p in microscope.model.named_parameters() if not p.requires_grad}
    assert all(torch.equal(p, frozen[name]) for name, p in now.items()) and len(now) == len(frozen)
    assert "LoRA: what is frozen" in page and "without gradient" in said


@pytest.mark.parametrize("options", [("--optim", "muon", "--lora"), ("--dropout", 0.1), ("--loss_on", "all")])
def test_other_trainings_are_explained_too(data, gpt2_folder, explained, options):
    _, last, microscope, said, _ = explained("--model", gpt2_folder, *options)
    assert (microscope.weight is None) == ("--lora" in options) and "✗" not in said
    assert ("with dropout" in said) == ("--dropout" in options)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_other_architectures_are_explained_too(tmp_path, data, explained, kind):
    """A head of its own, and one behind another layer."""
    first, _, _, said, _ = explained("--model", folder_of(kind, tmp_path / kind), "--max_steps", 9)
    assert "✗" not in said and first.forwards[0].shapes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU, or torch is a CPU build")
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("more", [(), ("--lora",), ("--optim", "muon")], ids=["full", "lora", "muon"])
def test_on_a_gpu(data, gpt2_folder, explained, precision, more):
    _, last, _, said, _ = explained("--model", gpt2_folder, "--device", "cuda", "--precision", precision, *more)
    assert "✗" not in said and not last.skipped


def test_looking_changes_nothing(tmp_path, data, gpt2_folder, train, explained):
    """Bitwise the losses and gradient norms of a run that nobody looks into, dropout included."""
    options = ("--model", gpt2_folder, "--dropout", 0.1, "--max_steps", 30, "--lr", 0.01, "--batch_size", 4)
    first, last, *_ = explained(*options)
    train(*options, "--run_name", "a", "--logging_steps", 1)
    entries = logged(tmp_path / "runs" / "a")
    assert first.number == 1 and last.number == 2
    assert last.learning_rate == entries[1]["learning_rate"]
    norms = [sum(norm**2 for norm in p.norms.values()) ** 0.5 for p in (first, last)]
    assert norms == pytest.approx([min(1.0, e["grad_norm"]) for e in entries[:2]], rel=1e-5)


def test_the_numbers_on_the_screen_are_those_of_the_log(data, gpt2_folder, train, tmp_path, capsys):
    options = ("--model", gpt2_folder, "--max_steps", 30, "--dropout", 0.1)
    assert train("--explain", *options) == 0
    said = capsys.readouterr().out
    train(*options, "--run_name", "a", "--logging_steps", 1)
    first, second = logged(tmp_path / "runs" / "a")[:2]
    assert f"{first['loss']:.8f}" in said and f"{second['grad_norm']:.4f} over all weights" in said


def test_the_page_stands_alone_and_text_stays_text(tmp_path, explained, gpt2_folder):
    evil = EVIL.replace("\ud83d", "") + "\x1b[31m\u202e"
    write_data(tmp_path / "data", [r | {"title": evil, "uid": f"<b>{r['uid']}"} for r in RECORDS])
    *_, said, page = explained("--model", gpt2_folder)
    tags = Tags(page)
    assert not tags.tags & {"script", "link", "img", "iframe", "object", "form", "base"}
    assert "url(" not in page and "@import" not in page
    assert '">&lt;</span>' in page and "><</span>" not in page  # a token of its own
    assert '<script>alert("1")</script>' in tags.text and "Record <b>U" in tags.text and page.count("<b>") == 4  # tiles
    assert not set(page) & {"\x1b", "\x00", "\u202e"} and not set(said) & {"\x1b", "\x00", "\u202e"}


def test_nothing_is_left_but_the_page(tmp_path, data, gpt2_folder):
    """Also of a step that is saved, and that is the last."""
    out = tmp_path / "out"
    common = ("--explain", "--model", gpt2_folder, "--data", data, "--output_dir", out, "--device", "cpu")
    done = script("train.py", *common, "--max_steps", 2, "--save_steps", 1, "--eval_steps", 1)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in out.iterdir()] == ["explain.html"] and runs_in(out) == []
    assert str(out / "explain.html") in done.stdout and "no training" in done.stdout
    assert "Traceback" not in done.stderr and "Training into" not in done.stdout


@pytest.mark.parametrize(
    "args, sentence",
    [(("--dry_run",), "takes no step"), (("--resume",), "--model RUN/final"), (("--resume", "a"), "first")],
)
def test_what_makes_no_sense_is_a_sentence(args, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_train(["--explain", *args])
    assert stop.value.code == 2 and sentence in capsys.readouterr().err


def test_a_run_of_one_step_or_of_several_processes_is_refused(data, gpt2_folder, train, monkeypatch):
    with pytest.raises(UsageError, match="two steps"):
        train("--explain", "--model", gpt2_folder, "--max_steps", 1)
    from run import session
    from run.ranks import Ranks

    monkeypatch.setattr(session, "start_ranks", lambda device: Ranks(0, 2))
    with pytest.raises(UsageError, match="torchrun"):
        train("--explain", "--model", gpt2_folder)


def test_a_step_without_any_answer_is_a_sentence(tmp_path, gpt2_folder, train):
    """The plan looks at the first records; the order of the first step is another."""
    long = [{"uid": f"L{i}", "title": "word " * 300, "content": "No room."} for i in range(3000)]
    write_data(tmp_path / "data", RECORDS[:1] + long)
    with pytest.raises(UsageError, match="No record of step 1"):
        train("--explain", "--model", gpt2_folder, "--batch_size", 1, "--max_steps", 5)


def test_a_number_that_is_not_the_one_that_was_seen_is_an_error(data, gpt2_folder, train, monkeypatch, capsys):
    by_hand = explain.adamw_by_hand
    monkeypatch.setattr(explain, "adamw_by_hand", lambda n: by_hand(n) | {"m": 2 * by_hand(n)["m"]})
    with pytest.raises(RuntimeError, match="step 1, m: NOT SO"):
        train("--explain", "--model", gpt2_folder)
    assert "✗ step 2, m" in capsys.readouterr().out


def test_adamw_by_hand_is_that_of_torch():
    weight = torch.nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=0.1, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.2)
    m = v = 0.0
    for t, g in enumerate((0.3, -2.0, 1e-6), 1):
        number = AdamW(0.1, 0.2, 0.8, 0.95, 1e-3, t, weight.item(), g, m, v)
        weight.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        mine = explain.adamw_by_hand(number)
        m, v = mine["m"], mine["v"]
        assert mine["w"] == pytest.approx(weight.item(), rel=1e-12)
        assert (m, v) == pytest.approx((optimizer.state[weight]["exp_avg"].item(),
                                        optimizer.state[weight]["exp_avg_sq"].item()), rel=1e-12)  # fmt: skip


def test_the_gradient_of_the_logits_is_that_of_autograd():
    torch.manual_seed(0)
    logits = torch.randn(50, dtype=torch.float64, requires_grad=True)
    (cross_entropy(logits[None], torch.tensor([7])) / 13).backward()
    torch.testing.assert_close(logits_gradient(logits.detach(), 7, 13), logits.grad)


def test_a_part_of_a_character_is_spelled(gpt2_folder):
    tokenizer = load_tokenizer(gpt2_folder)
    ids = tokenizer("\U0001f600", add_special_tokens=False).input_ids
    pieces = explain.pieces_of(tokenizer, ids)
    assert len(pieces) == len(ids) > 1 and all(pieces) and "\ufffd" not in "".join(pieces)
