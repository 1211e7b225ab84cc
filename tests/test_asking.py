"""Models that are asked: the precision of their training, and a plan before they are loaded."""

import threading
import weakref
from types import SimpleNamespace

import pytest
import torch
from conftest import script, tiny_gpt2
from transformers import GPT2Config, LlamaConfig

import evaluate
import run.asking as asking
import run.candidates as candidates
from model.errors import ModelUnavailable
from model.hub import fetched
from model.load import shape_of, stored_precision
from run.asking import Need, load_to_ask, machine_for, need_of
from run.device import Machine
from run.memory import OutOfMemory
from text.template import QA

CPU = Machine(torch.device("cpu"), "fp32", "CPU")


@pytest.fixture
def free(monkeypatch):
    """`free(bytes)`: as many are free, on every device."""
    return lambda count: monkeypatch.setattr(asking, "free_memory", lambda device: count / asking.HEADROOM)


def test_what_it_takes_is_weights_and_a_cache_for_each_answer():
    config = GPT2Config(n_layer=6)
    need = need_of(config, 81_912_576, 2, False, 476)
    assert need.weights == 2 * 81_912_576
    cache = 2 * 6 * 768 * 2 * 476  # keys and values
    assert need.for_each_answer == cache + 16 * 50257
    grouped = need_of(LlamaConfig(num_key_value_heads=8), 10**9, 2, False, 476)
    assert grouped.for_each_answer < need_of(LlamaConfig(), 10**9, 2, False, 476).for_each_answer / 3
    assert Need(100, 10).answers(135) == 3 and Need(100, 10).answers(99) < 1
    seven = need_of(LlamaConfig(), 6_738_415_616, 2, True, 476)  # Llama 2 7B in 4-bit: 3.5 GB of blocks, 0.5 outside
    assert 3.5e9 < seven.weights < 4.5e9


def test_the_shape_is_known_before_the_weights_are_read(gpt2_folder, tokenizer):
    config, parameters = shape_of(gpt2_folder)
    assert parameters == tiny_gpt2(len(tokenizer)).num_parameters()
    assert config.model_type == "gpt2" and stored_precision(gpt2_folder) == "float32"


def test_where_memory_is_short_it_takes_less_and_says_what(gpt2_folder, free, capsys):
    config, parameters = shape_of(gpt2_folder)
    full, half = (need_of(config, parameters, size, False, config.n_positions) for size in (4, 2))
    for room, precision, at_once in (
        (full.weights + 40 * full.for_each_answer, "fp32", 32),
        (full.weights + 5 * full.for_each_answer, "fp32", 5),
        (full.weights + full.for_each_answer - 100, "bf16", None),
        (half.weights + half.for_each_answer, "bf16", 1),
    ):
        free(room)
        model, _, machine, answers = load_to_ask(gpt2_folder, QA, CPU, answers=32)
        assert machine.precision == precision and (at_once is None or answers == at_once)
        assert model.dtype == machine.dtype
        said = capsys.readouterr().err
        assert precision in said and f"{answers} at a time" in said and "can be used" in said
        with torch.no_grad(), machine.autocast():
            assert model(torch.arange(5, 40)[None]).logits.isfinite().all()
    free(half.weights)
    with pytest.raises(OutOfMemory, match="in bf16, and .* can be used") as error:
        load_to_ask(gpt2_folder, QA, CPU)
    assert error.value.exit_code == 4


def test_half_precision_answers_with_the_numbers_of_training(gpt2_folder):
    """The weights lie in bf16, and under autocast they give what fp32 weights give there."""
    ids, machine = torch.arange(5, 40)[None], Machine(torch.device("cpu"), "bf16", "CPU")
    asked, _, _, _ = load_to_ask(gpt2_folder, QA, machine)
    trained, _, _, _ = load_to_ask(gpt2_folder, QA, CPU)
    for module in trained.modules():
        if isinstance(module, torch.nn.Embedding):
            module.weight.data = module.weight.bfloat16().float()
    with torch.no_grad(), machine.autocast():
        assert torch.equal(asked(ids).logits, trained(ids).logits)


def test_a_run_is_asked_in_the_precision_it_was_trained_in(tmp_path, data, gpt2_folder, train, monkeypatch):
    train("--model", gpt2_folder, "--run_name", "a", "--max_steps", 1, "--precision", "bf16")
    run = tmp_path / "runs" / "a"
    assert machine_for(run, "cpu", gpt2_folder).precision == "bf16"
    picked = []

    def pick(device="auto", precision="auto", stored=""):
        picked.append((precision, stored))
        if precision == "bf16":
            raise asking.EnvironmentFault("This GPU has no bf16.")
        return Machine(torch.device("cuda"), "fp16", "a card")

    monkeypatch.setattr(asking, "pick_machine", pick)
    assert machine_for(run, "cuda", gpt2_folder).precision == "fp16"  # where it is not to be had
    for trained_in, stored in (("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")):
        saved = {"options": {"precision": "auto"}, "precision": trained_in}
        monkeypatch.setattr(asking, "read_run", lambda run, saved=saved: saved)
        machine_for(run, "cuda", gpt2_folder)  # of a run on a CPU the base says it: this one is saved in fp32
        assert picked[-1] == ("auto", stored)


