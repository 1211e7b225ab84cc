"""train.py as a whole, on models that take a second."""

import gc
import json

import pytest
import torch
from conftest import RECORDS, logged, script, shared_assets, stopped_at, write_data
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from model.load import UnsupportedModel
from model.loss import summed_loss
from run.checkpoint import CheckpointManager, random_state
from run.cli import INTERRUPTED, UsageError
from run.files import verify
from run.validation import Samples
from text.errors import DataError

QUICK = ("--max_steps", 6, "--per_device_train_batch_size", 4, "--save_steps", 3, "--eval_steps", 2)


def test_a_run_leaves_what_the_design_says(tmp_path, data, gpt2_folder, train, capsys):
    assert train("--model", gpt2_folder, "--run_name", "a", "--logging_steps", 1, "--lr", 0.01, *QUICK) == 0
    run = tmp_path / "runs" / "a"
    assert {path.name for path in run.iterdir()} == {
        "train_config.json",
        "metrics.jsonl",
        "plan.json",
        "before.json",
        "after.json",
        "report.html",
        "template.json",
        "checkpoint-6",
        "final",
    }
    verify(run / "checkpoint-6")
    verify(run / "final")
    entries = logged(run)
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert [entry["step"] for entry in entries if "val_loss" in entry] == [2, 4, 6]
    assert entries[-1]["loss"] < entries[0]["loss"]
    output = capsys.readouterr().out
    for word in ("model", "device", "records", "steps", "tokens", "checkpoint", "before:", "after:"):
        assert word in output


def test_no_file_of_a_run_is_a_pickle(tmp_path, data, gpt2_folder, train):
    train("--model", gpt2_folder, "--run_name", "a", *QUICK)
    endings = {path.suffix for path in (tmp_path / "runs" / "a").rglob("*") if path.is_file()}
    assert endings <= {".json", ".jsonl", ".safetensors", ".jinja", ".html"}


