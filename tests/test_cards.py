"""What the code does on a GPU, as far as a CPU can show it: with torch.cuda replaced, by counting, by comparing."""

import gc
import os
import re
import subprocess
import sys
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import ARCHITECTURES, tiny_gpt2
from kinds import folder_of
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

import run.memory as memory
from model.attention import use_flat_attention
from model.cross_entropy import CHUNK_ROWS
from model.half import cast_norms_once, halve
from model.lora import Lora, wrap
from model.loss import check_precision, summed_loss
from run.cli import _said
from run.device import EnvironmentFault, Machine, pick_machine, why_no_cuda
from run.loading import use_flat_batches
from run.memory import MemoryPlan, TensorAccounting, free_memory, plan_memory
from run.micro_batch import MicroBatcher, is_out_of_memory
from run.plan import measure_memory
from run.ranks import Ranks, start_ranks
from run.shard import parallelize
from run.state import TrainState
from text.batch import Encoder, blank_batch, flatten, step_batch
from text.template import QA

CARD, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture
def card(monkeypatch):
    """A card that computes in bf16 too, of 8 GB; what is called is recorded."""
    calls = []
    properties = SimpleNamespace(name="RTX", total_memory=8 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty_cache"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: calls.append("mem_get_info") or (5 * 2**30, 2**33))
    kernels = torch.backends.cuda
    yield calls
    kernels.matmul.allow_fp16_reduced_precision_reduction = kernels.matmul.allow_bf16_reduced_precision_reduction = True
    kernels.enable_cudnn_sdp(True)


# -- memory -----------------------------------------------------------------------------------------------------------


def test_a_graph_whose_backward_ran_out_of_memory_is_gone_when_it_is_done_again(records, tokenizer):
    """The usual place on a card. What was left of the graph would be memory that the second attempt lacks."""
    model = tiny_gpt2(len(tokenizer), n_embd=96, n_layer=4).train()
    use_flat_attention(model)
    full, alive = iter([True]), []

    def out_of_memory(gradient):
        if next(full, False):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    def watch(module, inputs, output):
        (output if isinstance(output, torch.Tensor) else output[0]).register_hook(out_of_memory)

    model.transformer.h[2].register_forward_hook(watch)  # behind it the backward is done, before it it is not
    state, accounting = TrainState.new(CPU, micro_batch_tokens=4096), TensorAccounting()

    def forward_backward(micro_batches, supervised):
        alive.append(accounting.now)
        for batch in micro_batches:
            loss = summed_loss(model, batch)
            alive.append(accounting.now)
            (loss / supervised).backward()
        return loss.detach()

    batch = step_batch(Encoder(tokenizer, QA, 256).rows(records), 4096)
    with accounting:
        MicroBatcher(state, torch.optim.SGD(model.parameters()), CPU, Ranks()).run(forward_backward, batch)
    begun, after_forward, begun_again, *_ = alive
    assert begun_again - begun < 0.02 * (after_forward - begun)


def test_free_memory_counts_what_torch_holds_for_nothing(card):
    assert free_memory(CARD) == 5 * 2**30
    assert card == ["empty_cache", "mem_get_info"]


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)",
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_the_libraries_of_a_card_run_out_of_memory_in_their_own_words(message):
    assert is_out_of_memory(RuntimeError(message)) and is_out_of_memory(torch.AcceleratorError(message))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


@pytest.mark.parametrize("lora", [False, True])
def test_a_model_that_is_to_be_divided_is_planned_on_the_host_as_the_card_will_have_it(lora):
    """In bf16 for fp16: as many bytes. Before, its frozen fp16 weights met fp32 activations there and nothing else."""
    plans = []
    for machine in (Machine(CARD, "fp16", "a card"), Machine(CARD, "bf16", "a card")):
        model = tiny_gpt2(500).train()
        if lora:
            wrap(model, Lora())
        halve(model, machine.dtype)
        use_flat_attention(model)
        before = {name: p.dtype for name, p in model.named_parameters()}
        plans.append(plan_memory(model, machine))
        assert before == {name: p.dtype for name, p in model.named_parameters()}
    assert plans[0] == plans[1] and plans[0].activations_per_token > 0
    on_cpu = plan_memory(model, Machine(CPU, "bf16", "a CPU"))
    assert plans[0].activations_per_token == on_cpu.activations_per_token and plans[0].logits > on_cpu.logits


