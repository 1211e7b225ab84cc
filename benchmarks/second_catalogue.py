"""A model trained on one catalogue, then on a second: what is learned there, and what is forgotten here.

    python benchmarks/second_catalogue.py                     English, then Portuguese: optimizers, rates, LoRA, replay
    python benchmarks/second_catalogue.py --model FOLDER      the same from other weights, which know neither
    python benchmarks/second_catalogue.py --steps 80 --only "--lr 1e-3" --only "--lr 1e-3 --replay"

Both catalogues are the example's, a language each. Losses are nats per supervised token of 200 held-out records, and
every row starts from the same weights and takes the same records, but for those that are replayed.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from model.attention import use_flat_attention
from model.loss import mean_loss
from run.data import open_split
from run.folders import base_model_of
from run.loading import load
from text.batch import flat_batches
from text.template import load_template

HELD_OUT, LANGUAGES = 200, ("en", "pt")
WAYS = (
    *(f"--lr {rate}" for rate in ("5e-5", "3e-4", "1e-3", "3e-3")),
    *(f"--optim muon --lr {rate}" for rate in ("3e-4", "1e-3", "3e-3")),
    *(f"--lora --lr {rate}" for rate in ("2e-4", "1e-3", "5e-3", "2e-2")),
    *(f"--lora --optim muon --lr {rate}" for rate in ("1e-3", "5e-3")),
    "--lr 1e-3 --replay",
    "--lr 1e-3 --replay --replay_share 0.3",
    "--lora --lr 5e-3 --replay",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="weights to begin with; default: pocket, trained on English here")
    parser.add_argument("--first_steps", type=int, default=700, help="of that training")
    parser.add_argument("--steps", type=int, default=300, help="on Portuguese")
    parser.add_argument("--only", action="append", metavar="OPTIONS", help="these instead of the usual ones")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for language in LANGUAGES:
            raw = folder / f"raw-{language}"
            run("examples/make_catalogue.py", "--language", language, "--output_dir", raw)
            run("data_prep.py", raw / "catalogue.json.gz", "--attributes", "auto", "--output_dir", folder / language)
        first = options.model and options.model.resolve()
        if first is None:
            train(folder, "first", "--data", folder / "en", "--model", "pocket", "--max_steps", options.first_steps)
            first = folder / "runs" / "first" / "final"
        print("| options | English | Portuguese |\n|---|---:|---:|")
        for number, way in enumerate(options.only or WAYS):
            words = way.split()
            if "--replay" in words:
                words.insert(words.index("--replay") + 1, folder / "en")
            begun = ("--data", folder / "pt", "--model", first, "--max_steps", options.steps)
            train(folder, str(number), *begun, *words)
            after = folder / "runs" / str(number)
            if number == 0:
                print(row("before", base_model_of(after), after, folder))
            print(row(way, after / "final", after, folder), flush=True)


def train(folder: Path, name: str, *args) -> None:
    run("train.py", *args, "--output_dir", folder / "runs", "--run_name", name, "--device", "cpu")


def run(script: str, *args) -> None:
    subprocess.run([sys.executable, ROOT / script, *map(str, args)], check=True, stdout=subprocess.DEVNULL)


def row(name: str, weights: str | Path, its_run: Path, folder: Path) -> str:
    """The losses on both catalogues, asked in the words of the run."""
    model, encoder = load(weights, load_template(its_run), max_length=256)
    use_flat_attention(model)
    losses = []
    for language in LANGUAGES:
        file = open_split(folder / language, "test")
        rows = encoder.rows([file[i] for i in range(min(HELD_OUT, len(file)))])
        losses.append(mean_loss(model, flat_batches(rows, 2048)))
    return f"| `{name}` | " + " | ".join(f"{loss:.3f}" for loss in losses) + " |"


if __name__ == "__main__":
    main()