def test_the_first_logged_loss_is_the_loss_of_the_untouched_model(tmp_path, data, gpt2_folder, train):
    from model.load import load_model, load_tokenizer
    from model.loss import mean_loss
    from text.batch import Encoder, flat_batches
    from text.template import QA

    train(
        "--model",
        gpt2_folder,
        "--run_name",
        "a",
        "--max_steps",
        1,
        "--per_device_train_batch_size",
        len(RECORDS),
        "--question_share",
        0,
    )
    from model.attention import use_flat_attention

    model, tokenizer = load_model(gpt2_folder), load_tokenizer(gpt2_folder)
    use_flat_attention(model)
    expected = mean_loss(model, flat_batches(Encoder(tokenizer, QA, 256).rows(RECORDS), 4096))
    assert logged(tmp_path / "runs" / "a")[0]["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_resumed_run_is_the_same_run(tmp_path, data, gpt2_folder, train, dropout):
    """Stopped in the middle of the second epoch: the same losses and bitwise the same weights as without the stop."""
    common = ("--model", gpt2_folder, "--dropout", dropout, "--logging_steps", 1, "--save_steps", 4)
    common += ("--per_device_train_batch_size", 2, "--micro_batch_tokens", 60, "--learning_rate", 1e-2)
    whole, parts = tmp_path / "runs" / "whole", tmp_path / "runs" / "parts"
    assert train("--run_name", "whole", "--max_steps", 10, *common) == 0
    with stopped_at(8):
        assert train("--run_name", "parts", "--max_steps", 10, *common) == INTERRUPTED
    assert train("--resume", parts) == 0
    expected, got = (load_file(run / "final" / "model.safetensors") for run in (whole, parts))
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    same = ("step", "loss", "grad_norm", "learning_rate", "val_loss")
    assert [[e.get(k) for k in same] for e in logged(whole)] == [[e.get(k) for k in same] for e in logged(parts)]


@pytest.mark.parametrize("stop", [5, 8])  # between two lines of the log; at a step that is logged and saved
def test_a_stop_does_not_change_the_lines_of_the_log(tmp_path, data, gpt2_folder, train, stop):
    common = ("--model", gpt2_folder, "--logging_steps", 4, "--per_device_train_batch_size", 2, "--max_steps", 12)
    train("--run_name", "whole", *common)
    with stopped_at(stop):
        assert train("--run_name", "parts", *common, "--save_steps", 4) == INTERRUPTED
    assert (tmp_path / "runs" / "parts" / f"checkpoint-{stop}").is_dir()
    train("--resume", tmp_path / "runs" / "parts")
    whole, parts = ([(e["step"], e["loss"]) for e in logged(tmp_path / "runs" / name)] for name in ("whole", "parts"))
    assert whole == parts


@pytest.mark.parametrize("resume", [False, True])
def test_nothing_draws_between_restore_and_the_first_step(tmp_path, data, gpt2_folder, train, monkeypatch, resume):
    """What drew there would make a resumed run another one."""
    import train as script

    options = ("--model", gpt2_folder, "--run_name", "a", "--max_steps", 4, "--dropout", 0.1, "--save_steps", 2)
    if resume:
        with stopped_at(2):
            train(*options)
    seen, restore = [], CheckpointManager.restore

    def restored(self, plan):
        state = restore(self, plan)
        seen.append(random_state())
        return state

    def loss_fn(model, batch):
        if len(seen) == 1:  # not those before `restore`: the memory plan calls it too
            seen.append(random_state())
        return summed_loss(model, batch)

    monkeypatch.setattr(CheckpointManager, "restore", restored)
    monkeypatch.setattr(script, "summed_loss", loss_fn)
    train(*(("--resume", tmp_path / "runs" / "a") if resume else options))
    after_restore, at_first_step = seen
    assert all(torch.equal(after_restore[key], at_first_step[key]) for key in after_restore)


def test_a_run_that_exists_is_refused_before_the_base_is_asked(tmp_path, data, gpt2_folder, train, monkeypatch):
    options = ("--model", gpt2_folder, "--run_name", "a", "--max_steps", 1)
    train(*options)
    monkeypatch.setattr(Samples, "answers", lambda self: pytest.fail("it was asked"))
    with pytest.raises(UsageError, match="exists"):
        train(*options)


def test_the_lock_goes_with_the_session_and_needs_no_garbage_collection(tmp_path, data, gpt2_folder, train):
    gc.disable()
    try:
        train("--model", gpt2_folder, "--run_name", "a", "--max_steps", 2, "--dropout", 0.1)
        assert not (tmp_path / "runs" / "a" / "lock.json").exists()
    finally:
        gc.enable()


def test_ctrl_c_saves_and_the_printed_command_goes_on(tmp_path, data, gpt2_folder, train, capsys):
    with stopped_at(1):
        assert train("--model", gpt2_folder, "--run_name", "a", *QUICK) == INTERRUPTED
    run = tmp_path / "runs" / "a"
    assert f"--resume {run}" in capsys.readouterr().out
    assert (run / "checkpoint-1").is_dir() and not (run / "final").exists()
    assert train("--resume", run) == 0
    assert (run / "final").is_dir()


def test_before_is_the_untouched_base_even_after_training(tmp_path, data, gpt2_folder, train):
    """Measured on the trained model, "before" would be a second "after"."""
    from transformers import GenerationConfig

    train("--model", gpt2_folder, "--run_name", "a", "--learning_rate", 0.05, *QUICK)
    run = tmp_path / "runs" / "a"
    before = json.loads((run / "before.json").read_text(encoding="utf-8"))
    base, tokenizer = AutoModelForCausalLM.from_pretrained(gpt2_folder), AutoTokenizer.from_pretrained(gpt2_folder)
    config = GenerationConfig(do_sample=False, max_new_tokens=20, pad_token_id=0, eos_token_id=tokenizer.eos_token_id)
    for title, answer in before.items():
        from text.template import QA

        prompt = tokenizer(QA.prompt_for(title), return_tensors="pt")
        theirs = base.generate(**prompt, generation_config=config)[0, prompt.input_ids.shape[1] :]
        assert answer.startswith(tokenizer.decode(theirs, skip_special_tokens=True).strip())
    evaluated = script("evaluate.py", "--run", run, "--data", data, "--max_samples", 3, "--max_new_tokens", 20)
    assert evaluated.returncode == 0, evaluated.stderr
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    first = logged(run)[0]["loss"]
    assert metrics["before"]["loss"] == pytest.approx(first, rel=0.2)
    assert metrics["after"]["loss"] < metrics["before"]["loss"]


def test_final_opens_in_transformers_with_equal_logits(tmp_path, train):
    """A GPT-2 with the real vocabulary: train, save, AutoModelForCausalLM."""
    assets = shared_assets("gpt2-tokenizer")
    write_data(tmp_path / "data", RECORDS)
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2)).save_pretrained(tmp_path / "gpt2")
    AutoTokenizer.from_pretrained(assets).save_pretrained(tmp_path / "gpt2")
    assert train("--model", tmp_path / "gpt2", "--run_name", "a", "--max_steps", 2) == 0
    final = tmp_path / "runs" / "a" / "final"

    from model.load import load_model

    ids = torch.tensor([[464, 4171, 20535, 318]])
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(final), AutoTokenizer.from_pretrained(final)
    assert torch.equal(load_model(final)(ids).logits, theirs(ids).logits)
    assert len(tokenizer) == theirs.config.vocab_size == 50257
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Mug"}], tokenize=False).endswith("Mug\nAnswer:")
    stored = load_file(final / "model.safetensors")
    assert "lm_head.weight" not in stored  # tied: stored once
    torch.testing.assert_close(stored["transformer.wte.weight"], theirs.lm_head.weight, rtol=0, atol=0)