def test_several_processes_sum_in_buckets_which_the_plan_knows(monkeypatch):
    plan = MemoryPlan(100, 100, 200, 10, 50, 20, 1.0, 1.0)
    monkeypatch.setattr("run.plan.plan_memory", lambda model, machine: plan)
    monkeypatch.setattr(Ranks, "sum", lambda self, value: None)
    config = SimpleNamespace(optim="adamw")
    machine = pick_machine("cpu")
    sessions = [SimpleNamespace(config=config, ranks=Ranks(0, size), machine=machine) for size in (1, 2)]
    one, two = (measure_memory(session, torch.nn.Linear(1, 1)).peak(10, True) for session in sessions)
    assert two == one + plan.gradients


def test_loading_kernels_leaves_no_gradient_behind():
    model = tiny_gpt2(500).train()
    use_flat_attention(model)
    memory.load_kernels(model, pick_machine("cpu"))
    assert all(p.grad is None for p in model.parameters())


def test_the_warm_up_takes_back_gradients_and_random_state(monkeypatch):
    weight = torch.nn.Parameter(torch.ones(3))
    state, seen = TrainState.new(CPU, micro_batch_tokens=600), []
    batcher = MicroBatcher(state, torch.optim.SGD([weight]), CARD, Ranks())
    monkeypatch.setattr("run.micro_batch.get_random_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr("run.micro_batch.set_random_state", lambda state, device: torch.set_rng_state(state))

    def forward_backward(micro_batches, supervised):
        seen.append([batch.lengths for batch in micro_batches])
        (weight * torch.rand(3)).sum().backward()
        return torch.zeros(())

    before = torch.get_rng_state()
    batcher.warm_up(forward_backward, records=16, longest=256)
    batcher.warm_up(forward_backward, records=1, longest=256)
    assert seen == [[[256, 256]], [[256]]]
    assert weight.grad is None and torch.equal(torch.get_rng_state(), before)


# -- precision --------------------------------------------------------------------------------------------------------


def test_bf16_is_taken_for_weights_that_were_trained_in_it_where_the_card_has_it(card, monkeypatch):
    assert pick_machine().precision == pick_machine(stored="float32").precision == "fp16"
    assert pick_machine(stored="bfloat16").precision == "bf16"
    assert pick_machine(precision="fp16", stored="bfloat16").precision == "fp16"
    assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert pick_machine(stored="bfloat16").precision == "fp16"  # a Turing card only emulates it
    with pytest.raises(EnvironmentFault, match="no bf16"):
        pick_machine(precision="bf16")


def test_a_rank_without_a_record_has_a_loss_scale():
    scaler = Machine(CPU, "fp16", "as a card").grad_scaler()
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    optimizer = torch.optim.AdamW([weight], fused=True)
    scaler.unscale_(optimizer)  # before: AssertionError, _scale is None
    scaler.step(optimizer)
    scaler.update()


def test_a_model_that_overflows_says_so_before_training(tokenizer, records):
    model = tiny_gpt2(len(tokenizer)).eval()
    use_flat_attention(model)
    batch = blank_batch(2, 16)
    check_precision(model, [batch], "tiny", "fp16")
    with torch.no_grad():
        model.transformer.h[0].mlp.c_proj.bias.fill_(torch.inf)
    with pytest.raises(Exception, match=r"tiny overflows in fp16.*--precision fp32, or bf16") as error:
        check_precision(model, [batch], "tiny", "fp16")
    assert error.value.exit_code


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("lora", [False, True])
def test_norms_that_are_cast_once_change_no_loss_and_keep_less(architecture, lora, records, tokenizer):
    batch, seen, kept_bytes = flatten(Encoder(tokenizer, QA, 64).rows(records)), [], []
    for once in (False, True):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(ARCHITECTURES[architecture](), attn_implementation="sdpa").train()
        if lora:
            wrap(model, Lora())
        halve(model, torch.bfloat16)
        use_flat_attention(model)
        if once:
            cast_norms_once(model, torch.bfloat16)
        kept = {}

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            loss = summed_loss(model, batch)
        kept_bytes.append(sum(t.untyped_storage().nbytes() for t in kept.values()))
        loss.backward()
        seen.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    (loss, *gradients), (same_loss, *others) = seen
    assert torch.equal(loss, same_loss)
    if architecture in ("gpt2", "bert"):  # one layer after each norm: nothing to share
        assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True)) and kept_bytes[1] == kept_bytes[0]
    else:
        assert all((a - b).norm() <= 0.02 * a.norm() for a, b in zip(gradients, others, strict=True))
        assert kept_bytes[1] < kept_bytes[0]


