"""Everything that a test needs is made in it: no network, no downloads, one thread, so that sums have one order."""

import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
torch.set_num_threads(1)

from transformers import BertConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, MistralConfig, Qwen2Config

from run.config import parse_train
from run.duration import TimePlan
from text.bpe import train_bpe

TIMES = TimePlan(step=2.0, validation=10.0, checkpoint=5.0, before=7.0, after=3.0)
RECORDS = [
    {"uid": f"U{i}", "title": title, "content": content}
    for i, (title, content) in enumerate(
        [
            ("Blue Mug", "A blue mug for coffee. It holds 350 ml."),
            ("Caneca azul", "Uma caneca azul de cerâmica, com capacidade para 350 ml. Vai ao micro-ondas."),
            ("Pão de forma", "Pão macio, sem conservantes!"),
            ("Red Kettle", "The red kettle boils a litre of water in two minutes. Do not fill it above the line."),
            ("Cadeira", "Cadeira de madeira com 4 pés e encosto alto. Suporta até 120 kg. Montagem simples."),
            ("Lamp", "Lamp."),
            ("Notebook, 96 pages", "It has 96 pages, and it lies flat. “Just what I needed”, says a reader. Ruled."),
            ("Toalha verde", "Toalha verde de algodão; seca rápido."),
            ("Green Towel", "This green towel is soft."),
            ("Dog bed", "A bed for dogs, 60 x 40 cm. Wash it at 30 °C. It comes in grey."),
            ("Chave de fenda", "Chave de fenda com cabo emborrachado, boa para o dia a dia."),
        ]
    )
]


@pytest.fixture(scope="session")
def records() -> list[dict[str, str]]:
    return RECORDS


@pytest.fixture(scope="session")
def tokenizer():
    return train_bpe((f"{r['title']} {r['content']} Question: Answer:" for r in RECORDS), vocab_size=400)


def tiny_gpt2(vocab_size: int = 400, **options) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    shape = {"n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    no_dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **shape | no_dropout | options)).eval()


LLAMA_LIKE = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,  # grouped queries
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
BERT = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "is_decoder": True,
}
ARCHITECTURES = {
    "gpt2": lambda: tiny_gpt2().config,
    "llama": lambda: LlamaConfig(**LLAMA_LIKE),
    "qwen2": lambda: Qwen2Config(**LLAMA_LIKE, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**LLAMA_LIKE),
    "bert": lambda: BertConfig(**BERT),
}


def shared_assets(*parts: str) -> Path:
    """A file of the shared assets; the test is skipped where they are absent."""
    folder = Path(os.environ.get("VITRINE_ASSETS", ROOT.parent / "shared" / "assets"))
    path = folder.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is not here: set VITRINE_ASSETS to the folder of the shared assets")
    return path


def write_data(folder: Path, train: list[dict], val: list[dict] = RECORDS[:3], test: list[dict] = RECORDS[3:7]) -> Path:
    """A folder as data_prep.py leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, records in (("train", train), ("val", val), ("test", test)):
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture
def data(tmp_path) -> Path:
    return write_data(tmp_path / "data", RECORDS)


@pytest.fixture
def gpt2_folder(tmp_path, tokenizer) -> Path:
    """A tiny GPT-2 as transformers saves it."""
    folder = tmp_path / "tiny-gpt2"
    tiny_gpt2(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def train(tmp_path):
    """`train("--model", folder, ...)` runs train.py in this process, on the CPU; returns its exit code.

    Its plan says TIMES; with `measure` it takes the few steps that it measures, which call the loss like any other.
    """
    import train as script

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*args, measure: bool = False) -> int:
        defaults = ("--output_dir", tmp_path / "runs", "--data", tmp_path / "data", "--device", "cpu")
        with pytest.MonkeyPatch.context() as patch:
            if not measure:
                patch.setattr("run.plan.measure_time", lambda *_, **__: TIMES)
            return script.main(parse_train([str(arg) for arg in (*defaults, *args)]))

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextmanager
def stopped_at(step: int):
    """As if Ctrl-C were pressed during step `step` of what `train` runs."""
    import train as script

    class StopRequest:
        def __init__(self):
            self.asked_before = 0

        @property
        def asked(self) -> bool:  # the loop looks once a step
            self.asked_before += 1
            return self.asked_before >= step

        def over(self) -> None:
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "StopRequest", StopRequest)
        yield


def logged(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def script(name: str, *args, stdin: str = "", cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """A script as a person starts it, in a process of its own."""
    return subprocess.run(
        [sys.executable, str(ROOT / name), *map(str, args)],
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=cwd,
        timeout=300,
    )


def zipped(**files: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return packed.getvalue()
