"""Every architecture with its own kind of tokenizer, through train -> resume -> generate -> export -> reload."""

import gzip
import io
import json
import subprocess

import pytest
import torch
from conftest import ROOT, logged, shared_assets, stopped_at, write_data
from kinds import TOKENIZERS, folder_of
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import evaluate
import export
import generate
from model.attention import use_flat_attention
from model.errors import ModelUnavailable, UnsupportedModel
from model.load import load_model, load_tokenizer
from model.lora import Lora, lora_layers, merge, wrap
from model.loss import mean_loss
from run.cli import INTERRUPTED, UsageError
from run.config import TrainConfig, read_recipe
from text.batch import Encoder, flat_batches
from text.template import Template, choose_template, load_template

STEPS = ("--per_device_train_batch_size", 4, "--logging_steps", 1, "--lr", 0.01, "--lora")


def asked(run, *args, capsys) -> str:
    """What generate.py prints for one title."""
    capsys.readouterr()
    options = ("--run", run, "--title", "Caneca azul", "--greedy", "--max_new_tokens", 6, "--device", "cpu", *args)
    assert generate.main(generate.parse([str(option) for option in options])) == 0
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def tokenizers_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {kind: load_tokenizer(folder_of(kind, folder / kind)) for kind in TOKENIZERS}