def test_a_bare_machine_trains_the_pocket_model_on_the_example(tmp_path, train, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train("--data", "data", "--max_steps", 1, "--run_name", "a", "--max_eval_samples", 5) == 0
    output = capsys.readouterr().out
    assert "preparing the bundled example catalogue" in output and "pocket (there is no GPU" in output
    run = tmp_path / "runs" / "a"
    assert json.loads((run / "train_config.json").read_text(encoding="utf-8"))["base_model"] == "base"
    verify(run / "base")


def test_a_dry_run_writes_nothing(tmp_path, data, gpt2_folder, train, capsys):
    assert train("--model", gpt2_folder, "--dry_run") == 0
    assert "steps" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_the_number_of_steps_covers_the_epochs(tmp_path, data, gpt2_folder, train, capsys):
    train("--model", gpt2_folder, "--per_device_train_batch_size", 4, "--epochs", 2, "--dry_run")
    assert "6 of 4 records (2 epochs)" in capsys.readouterr().out  # 11 records: 3 steps an epoch


def test_what_cannot_work_is_a_sentence(tmp_path, data, gpt2_folder, train):
    train("--model", gpt2_folder, "--run_name", "a", "--max_steps", 1)
    with pytest.raises(UsageError, match="exists"):
        train("--model", gpt2_folder, "--run_name", "a", "--max_steps", 1)
    with pytest.raises(UnsupportedModel, match="lower --max_length"):
        train("--model", gpt2_folder, "--max_length", 9999)
    with pytest.raises(UsageError, match="raise --max_length"):
        train("--model", gpt2_folder, "--max_length", 8)
    with pytest.raises(UsageError, match="is no run"):
        train("--resume", tmp_path / "nothing")
    with pytest.raises(DataError, match="data_prep.py"):
        train("--data", tmp_path / "nowhere")


def test_a_few_products_are_enough(tmp_path, gpt2_folder, train):
    """So few that nothing was held out: trained without validation and without samples."""
    write_data(tmp_path / "data", RECORDS[:2], val=[], test=[])
    assert train("--model", gpt2_folder, "--run_name", "a", "--max_steps", 2) == 0
    assert "val_loss" not in logged(tmp_path / "runs" / "a")[-1]


def test_resuming_an_older_checkpoint_keeps_what_it_saves(tmp_path, data, gpt2_folder, train, monkeypatch):
    import train as script_module

    class StopAtOnce:
        asked = True

    train("--model", gpt2_folder, "--run_name", "a", "--save_total_limit", 2, *QUICK)
    run = tmp_path / "runs" / "a"
    with monkeypatch.context() as patch:
        patch.setattr(script_module, "StopRequest", StopAtOnce)
        assert train("--resume", run / "checkpoint-3", "--save_total_limit", 1) == INTERRUPTED
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-4"]