def test_the_residual_stream_stays_in_fp32():
    """Half precision there would lose what each block adds."""
    model = tiny_gpt2(500).train()
    wrap(model, Lora())
    halve(model, torch.bfloat16)
    seen = []
    model.transformer.h[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    use_flat_attention(model)
    with torch.autocast("cpu", torch.bfloat16):
        summed_loss(model, blank_batch(2, 8))
    assert seen == [torch.float32]
    assert model.transformer.wte.weight.dtype == torch.bfloat16 and model.lm_head.weight is model.transformer.wte.weight


# -- nothing waits for the device -------------------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """The operations whose result, or whose shape, the host reads."""

    WAITING = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "repeat_interleave.Tensor", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(name in str(function) for name in self.WAITING):
            self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "mistral"])
def test_nothing_in_a_micro_batch_waits_for_the_device(architecture):
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[architecture](), attn_implementation="sdpa").train()
    use_flat_attention(model)
    assert "flat" not in ALL_MASK_ATTENTION_FUNCTIONS._global_mapping
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch, state = blank_batch(3, 40), TrainState.new(CPU)
    with Waits() as waits:
        loss = summed_loss(model, batch, device_type="cuda")
        (loss / 100).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.zero_grad(set_to_none=True)
        state.count(loss.detach(), 100)
    assert waits.seen == []
    with Waits() as waits:
        loss.item()
    assert waits.seen  # it sees what it is there for


# -- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuda, words", [(None, "CUDA build"), ("13.0", "made for CUDA 13.0.*Update it")])
def test_a_driver_that_torch_cannot_use_is_named(monkeypatch, cuda, words):
    monkeypatch.setattr("shutil.which", lambda name: "nvidia-smi")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert re.search(words, why_no_cuda())
    assert pick_machine().hint == why_no_cuda()
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert why_no_cuda() == ""


@pytest.mark.parametrize("has_nccl", [True, False])
def test_torchrun_on_windows_takes_gloo_and_says_when_there_are_too_few_cards(card, monkeypatch, has_nccl):
    started = []
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: has_nccl)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, timeout: started.append(backend))
    start_ranks()
    assert started == ["cpu:gloo,cuda:nccl" if has_nccl else "gloo"]
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(EnvironmentFault, match="1 GPU"):
        start_ranks()
    start_ranks("cpu")
    assert started[-1] == "gloo"


@pytest.mark.parametrize(
    "message", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory"]
)
def test_out_of_memory_that_nothing_caught_has_its_exit_code(message, capsys):
    assert _said(RuntimeError(message)) == _said(torch.OutOfMemoryError("CUDA out of memory. ...")) == 4
    assert "Out of memory" in capsys.readouterr().err


# -- 4-bit ------------------------------------------------------------------------------------------------------------


def test_4_bit_weights_are_unpacked_to_the_precision_of_the_products(tmp_path):
    from model.load import fingerprint, load_model

    model = load_model(folder_of("llama", tmp_path / "base"), four_bit=True, compute_dtype=torch.bfloat16)
    packed = [p for p in model.parameters() if getattr(p, "quant_state", None) is not None]
    assert packed and all(p.quant_state.dtype == torch.bfloat16 for p in packed)
    before = fingerprint(model), fingerprint(model, packed=True)
    packed[0].data[0] ^= 1  # as another device might have rounded it
    assert fingerprint(model) == before[0] and fingerprint(model, packed=True) != before[1]


def test_a_4_bit_model_is_gone_before_free_memory_is_read(tmp_path, request):
    """Its weights and their layers refer to one another, so only the collector of cycles frees them."""
    from model.load import load_model

    load_model(folder_of("llama", tmp_path / "base"), four_bit=True)  # the first of a process leaves a record in a log
    gc.disable()
    try:
        model = load_model(tmp_path / "base", four_bit=True)
        weight = weakref.ref(model.model.layers[0].mlp.up_proj.weight)
        del model
        assert weight() is not None
        request.getfixturevalue("card")
        free_memory(CARD)
        assert weight() is None
    finally:
        gc.enable()


def test_machines_on_the_host_keep_the_size_of_their_numbers():
    for precision, there in (("fp16", "bf16"), ("bf16", "bf16"), ("fp32", "fp32")):
        machine = Machine(CARD, precision, "a card").on_host()
        assert (machine.precision, machine.device) == (there, CPU)


