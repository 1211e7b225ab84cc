"""Every file that is read back may hold anything: a sentence and an exit code, no traceback, no foreign code."""

import json
import os
import pickle
import shutil
from contextlib import suppress

import pytest
from conftest import stopped_at, tiny_gpt2
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from model.adapter import adapter_base, load_adapter, save_adapter
from model.errors import ModelUnavailable, UnsupportedModel
from model.load import weights_to_save
from model.lora import Lora, unwrap, wrap
from run.cli import UsageError
from run.config import from_json, read_recipe
from run.files import DamagedCheckpoint, verify, whole_folder
from run.folders import read_run
from run.lock import read_holder
from run.metrics import read_metrics
from text.errors import DataError
from text.template import load_template

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = ["options", "base_model", "versions", "data", "ranks", "pid", "started", "host", "step", "val_loss", "seed"]
KEYS += ["name", "prompt", "answer", "learning_rate", "size", "sha256"]
OBJECTS = st.dictionaries(st.sampled_from(KEYS), JSON, max_size=5)
CONTENTS = (
    st.binary(max_size=60) | JSON.map(lambda v: json.dumps(v).encode()) | OBJECTS.map(lambda v: json.dumps(v).encode())
)
CONTENTS |= st.just(b"[" * 50_000) | st.just(b'{"a":' * 50_000) | st.just(b"9" * 5000) | st.just(b"\xff\xfe\x00")


def read_options(path) -> None:
    from_json(json.loads(path.read_text(encoding="utf-8")), "run")


READERS = {
    "train_config.json": (lambda path: read_run(path.parent), DamagedCheckpoint),
    "manifest.json": (lambda path: verify(path.parent), DamagedCheckpoint),
    "template.json": (lambda path: load_template(path.parent), DataError),
    "recipe.toml": (read_recipe, UsageError),
    "metrics.jsonl": (read_metrics, ()),  # what cannot be read is left out
    "lock.json": (read_holder, ()),  # a lock that says nothing is stale
}


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=CONTENTS)
@example(content=b'{"\\n":null}')  # a name with a line break in it
def test_any_content_is_read_or_refused_in_a_sentence(tmp_path, name, content):
    reader, refusal = READERS[name]
    path = tmp_path / name
    path.write_bytes(content)
    try:
        reader(path)
    except refusal as error:
        assert error.exit_code == 2 and str(tmp_path) in str(error) and "\n" not in str(error).strip()


@settings(max_examples=80, deadline=None)
@given(values=JSON | st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4))
def test_any_saved_options_are_read_or_refused(values):
    try:
        from_json(values, "run")
    except UsageError as error:
        assert error.exit_code == 2


ADAPTER_KEYS = ["peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "init_lora_weights"]
ADAPTER_KEYS += ["use_dora", "exclude_modules", "layers_to_transform", "base_model_name_or_path"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("adapter"), tiny_gpt2()
    wrap(model, Lora())
    save_adapter(model, folder, weights_to_save(model))
    unwrap(model)
    return folder, model, json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))


@settings(max_examples=150, deadline=None)
@given(
    values=st.dictionaries(st.sampled_from(ADAPTER_KEYS), JSON, min_size=1, max_size=2), content=st.none() | CONTENTS
)
def test_any_adapter_is_read_or_refused(adapter, values, content):
    """Some keys of its configuration are anything, or the whole file is."""
    folder, model, config = adapter
    text = json.dumps(config | values).encode() if content is None else content
    (folder / "adapter_config.json").write_bytes(text)
    try:
        adapter_base(folder)
        load_adapter(model, folder)
    except (ModelUnavailable, UnsupportedModel) as error:
        assert str(folder) in str(error)
    unwrap(model)


@settings(max_examples=40, deadline=None)
@given(content=CONTENTS)
def test_any_weights_of_an_adapter_are_read_or_refused(adapter, content):
    folder, model, config = adapter
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    whole = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises((ModelUnavailable, UnsupportedModel)):
        load_adapter(model, folder)
    (folder / "adapter_model.safetensors").write_bytes(whole)


class Malicious:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def run(tmp_path, data, gpt2_folder, train):
    with stopped_at(2):
        train("--model", gpt2_folder, "--run_name", "a", "--max_steps", 3, "--batch_size", 4)
    return tmp_path / "runs" / "a"


def test_a_planted_pickle_is_never_opened(tmp_path, run, train, gpt2_folder):
    mark = tmp_path / "was here"
    planted = pickle.dumps(Malicious(mark))
    names = ("pytorch_model.bin", "optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin")
    for name in names:
        (run / "checkpoint-2" / name).write_bytes(planted)
    for name in ("model.safetensors", "optimizer.safetensors", "random_state.safetensors"):
        file = run / "checkpoint-2" / name
        whole = file.read_bytes()
        file.write_bytes(planted)
        with pytest.raises(DamagedCheckpoint):
            train("--resume", run)
        # the same with a manifest that fits
        shutil.copytree(run / "checkpoint-2", tmp_path / "copy", dirs_exist_ok=True)
        (tmp_path / "copy" / "manifest.json").unlink()
        with whole_folder(run / "checkpoint-2") as folder:
            shutil.copytree(tmp_path / "copy", folder, dirs_exist_ok=True)
        with pytest.raises(Exception) as error:
            train("--resume", run)
        assert hasattr(error.value, "exit_code"), error.value
        with whole_folder(run / "checkpoint-2") as folder:
            shutil.copytree(tmp_path / "copy", folder, dirs_exist_ok=True)
            (folder / name).write_bytes(whole)
    (gpt2_folder / "model.safetensors").unlink()
    (gpt2_folder / "pytorch_model.bin").write_bytes(planted)
    with pytest.raises(Exception) as error:
        train("--model", gpt2_folder, "--run_name", "b")
    assert error.value.exit_code == 3
    assert train("--resume", run) == 0
    assert not mark.exists()
    pickle.loads(planted)
    assert mark.exists()  # it would have been


@pytest.mark.parametrize("key", ["counters", "scaler", "versions"])
@pytest.mark.parametrize("value", [None, [], {"step": "x"}])
def test_a_training_state_that_says_nonsense_is_a_sentence(run, train, key, value):
    (run / "checkpoint-2" / "manifest.json").unlink()
    shutil.copytree(run / "checkpoint-2", run / "copy")
    with whole_folder(run / "checkpoint-2") as folder:
        shutil.copytree(run / "copy", folder, dirs_exist_ok=True)
        state = json.loads((folder / "training_state.json").read_text(encoding="utf-8"))
        (folder / "training_state.json").write_text(json.dumps(state | {key: value}), encoding="utf-8")
    if key == "counters":
        with pytest.raises(DamagedCheckpoint, match="training state"):
            train("--resume", run)
    else:  # fp32 needs no scaler, and other versions are only said
        with suppress(DamagedCheckpoint):
            train("--resume", run)