@pytest.mark.parametrize("four_bit", [False, True], ids=["lora", "lora-4bit"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_train_resume_generate_export_reload(tmp_path, data, train, capsys, kind, four_bit):
    base = folder_of(kind, tmp_path / "base")
    more = ("--load_in_4bit",) if four_bit else ()
    runs = tmp_path / "runs"
    parts = runs / "parts"
    options = ("--model", base, "--max_steps", 4, *STEPS, "--lora_dropout", 0.1, *more)
    assert train("--run_name", "whole", *options) == 0
    with stopped_at(2):
        assert train("--run_name", "parts", *options) == INTERRUPTED
    assert train("--resume", parts) == 0
    weights = [load_file(runs / name / "final" / "adapter_model.safetensors") for name in ("whole", "parts")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert [e["loss"] for e in logged(parts)] == [e["loss"] for e in logged(runs / "whole")]
    assert min(e["loss"] for e in logged(parts)[1:]) < logged(parts)[0]["loss"]
    assert not list(runs.rglob("model.safetensors"))  # the adapter, not the whole model

    asked(parts, capsys=capsys)
    to = tmp_path / "export"
    assert export.main(export.parse(["--run", str(parts), "--to", str(to)])) == 0
    assert "largest difference" in capsys.readouterr().out
    merged, tokenizer = AutoModelForCausalLM.from_pretrained(to), AutoTokenizer.from_pretrained(to)
    adapted = load_model(parts / "final")
    ids = torch.arange(5, 40)[None]
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=0, atol=1e-5)
    assert merged.generation_config.eos_token_id == tokenizer.eos_token_id and tokenizer.chat_template
    assert load_template(to) == load_template(parts / "final")


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_tied_weights_are_exported_once(tmp_path, data, train, kind):
    base = folder_of(kind, tmp_path / "base")
    train("--model", base, "--run_name", "a", "--max_steps", 3, *STEPS)
    export.main(export.parse(["--run", str(tmp_path / "runs" / "a"), "--to", str(tmp_path / "x")]))
    assert "lm_head.weight" not in load_file(tmp_path / "x" / "model.safetensors")


@pytest.mark.parametrize("kind, type_", [("gpt2", "f16"), ("llama", "q8_0"), ("qwen2", "f32"), ("mistral", "f16")])
def test_gguf_holds_weights_tokenizer_template_and_end(tmp_path, data, train, kind, type_):
    gguf = pytest.importorskip("gguf")
    base = folder_of(kind, tmp_path / "base")
    template = ("--template", "hf") if kind == "qwen2" else ()
    train("--model", base, "--run_name", "a", "--max_steps", 3, *STEPS, *template)
    to = tmp_path / "x"
    args = ["--run", str(tmp_path / "runs" / "a"), "--to", str(to), "--format", "gguf", "--gguf_type", type_]
    assert export.main(export.parse(args)) == 0
    reader = gguf.GGUFReader(to / "model.gguf")
    tokenizer = AutoTokenizer.from_pretrained(base)
    value = {name: field.contents() for name, field in reader.fields.items()}
    end = "<|im_end|>" if kind == "qwen2" else tokenizer.eos_token
    assert value["tokenizer.ggml.eos_token_id"] == tokenizer.convert_tokens_to_ids(end)
    assert value["tokenizer.ggml.add_bos_token"] == (kind in ("llama", "mistral"))
    assert value["tokenizer.ggml.tokens"][: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert "{" in value["tokenizer.chat_template"]
    if kind == "llama":  # the rotary halves of a head by turns, as llama.cpp wants them
        query = next(tensor for tensor in reader.tensors if tensor.name == "blk.0.attn_q.weight")
        rows = load_model(tmp_path / "runs" / "a" / "final")
        merge(rows)
        expected = rows.model.layers[0].self_attn.q_proj.weight.detach()[[0, 8, 1, 9]]  # heads of 16
        written = torch.from_numpy(gguf.quants.dequantize(query.data, query.tensor_type)[:4].copy())
        torch.testing.assert_close(written, expected, rtol=0, atol=1e-3)
    asked = (to / "Modelfile").read_text(encoding="utf-8")
    assert f'PARAMETER stop "{end}"' in asked and "{{ .Prompt }}" in asked and "<s>" not in asked


def test_the_modelfile_asks_what_the_training_asked(tokenizers_of):
    for kind, prompt, expected in (
        ("gpt2", "<|endoftext|>Say {title}:", "<|endoftext|>Say {{ .Prompt }}:"),
        ("llama", "<s>Say {title}:", "Say {{ .Prompt }}:"),  # llama.cpp adds the BOS token itself
        ("gpt2", "a {{title}} b", 'a {{ "{" }}{{ .Prompt }}} b'),
        ("llama", 'A "b" {{ x }} {title}', 'A {{ "\\"" }}b{{ "\\"" }} {{ "{" }}{{ "{" }} x }} {{ .Prompt }}'),
    ):
        template = Template("mine", prompt, "{content}", stop=('"x"',))
        text = export.modelfile(template, tokenizers_of[kind])
        assert f'TEMPLATE """{expected}{{{{ .Response }}}}"""' in text and 'PARAMETER stop "\\"x\\""' in text


def test_a_pickle_is_written_only_when_asked_for_and_with_a_warning(tmp_path, data, gpt2_folder, train, capsys):
    train("--model", gpt2_folder, "--run_name", "a", "--max_steps", 3, *STEPS)
    run = tmp_path / "runs" / "a"
    export.main(export.parse(["--run", str(run), "--format", "pkl"]))
    assert "pickle can run any code" in capsys.readouterr().out
    assert (run / "final").exists() and (run / "export-pkl" / "model.pkl").stat().st_size > 1000
    with pytest.raises(UsageError, match="exists"):
        export.main(export.parse(["--run", str(run), "--format", "pkl"]))


def test_an_export_that_differs_is_not_written(tmp_path, data, gpt2_folder, train, monkeypatch):
    train("--model", gpt2_folder, "--run_name", "a", "--max_steps", 2, *STEPS)
    run = tmp_path / "runs" / "a"

    def wrong(model):
        for layer in lora_layers(model).values():
            torch.nn.init.constant_(layer.lora_A, 0.3)
        merge(model)

    monkeypatch.setattr(export, "merge", wrong)
    with pytest.raises(export.ExportDiffers):
        export.main(export.parse(["--run", str(run), "--to", str(tmp_path / "x")]))
    assert not (tmp_path / "x").exists()


# -- 4-bit ------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_is_4_bit_already(tmp_path, data, train):
    """As unsloth/mistral-7b-instruct-v0.3-bnb-4bit is; its adapter is merged into another base, never into it."""
    import bitsandbytes as bnb

    full = folder_of("mistral", tmp_path / "full")
    small = tmp_path / "small"
    load_model(full, four_bit=True).save_pretrained(small)
    AutoTokenizer.from_pretrained(full).save_pretrained(small)
    model = load_model(small)
    assert sum(isinstance(module, bnb.nn.Linear4bit) for module in model.modules()) == 14
    assert train("--model", small, "--run_name", "a", "--max_steps", 2, *STEPS, "--gradient_checkpointing") == 0
    run = tmp_path / "runs" / "a"
    with pytest.raises(UnsupportedModel, match="full-precision base"):
        export.main(export.parse(["--run", str(run), "--to", str(tmp_path / "x")]))
    adapter = str(run / "final")
    assert export.main(export.parse(["--adapter", adapter, "--base", str(full), "--to", str(tmp_path / "x")])) == 0


def test_4_bit_weights_are_nf4_with_double_quantisation_and_stay_as_they_are(tmp_path, data, train):
    model = load_model(folder_of("llama", tmp_path / "base"), four_bit=True)
    layer = model.model.layers[0].mlp.up_proj
    assert layer.weight.quant_type == "nf4" and layer.weight.quant_state.nested
    assert type(model.lm_head) is torch.nn.Linear
    exact = load_model(tmp_path / "base")
    ids = torch.arange(5, 40)[None]
    difference = (model(ids).logits - exact(ids).logits).abs().max()
    assert 0 < difference < 0.2 * exact(ids).logits.abs().max()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_evaluating_4_bit_weights_does_not_change_their_gradients(tmp_path, kind):
    """bitsandbytes may repack them for some CPUs, in a form that has no backward pass."""
    model = load_model(folder_of(kind, tmp_path / "base"), four_bit=True)
    wrap(model, Lora())
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    ids, gradients = torch.arange(5, 40)[None], []
    for _ in range(2):
        model.zero_grad()
        model.train()(ids, labels=ids).loss.backward()
        gradients.append([layer.lora_A.grad.clone() for layer in lora_layers(model).values()])
        with torch.inference_mode():
            model.eval()(ids)
    assert all(torch.equal(before, after) for before, after in zip(*gradients, strict=True))


def test_without_bitsandbytes_there_is_the_pip_line(tmp_path, monkeypatch):
    base = folder_of("llama", tmp_path / "base")
    monkeypatch.setattr("model.load.find_spec", lambda name: None)
    with pytest.raises(ModelUnavailable, match="pip install bitsandbytes"):
        load_model(base, four_bit=True)
    monkeypatch.setattr("model.load.find_spec", lambda name: None if name == "accelerate" else name)
    with pytest.raises(ModelUnavailable, match="need the package accelerate. Install"):
        load_model(base, four_bit=True)
    with pytest.raises(UsageError, match="add --lora"):
        TrainConfig(load_in_4bit=True)


def test_an_option_that_would_do_nothing_is_refused(tmp_path, data, train):
    with pytest.raises(UsageError, match="lora_r does nothing"):
        TrainConfig(lora_r=4)
    with pytest.raises(UsageError, match="pocket was not"):
        train("--model", "pocket", "--lora")
    with pytest.raises(UsageError, match="language does nothing"):
        TrainConfig(template="hf", language="pt")
    for idle in (["--format", "gguf", "--dtype", "float16"], ["--gguf_type", "f16"]):
        with pytest.raises(SystemExit):
            export.parse(idle)


def test_checkpointing_changes_no_gradient(tmp_path, data, gpt2_folder, train):
    for name, more in (("a", ()), ("b", ("--gradient_checkpointing",))):
        train("--model", gpt2_folder, "--run_name", name, "--max_steps", 3, *STEPS, *more)
    assert [e["loss"] for e in logged(tmp_path / "runs/a")] == [e["loss"] for e in logged(tmp_path / "runs/b")]


# -- adapters as things -----------------------------------------------------------------------------------------------


def test_adapters_are_switched_in_the_loop_without_loading_the_base_again(tmp_path, data, train, capsys, monkeypatch):
    base = folder_of("qwen2", tmp_path / "base")
    for name, steps in (("a", 1), ("b", 6)):
        train("--model", base, "--run_name", name, "--max_steps", steps, *STEPS)
    alone = [asked(tmp_path / "runs" / name, capsys=capsys) for name in "ab"]
    assert alone[0] != alone[1]
    loaded = []
    monkeypatch.setattr("run.loading.load_model", lambda *args, **kw: loaded.append(args) or load_model(*args, **kw))
    lines = iter(["Caneca azul", "/2", "Caneca azul", "/1", "Caneca azul", "sair"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    monkeypatch.setattr("sys.stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    adapters = [str(tmp_path / "runs" / name) for name in "ab"]
    args = [
        "--adapter",
        adapters[0],
        "--adapter",
        adapters[1],
        "--greedy",
        "--max_new_tokens",
        "6",
        "--base",
        str(base),
    ]
    capsys.readouterr()
    assert generate.main(generate.parse(args)) == 0
    said = capsys.readouterr()
    assert said.out == alone[0] + alone[1] + alone[0] and said.err.count("Now with") + said.err.count("Agora com") == 2
    assert len(loaded) == 1
    for wrong in (
        ["--adapter", "x", "--run", "y"],
        ["--base", "x"],
        ["--adapter", "x", "--adapter", "y", "--title", "z"],
    ):
        with pytest.raises(SystemExit):
            generate.parse(wrong)


def loop(lines: list[str], args: list, monkeypatch, capsys) -> tuple[str, str]:
    """What the interactive loop says to these lines, on both streams."""
    answers = iter(lines)
    monkeypatch.setattr("builtins.input", lambda prompt: next(answers))
    monkeypatch.setattr("sys.stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    capsys.readouterr()
    assert generate.main(generate.parse([str(arg) for arg in (*args, "--greedy", "--max_new_tokens", 6)])) == 0
    said = capsys.readouterr()
    return said.out, said.err


def test_adapters_stay_with_their_base(tmp_path, data, train, capsys, monkeypatch):
    """Of the same shapes or not: another base is said, not computed with."""
    for kind in ("llama", "qwen2"):
        train("--model", folder_of(kind, tmp_path / kind), "--run_name", kind, "--max_steps", 1, *STEPS)
    llama, qwen2 = (tmp_path / "runs" / kind for kind in ("llama", "qwen2"))
    two = ("--adapter", llama, "--adapter", qwen2)
    with pytest.raises(UsageError, match="Not one base"):
        generate.main(generate.parse([str(arg) for arg in two]))
    out, err = loop(["/2", "Mug", "/7", "quit"], (*two, "--base", tmp_path / "llama"), monkeypatch, capsys)
    assert "trained beside model_type qwen2, and this has model_type llama" in err and "/7 is no command" in err
    assert f"Now with {llama}" in err and out.split()
    with pytest.raises(UnsupportedModel, match="belongs to another base"):
        export.main(export.parse(["--run", str(llama), "--base", str(tmp_path / "qwen2"), "--to", str(tmp_path / "x")]))
    monkeypatch.setattr("sys.stdin", io.StringIO("Mug\n"))
    with pytest.raises(UsageError, match="from a pipe"):
        generate.main(generate.parse([*map(str, two), "--base", str(tmp_path / "llama")]))


def test_an_adapter_of_a_4_bit_run_gets_its_base_in_4_bit(tmp_path, data, train, monkeypatch, capsys):
    train(
        "--model", folder_of("qwen2", tmp_path / "base"), "--run_name", "a", "--max_steps", 1, *STEPS, "--load_in_4bit"
    )
    seen = []
    remember = lambda *args, **kw: seen.append(kw["four_bit"]) or load_model(*args, **kw)  # noqa: E731
    monkeypatch.setattr("run.loading.load_model", remember)
    for name in ("a", "a/final"):
        loop(["quit"], ("--adapter", tmp_path / "runs" / name), monkeypatch, capsys)
    assert seen == [True, True]


# -- bases side by side -----------------------------------------------------------------------------------------------


def test_bases_are_compared_in_one_table(tmp_path, data, train, capsys, monkeypatch):
    """train.py is called here instead of started: a process for each base would take most of a minute."""

    def start(command):
        assert command[1].name == "train.py"
        return subprocess.CompletedProcess(command, train(*command[2:]))

    monkeypatch.setattr(evaluate.subprocess, "run", start)
    folders = [str(folder_of(kind, tmp_path / kind)) for kind in ("qwen2", "bert")]
    args = ["--compare", *folders, "--max_steps", "2", "--lora", "--max_samples", "4", "--max_new_tokens", "4"]
    args += ["--data", str(data), "--output_dir", str(tmp_path / "runs"), "--device", "cpu"]
    assert evaluate.main(evaluate.parse(args)) == 0
    (report,) = (tmp_path / "runs").glob("compare-*/comparison.md")
    lines = [line for line in report.read_text(encoding="utf-8").splitlines() if line.startswith("| /")]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == [f for f in folders for _ in (0, 1)]
    for before, after in zip(lines[::2], lines[1::2], strict=True):
        before, after = before.split("|"), after.split("|")
        assert float(before[3]) > 0 < float(after[3]) and not before[7].strip()
        assert 1000 < int(after[7].replace(",", "")) < 30_000  # the adapters alone


def test_characters_are_those_of_the_text_for_every_tokenizer(tokenizers_of):
    text = "Leve, lavável; água não entra 🎁!"
    for kind, tokenizer in tokenizers_of.items():
        encoder = Encoder(tokenizer, choose_template("inst", "pt"), max_length=256)
        (row,) = encoder.rows([{"uid": "1", "title": "Mug", "content": text}])
        assert row.characters == len(text), kind
        encoder.max_length = len(row.ids) - 3
        (cut,) = encoder.rows([{"uid": "1", "title": "Mug", "content": text}])
        assert 0 < cut.characters < len(text), kind


def test_a_base_that_cannot_be_had_ends_a_comparison_before_any_training(tmp_path, data, capfd):
    """The real processes."""
    folder = folder_of("gpt2", tmp_path / "gpt2")
    args = ["--compare", str(folder), str(tmp_path / "none"), "--max_steps", "2", "--data", str(data)]
    assert evaluate.main(evaluate.parse([*args, "--output_dir", str(tmp_path / "runs"), "--device", "cpu"])) == 3
    assert "none cannot be loaded" in capfd.readouterr().err and not (tmp_path / "runs").exists()


# -- recipes ----------------------------------------------------------------------------------------------------------

RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
KINDS = {"distilgpt2": "gpt2", "tinyllama": "llama", "mistral": "mistral", "qwen2.5": "qwen2", "bert": "bert"}


@pytest.mark.parametrize("recipe", [p for p in RECIPES if p.stem != "second-catalogue"], ids=lambda path: path.stem)
def test_each_recipe_is_understood_and_can_be_planned(tmp_path, data, train, capsys, recipe):
    """With a tiny model of the same kind in the place of the one that it names."""
    about = recipe.read_text(encoding="utf-8")
    assert about.startswith("#") and all(f"#{card:>5} GB card: " in about for card in (6, 8, 12))
    kind = KINDS[recipe.stem.split("-")[0]]
    assert train("--recipe", recipe, "--model", folder_of(kind, tmp_path / "base"), "--dry_run") == 0
    plan = capsys.readouterr().out
    assert "checkpoint" in plan and not (tmp_path / "runs").exists()
    named = read_recipe(recipe)
    assert {"model_name_or_path", "max_length", "learning_rate"} <= set(named)
    assert named.get("template", "qa") in ("qa", "inst", "chat", "hf")


def test_the_recipe_of_a_second_catalogue_goes_on_from_a_run_with_older_records_beside(tmp_path, data, train):
    recipe = ROOT / "recipes" / "second-catalogue.toml"
    assert train("--model", "pocket", "--run_name", "first", "--max_steps", 1) == 0
    first = tmp_path / "runs" / "first" / "final"
    assert train("--recipe", recipe, "--model", first, "--replay", data, "--run_name", "second", "--max_steps", 2) == 0
    text = (tmp_path / "runs" / "second" / "train_config.json").read_text(encoding="utf-8")
    config = json.loads(text)["options"]
    assert (config["optim"], config["replay"], config["replay_share"]) == ("muon", str(data), 0.1)


# -- real weights -----------------------------------------------------------------------------------------------------


IN_4_BIT = pytest.param(True, marks=pytest.mark.slow)


@pytest.mark.parametrize("four_bit", [False, IN_4_BIT], ids=["lora", "lora-4bit"])
def test_lora_teaches_stories260k_the_example_catalogue(tmp_path, train, capsys, four_bit):
    base = shared_assets("weights", "stories260K-llama")
    with gzip.open(ROOT / "examples" / "catalogue.json.gz", "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line, _ in zip(lines, range(700), strict=False)]
    records = [r for r in records if len(r.get("content", "")) > 80][:400]
    write_data(tmp_path / "data", records[100:], records[:40], records[40:60])
    tokenizer, template = load_tokenizer(base), choose_template("inst", "pt")
    model = load_model(base, four_bit=four_bit)
    use_flat_attention(model)
    before = mean_loss(model, flat_batches(Encoder(tokenizer, template, 256).rows(records[:40]), 4096))
    args = ("--model", base, "--run_name", "a", "--batch_size", 8, "--lora", "--lora_r", 16, "--lr", 0.01)
    more = ("--load_in_4bit",) if four_bit else ()
    assert train(*args, *more, "--max_steps", 40, "--template", "inst", "--language", "pt") == 0
    run = tmp_path / "runs" / "a"
    after = logged(run)[-1]["val_loss"]
    assert after < before - 1.0, (before, after)  # nats per answer token, on records that were held out
    assert asked(run, capsys=capsys).strip()