# -- what is asked for, and where -------------------------------------------------------------------------------------


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_chunks_of_a_step_take_what_the_plan_says_of_one(device_type, frozen, monkeypatch):
    monkeypatch.setitem(CHUNK_ROWS, device_type, 512)
    model = tiny_gpt2(5000, n_embd=48).train()
    if frozen:
        wrap(model, Lora())
    use_flat_attention(model)
    plan = plan_memory(model, Machine(torch.device(device_type), "bf16", "a card"))

    def four_chunks(tokens: int) -> torch.Tensor:
        return summed_loss(model, blank_batch(tokens // 64, 64), device_type=device_type)

    with torch.autocast("cpu", torch.bfloat16):
        seen = memory.seen_in_forward(model, 4 * 512, four_chunks).passing
    assert seen <= (1.02 if device_type == "cuda" else 1.1) * plan.logits  # the hidden rows of all chunks come on top


def test_the_page_keeps_frozen_weights_in_half_precision_and_onednn_on_the_cpu(records, tokenizer, monkeypatch):
    for device, called in (("cpu", 1), ("meta", 0)):
        calls, model = [], tiny_gpt2(len(tokenizer)).eval()
        wrap(model, Lora())
        machine = Machine(CPU, "bf16", "")
        monkeypatch.setattr("run.loading.use_onednn", lambda model, calls=calls: calls.append(1))
        seen = SimpleNamespace(device=torch.device(device), precision="bf16", dtype=torch.bfloat16)
        session = SimpleNamespace(
            machine=machine if device == "cpu" else SimpleNamespace(**vars(seen), on_host=lambda m=machine: m),
            ranks=Ranks(0, 1, sharded=device != "cpu"),
            config=SimpleNamespace(model_name_or_path="tiny"),
        )
        use_flat_batches(model, session, Encoder(tokenizer, QA, 64), records)
        assert len(calls) == called
        frozen = [p.dtype for n, p in model.named_parameters() if n.endswith("weight") and p.ndim > 1]
        assert set(frozen) == {torch.bfloat16}
        assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_what_is_gathered_is_in_half_precision_and_what_is_summed_is_not(monkeypatch):
    policies = []
    monkeypatch.setattr("run.shard.init_device_mesh", lambda *args: None)
    monkeypatch.setattr("run.shard.fully_shard", lambda part, mesh, mp_policy: policies.append(mp_policy))
    monkeypatch.setattr("run.shard.register_fsdp_forward_method", lambda *args: None)
    for precision, gathered in (("fp16", torch.float16), ("fp32", None)):
        policies.clear()
        model = tiny_gpt2(500)
        parallelize(model, summed_loss, Machine(CARD, precision, ""), Ranks(0, 2, sharded=True))
        assert len(policies) == len(model.transformer.h) + 1
        assert {p.param_dtype for p in policies} == {gathered} and not any(p.cast_forward_inputs for p in policies)
        assert {p.reduce_dtype for p in policies} == {torch.float32 if gathered else None}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the allocator cannot")
def test_blocks_of_gpu_memory_may_grow_unless_somebody_says_otherwise():
    told = [sys.executable, "-c", "import os, run.cli; print(os.environ.get('PYTORCH_ALLOC_CONF'))"]
    for extra, expected in (({}, "expandable_segments:True"), ({"PYTORCH_CUDA_ALLOC_CONF": "x"}, "None")):
        clean = {k: v for k, v in os.environ.items() if "ALLOC_CONF" not in k}
        done = subprocess.run(told, env=clean | extra, capture_output=True, text=True, encoding="utf-8")
        assert done.stdout.strip() == expected


def test_a_run_that_goes_on_stays_in_its_precision_and_does_not_ask_for_its_base(card, monkeypatch, tmp_path):
    import run.session as session
    from run.config import parse_train

    monkeypatch.setattr(session, "stored_precision", lambda name: pytest.fail("the base may be gone"))
    for begun_in, now in (("bf16", "bf16"), ("fp16", "fp16"), (None, "fp16")):
        saved = {"options": {}, "precision": begun_in} if begun_in else {"options": {}}
        command = parse_train(["--model", "some/base", "--output_dir", str(tmp_path)])
        monkeypatch.setattr(session, "read_run", lambda folder, saved=saved: saved)
        monkeypatch.setattr(session, "run_of", lambda name, folder: tmp_path)
        monkeypatch.setattr(session, "find_checkpoint", lambda name, folder: tmp_path)
        monkeypatch.setattr(session, "resumed", lambda options, given, run, command=command: command.config)
        opened = session.open_session(replace(command, resume="a", dry_run=True))
        assert opened.machine.precision == now