def test_of_two_models_one_is_there_at_a_time(tmp_path, data, gpt2_folder, train, monkeypatch):
    """Else a card would have to hold both."""
    train("--model", gpt2_folder, "--run_name", "a", "--max_steps", 1)
    loaded, load = [], evaluate.load_to_ask

    def watched(*args, **options):
        assert all(model() is None for model in loaded)
        result = load(*args, **options)
        loaded.append(weakref.ref(result[0]))
        return result

    monkeypatch.setattr(evaluate, "load_to_ask", watched)
    options = ["--run", str(tmp_path / "runs" / "a"), "--max_samples", "2", "--max_new_tokens", "4", "--device", "cpu"]
    assert evaluate.main(evaluate.parse(options)) == 0
    assert len(loaded) == 2


@pytest.mark.parametrize("name", ["generate.py", "evaluate.py"])
def test_out_of_memory_while_answers_are_written_halves_the_batch(
    tmp_path, data, gpt2_folder, train, monkeypatch, name
):
    import generate

    train("--model", gpt2_folder, "--run_name", "a", "--max_steps", 1)
    module, sizes = {"generate.py": generate, "evaluate.py": evaluate}[name], []
    write = candidates.write

    def full(model, next_answer, end_token, sampling, rows, *rest):
        sizes.append(rows)
        for number, step in enumerate(write(model, next_answer, end_token, sampling, rows, *rest)):
            if rows > 2 and number == 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            yield step

    monkeypatch.setattr(candidates, "write", full)
    run = ["--run", str(tmp_path / "runs" / "a"), "--max_new_tokens", "4", "--device", "cpu"]
    titles = ["--max_samples", "3", "--batch_size", "8"]
    if name == "generate.py":
        titles = [option for title in "abcdefgh" for option in ("--title", title)]
    assert module.main(module.parse([*run, *titles])) == 0
    assert sizes[:3] == [8, 4, 2]


# -- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """Records who is asked; `hub.answer` is what the hub says."""
    hub = SimpleNamespace(asked=[], answer=lambda: None, cached=set())

    def model_info(self, name, timeout):
        hub.asked.append(name)
        return hub.answer()

    def load(name, local_files_only=False):
        if local_files_only and name not in hub.cached:
            raise OSError("not in the cache")
        return name

    monkeypatch.setattr("model.hub.HfApi.model_info", model_info)
    hub.load = load
    return hub


def test_what_is_a_folder_or_in_the_cache_asks_nobody(hub, tmp_path):
    hub.cached.add("some/model")
    assert fetched(hub.load, "some/model") == "some/model" and fetched(hub.load, tmp_path) == tmp_path
    assert hub.asked == []
    assert fetched(hub.load, "other/model") == "other/model" and hub.asked == ["other/model"]


def test_the_hub_is_asked_once_and_not_for_long(hub, monkeypatch):
    def unreachable():
        raise ConnectionError("[Errno -2] Name or service not known")

    hub.answer = unreachable
    with pytest.raises(ModelUnavailable, match=r"nosuch/model .* the hub does not answer.*--model pocket") as error:
        fetched(hub.load, "nosuch/model")
    assert hub.asked == ["nosuch/model"] and error.value.exit_code == 3

    released = threading.Event()
    hub.answer = released.wait  # a name server that never answers
    monkeypatch.setattr("model.hub.LOOK", 0.05)
    with pytest.raises(ModelUnavailable, match="does not answer"):
        fetched(hub.load, "nosuch/model")
    released.set()


def test_what_is_wrong_with_a_model_in_the_cache_is_not_said_to_be_the_connection(hub):
    def unknown(name, local_files_only=False):
        raise ValueError("model type foo is not known")

    hub.answer = lambda: (_ for _ in ()).throw(ConnectionError())
    with pytest.raises(ValueError, match="foo is not known"):
        fetched(unknown, "cached/model")


def test_a_model_that_is_nowhere_is_one_sentence(tmp_path, data, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = script("train.py", "--model", "nosuch/model", "--output_dir", tmp_path / "runs", "--data", data)
    assert done.returncode == 3
    said = [line for line in done.stderr.splitlines() if "Warning" not in line and not line.startswith("  ")]
    assert len(said) == 1 and "nosuch/model" in said[0]
