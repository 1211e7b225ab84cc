"""Runs and checkpoints by name: the folder of a run, and what in it is used next.

checkpoints/<run>/
    train_config.json   the resolved options, the base model, the versions, the data's fingerprints
    template.json       the prompt that the run is trained with
    metrics.jsonl       one line for each entry of the log
    plan.json           what the screen said before the first step, of the newest session
    before.json         what the base model answered to three held-out titles
    after.json          what the trained one answers to them
    report.html         all of it as a page, written at the end and by evaluate.py
    metrics.json        what evaluate.py measured, and some of the answers
    lock.json           only while somebody trains into the run
    base/               only for a model from scratch: its first weights, what "before" means
    checkpoint-<step>/  a Hugging Face folder, and the training state beside it
    final/              the finished model, a Hugging Face folder
"""

import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from catalogue.outputs import sync
from run.cli import UsageError
from run.files import MANIFEST, DamagedCheckpoint, read_json, remove_folder, verify, write_json
from run.metrics import read_metrics

CONFIG = "train_config.json"
OPTIMIZER = "optimizer.safetensors"  # the optimizer's moments: up to two thirds of a checkpoint, and only in the newest


def new_run(output_dir: Path, name: str | None, model_name: str) -> Path:
    """A fresh folder for a run. Raises `UsageError` when one of that name exists."""
    run = output_dir / (name or f"{Path(model_name).name}-{time.strftime('%Y%m%d-%H%M%S')}")
    if (run / CONFIG).exists():
        raise UsageError(f"{run} exists. Go on with it (--resume {run}), or choose another --run_name.")
    run.mkdir(parents=True, exist_ok=True)
    sync(run.parent)
    return run


def read_run(run: Path) -> dict:
    """train_config.json. Raises `DamagedCheckpoint` when it is not what a run writes."""
    saved = read_json(run / CONFIG)
    wanted = {"options": dict, "base_model": str, "base_weights": str, "versions": dict, "data": dict, "ranks": int}
    for key, kind in wanted.items():
        if not isinstance(saved, dict) or not isinstance(saved.get(key), kind):
            raise DamagedCheckpoint(f"{run / CONFIG} is damaged, or of an older version: it has no {key}.")
    if not 1 <= saved["ranks"] <= 4096:
        raise DamagedCheckpoint(f"{run / CONFIG} is damaged: {saved['ranks']} processes cannot have begun it.")
    return saved


def find_checkpoint(name: str, run: Path) -> Path | None:
    """The checkpoint to start from: `name` if it is one, else the newest whole one of the run.

    None when the run was stopped before its first one. Raises `DamagedCheckpoint` when none of those there is whole.
    """
    found = checkpoints_of(run)
    if Path(name).name.startswith("checkpoint-"):
        if not Path(name).is_dir():
            raise UsageError(f"There is no {name}. There are: {', '.join(path.name for path in found) or 'none yet'}.")
        verify(Path(name))
        return Path(name)
    newest = first_whole(found[::-1])
    if found and newest is None:
        raise DamagedCheckpoint(f"No checkpoint of {run} is whole. Delete them, and --resume begins the run again.")
    return newest


def first_whole(checkpoints: list[Path]) -> Path | None:
    """The first whose files are what was saved; says which are not. None when there is no such one."""
    for checkpoint in checkpoints:
        try:
            verify(checkpoint)
            return checkpoint
        except DamagedCheckpoint as error:
            print(f"{error} {checkpoint.name} is passed over.", file=sys.stderr)
    return None


def run_of(name: str, output_dir: Path) -> Path:
    """The run that `--resume NAME` means: a run, a checkpoint's run, or, for "", the newest. Raises `UsageError`."""
    if Path(name).name.startswith("checkpoint-"):
        return find_run(str(Path(name).parent), output_dir)
    return find_run(name or None, output_dir)


