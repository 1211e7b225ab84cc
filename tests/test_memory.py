"""The plan against what tensors really take, and recovery from an out-of-memory error."""

import ctypes
import gc
import io
import sys
import weakref

import pytest
import torch
from conftest import RECORDS, logged, stopped_at, tiny_gpt2, write_data
from safetensors.torch import load_file

from model.attention import use_flat_attention
from model.half import halve
from model.linear import use_onednn
from model.lora import Lora, wrap
from model.loss import summed_loss
from run.cli import run_script
from run.device import begin_peak, held_memory, peak_memory, pick_machine
from run.files import verify
from run.memory import MemoryPlan, OutOfMemory, TensorAccounting, plan_memory
from run.micro_batch import MicroBatcher, smaller_micro_batch, with_less_when_full
from run.ranks import Ranks
from run.state import TrainState
from text.batch import Encoder, blank_batch, step_batch
from text.template import QA

PLAN = MemoryPlan(
    weights=100,
    gradients=100,
    optimizer=200,
    logits=50,
    embedding_gradient=10,
    kept=5,
    activations_per_token=2.0,
    backward_per_token=1.0,
)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("records, length", [(8, 128), (16, 256)])
def test_the_plan_is_within_15_percent_of_what_a_step_takes(
    records, length, micro_batches, lora, checkpointed, precision
):
    model = tiny_gpt2(3000, n_embd=96, n_layer=4, activation_function="gelu_pytorch_tanh").train()
    machine = pick_machine("cpu", precision)
    if lora:
        wrap(model, Lora())
        halve(model, machine.dtype)
    if checkpointed:
        model.activation_checkpointing_enable({"use_reentrant": False})
    use_onednn(model)
    use_flat_attention(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)

    def loss_of(batch) -> torch.Tensor:
        with machine.autocast():
            return summed_loss(model, batch)

    plan = plan_memory(model, machine)

    def step() -> None:
        for _ in range(micro_batches):
            loss_of(blank_batch(records // micro_batches, length)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()  # makes the optimizer state
    accounting = TensorAccounting()
    accounting.count([*model.parameters(), *(v for state in optimizer.state.values() for v in state.values())])
    with accounting:
        step()
    assert model.is_activation_checkpointing == checkpointed
    predicted = plan.peak(records * length // micro_batches, accumulating=micro_batches > 1)
    assert predicted == pytest.approx(accounting.peak, rel=0.15)


def test_the_table_adds_up():
    rows = dict(PLAN.rows(10, step_tokens=20, free=10**6))
    assert list(rows) == ["memory", "  weights", "  gradients", "  optimizer", "  activations"]
    big = MemoryPlan(*(2**30 * n for n in (1, 2, 4, 1, 1, 1)), 2**30 / 10, 0.0)
    first, *parts = big.rows(10, step_tokens=20, free=0)
    assert float(first[1].split()[0]) == sum(float(value.split()[0]) for _, value in parts) == 1 + 2 + 4 + 3


def test_the_process_and_what_training_adds_are_told_apart():
    big = MemoryPlan(*(2**30 * n for n in (1, 2, 4, 1, 1, 1)), 2**30 / 10, 0.0)
    expected = "7.00 GB before training, which adds 9.00 GB of tensors at most"  # the weights are among the 7
    assert big.process_row(7 * 2**30, 10, step_tokens=20) == ("process", expected)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is that of the whole process's life")
def test_the_peak_is_of_training_and_not_of_what_came_before():
    device = torch.device("cpu")
    block = torch.ones(2**26)  # 256 MB
    del block
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    begin_peak(device)
    before = held_memory(device)
    assert peak_memory(device) < before + 2**26
    block = torch.ones(2**25)  # 128 MB
    del block
    assert before + 2**26 < peak_memory(device) < before + 2**28


def test_a_validation_that_does_not_fit_is_done_in_smaller_pieces():
    tried = []

    def compute(tokens):
        tried.append(tokens)
        if tokens > 300:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return tokens

    assert with_less_when_full(compute, 1000, smallest=200) == 250
    assert tried == [1000, 500, 250]
    with pytest.raises(OutOfMemory):
        with_less_when_full(compute, 1000, smallest=600)


def test_tensor_accounting_counts_what_lives_at_once():
    accounting = TensorAccounting()
    with accounting:
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b[:10] * 2  # the slice shares its storage
        del b, c
    assert (accounting.peak, accounting.now) == (8000, 0)


def test_the_parts_of_a_peak():
    assert PLAN.peak(10, accumulating=False) == 100 + 200 + 110  # the gradients outweigh 5 + 20 + 50
    assert PLAN.peak(10, accumulating=True) == 100 + 200 + 100 + 5 + 20 + 50
    assert PLAN.peak(100, accumulating=False) == 100 + 200 + 5 + 200 + 100  # a layer's backward outweighs the logits


def test_the_largest_micro_batch_that_fits():
    assert PLAN.largest_micro_batch(10**6, longest_record=16, at_most=4096) == 4096
    tokens = PLAN.largest_micro_batch(1000, longest_record=16, at_most=4096)
    assert PLAN.peak(tokens, True) <= 0.92 * 1000 + 100 < PLAN.peak(2 * tokens, True)
    with pytest.raises(OutOfMemory, match="--lora, --load_in_4bit, a shorter --max_length"):
        PLAN.largest_micro_batch(300, longest_record=16, at_most=4096)


def out_of_memory_once(module, after: int):
    """A `summed_loss` that fails like a full device at one of its calls."""
    calls = iter(range(10**6))

    def failing(model, batch):
        if next(calls) == after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return summed_loss(model, batch)

    return failing


@pytest.mark.parametrize("after", [3, 6])  # in the middle of a step
def test_out_of_memory_changes_neither_losses_nor_weights(
    tmp_path, data, gpt2_folder, train, monkeypatch, capsys, after
):
    import train as script

    common = ("--model", gpt2_folder, "--max_steps", 4, "--per_device_train_batch_size", 8, "--logging_steps", 1)
    common += ("--micro_batch_tokens", 200, "--learning_rate", 1e-3)
    train("--run_name", "whole", *common)
    with monkeypatch.context() as patch:
        patch.setattr(script, "summed_loss", out_of_memory_once(script, after))
        train("--run_name", "recovered", *common)
    assert "Out of memory" in capsys.readouterr().out
    whole, recovered = tmp_path / "runs" / "whole", tmp_path / "runs" / "recovered"
    assert [e["loss"] for e in logged(whole)] == pytest.approx([e["loss"] for e in logged(recovered)], rel=1e-6)
    expected, got = (load_file(run / "final" / "model.safetensors") for run in (whole, recovered))
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-6)


def test_a_run_resumed_after_a_halving_is_bitwise_the_one_that_went_on(tmp_path, data, gpt2_folder, train, monkeypatch):
    import train as script

    common = ("--model", gpt2_folder, "--max_steps", 5, "--per_device_train_batch_size", 8, "--logging_steps", 1)
    common += ("--micro_batch_tokens", 200, "--learning_rate", 1e-2, "--dropout", 0.1)
    for name in ("whole", "parts"):
        with monkeypatch.context() as patch:
            patch.setattr(script, "summed_loss", out_of_memory_once(script, 3))
            if name == "whole":
                train("--run_name", name, *common)
            else:
                with stopped_at(3):
                    train("--run_name", name, *common)
    train("--resume", tmp_path / "runs" / "parts")
    whole, parts = (tmp_path / "runs" / name for name in ("whole", "parts"))
    assert [e["loss"] for e in logged(whole)] == [e["loss"] for e in logged(parts)]
    expected, got = (load_file(run / "final" / "model.safetensors") for run in (whole, parts))
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_the_step_that_is_done_again_draws_the_same_dropout(tmp_path, data, gpt2_folder, train, monkeypatch):
    """One record a micro-batch on both sides of the failure, so that not even the order of a sum differs: bitwise."""
    import train as script

    def one_failure_without_halving(error, tokens, *_):
        assert isinstance(error, torch.OutOfMemoryError)
        return tokens

    common = ("--model", gpt2_folder, "--max_steps", 3, "--per_device_train_batch_size", 4, "--dropout", 0.2)
    common += ("--micro_batch_tokens", 1, "--learning_rate", 1e-2)
    train("--run_name", "whole", *common)
    with monkeypatch.context() as patch:
        patch.setattr(script, "summed_loss", out_of_memory_once(script, 6))
        patch.setattr("run.micro_batch.smaller_micro_batch", one_failure_without_halving)
        train("--run_name", "recovered", *common)
    expected, got = (load_file(tmp_path / "runs" / r / "final" / "model.safetensors") for r in ("whole", "recovered"))
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_the_failed_attempt_is_gone_before_the_next_one_begins(records, tokenizer):
    """Else a step would be done again with less memory than before. The error's traceback holds what it made."""
    batch = step_batch(Encoder(tokenizer, QA, 256).rows(records), 200)
    weight = torch.nn.Parameter(torch.ones(2))
    state = TrainState.new(torch.device("cpu"), micro_batch_tokens=200)
    batcher = MicroBatcher(state, torch.optim.SGD([weight]), torch.device("cpu"), Ranks())
    made, gradients = [], []

    def forward_backward(micro_batches, supervised):
        if not made:
            activations = weight * torch.ones(1000, 2)
            made.append(weakref.ref(activations))
            activations.sum().backward()
            raise torch.OutOfMemoryError("CUDA out of memory.")
        made.append(made[0]())
        gradients.append(weight.grad)
        return len(micro_batches)

    gc.disable()
    try:
        assert batcher.run(forward_backward, batch) > len(batch.prepared)
    finally:
        gc.enable()
    assert made[1] is None and gradients == [None] and state.micro_batch_tokens == 100


def test_at_the_smallest_micro_batch_it_ends_with_exit_code_4(tmp_path, data, gpt2_folder, train, monkeypatch):
    import train as script

    calls = iter(range(10**6))

    def always_full_after_a_while(model, batch):
        if next(calls) > 2 * 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return summed_loss(model, batch)

    monkeypatch.setattr(script, "summed_loss", always_full_after_a_while)
    common = ("--model", gpt2_folder, "--run_name", "a", "--per_device_train_batch_size", 4, "--save_steps", 1)
    with pytest.raises(OutOfMemory, match="one record at a time") as error:
        train(*common, "--micro_batch_tokens", 1)
    assert error.value.exit_code == 4
    verify(tmp_path / "runs" / "a" / "checkpoint-2")


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes"):
        smaller_micro_batch(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 100, 4)
    assert smaller_micro_batch(RuntimeError("DefaultCPUAllocator: can't allocate memory"), 100, 4) == 50


def test_memory_that_cannot_suffice_is_said_before_the_first_step(tmp_path, gpt2_folder, train, monkeypatch):
    write_data(tmp_path / "data", RECORDS)
    monkeypatch.setattr("run.plan.free_memory", lambda device: 10_000)
    with pytest.raises(OutOfMemory, match="--lora"):
        train("--model", gpt2_folder)
    assert not (tmp_path / "runs").exists()


def test_out_of_memory_anywhere_else_is_a_sentence_and_exit_code_4(monkeypatch):
    """Such as in the first optimizer step, which makes AdamW's moments."""

    def main():
        raise torch.OutOfMemoryError("CUDA out of memory.")

    for name in ("stdin", "stdout", "stderr"):
        stream = None if name == "stdin" else io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        monkeypatch.setattr(f"sys.{name}", stream)
    with pytest.raises(SystemExit) as leaving:
        run_script(main)
    assert leaving.value.code == 4