def find_run(name: str | None, output_dir: Path = Path("checkpoints")) -> Path:
    """A run by its name or path; without a name the one that was written to last. Raises `UsageError`."""
    if name is not None:
        for run in (Path(name), output_dir / name):
            with suppress(OSError):  # a name that is too long is none
                if (run / CONFIG).is_file():
                    return run
        raise UsageError(f"{name} is no run: there is no {Path(name) / CONFIG}. {_runs_there(output_dir)}")
    runs = runs_in(output_dir)
    if not runs:
        raise UsageError(f"There is no run in {output_dir} yet. Make one: python train.py")
    return runs[-1]


def runs_in(output_dir: Path) -> list[Path]:
    """The runs in a folder, the one that was written to last at the end."""
    runs = [path.parent for path in output_dir.glob(f"*/{CONFIG}")]
    return sorted(runs, key=lambda run: max(f.stat().st_mtime for f in (run / CONFIG, *run.glob("metrics.jsonl"))))


def _runs_there(output_dir: Path) -> str:
    names = [run.name for run in runs_in(output_dir)]
    return f"In {output_dir}: {', '.join(names)}." if names else f"{output_dir} holds no run."


def checkpoints_of(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [path for path in run.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def best_checkpoints(run: Path) -> list[Path]:
    """Those that were validated, by metrics.jsonl, the lowest loss first."""
    entries = read_metrics(run / "metrics.jsonl")
    losses = {entry["step"]: entry["val_loss"] for entry in entries if entry.get("val_loss") is not None}
    validated = [checkpoint for checkpoint in checkpoints_of(run) if step_of(checkpoint) in losses]
    return sorted(validated, key=lambda checkpoint: losses[step_of(checkpoint)])


def go_back_to(run: Path, checkpoint: Path) -> None:
    """Remove the checkpoints of later steps: those steps are done again, and the log no longer has them."""
    for later in checkpoints_of(run):
        if step_of(later) > step_of(checkpoint):
            print(f"{later.name} goes: the run continues from step {step_of(checkpoint)}.", file=sys.stderr)
            remove_folder(later)


def weights_of(run: Path) -> Path:
    """The folder with the best weights that a run has: `final`, else its newest whole checkpoint.

    Raises `UsageError` when it has none yet, `DamagedCheckpoint` when none is whole.
    """
    if (run / "final").is_dir():
        verify(run / "final")
        return run / "final"
    checkpoint = find_checkpoint("", run)
    if checkpoint is None:
        raise UsageError(f"{run} has no saved weights yet. Train it: python train.py --resume {run}")
    return checkpoint


def base_model_of(run: Path) -> str | Path:
    """What the run started from, as `load_model` takes it: its own `base` folder, another folder, or a hub id."""
    base = read_run(run)["base_model"]
    return run / "base" if base == "base" else base


def remove_old_checkpoints(run: Path, newest: Path, keep: int, keep_best: bool = False) -> None:
    """Leave `newest`, the `keep` - 1 before it and, if asked, the best by validation loss; only `newest` with moments.

    Checkpoints of later steps go too: they were damaged, or belong to steps that are done again.
    """
    before = [checkpoint for checkpoint in checkpoints_of(run) if step_of(checkpoint) < step_of(newest)]
    kept = {newest, *before[len(before) - (keep - 1) :]}
    if keep_best:
        kept |= set(best_checkpoints(run)[:1])
    for checkpoint in checkpoints_of(run):
        if checkpoint not in kept:
            remove_folder(checkpoint)
        elif checkpoint != newest:
            drop_optimizer(checkpoint)


def drop_optimizer(checkpoint: Path) -> None:
    """Remove the optimizer's moments: first from the manifest, then from the disk: it is whole throughout."""
    if not (checkpoint / OPTIMIZER).exists():
        return
    try:
        entries = dict(read_json(checkpoint / MANIFEST))
    except (DamagedCheckpoint, TypeError, ValueError):  # a checkpoint that nobody can go back to
        return remove_folder(checkpoint)
    entries.pop(OPTIMIZER, None)
    write_json(checkpoint / MANIFEST, entries)
    with suppress(OSError):  # Windows, while somebody has it open: it goes after a later save
        (checkpoint / OPTIMIZER).unlink()


def versions() -> dict[str, str]:
    """What a later run must have too, for its numbers to be bitwise the same."""
    return {name: version(name) for name in ("torch", "transformers", "tokenizers")}
