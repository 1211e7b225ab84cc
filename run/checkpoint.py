"""Run folders and what is in them: checkpoints that are whole or absent, and the search for the newest run.

checkpoints/<run>/
    train_config.json   the resolved options, the base model, the versions
    metrics.jsonl       one line for each entry of the log
    base/               only for a model from scratch: its first weights, what "before" means
    checkpoint-<step>/  a Hugging Face folder, and the training state beside it
    final/              the finished model, a Hugging Face folder
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from run.cli import UsageError

MANIFEST = "manifest.json"
CONFIG = "train_config.json"


class DiskFull(OSError):
    """There is not enough room for what will be saved."""

    exit_code = 6


class DamagedCheckpoint(RuntimeError):
    """A file of a saved folder is missing, or not the bytes that were saved."""

    exit_code = 2


# -- folders that are whole or absent ---------------------------------------------------------------------------------


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Write into the folder that this yields; it becomes `path` once everything in it is on the disk, or never.

    A manifest with the size and SHA-256 of each file goes in last.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        entries = {f.relative_to(temporary).as_posix(): {"size": f.stat().st_size, "sha256": sha256(f)} for f in files}
        write_json(temporary / MANIFEST, entries)
        for file in (*files, temporary / MANIFEST):
            sync(file)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def verify(folder: Path) -> None:
    """Raises `DamagedCheckpoint`, naming the file, when `folder` is not what its manifest says."""
    for name, entry in read_json(folder / MANIFEST).items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != entry["size"] or sha256(file) != entry["sha256"]:
            raise DamagedCheckpoint(f"{file} is missing or damaged. Delete {folder} and resume from an older one.")


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have the disk take what the system still holds of a file or folder."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no way to open a folder for this, and journals its renames
    # fsync wants a descriptor that may write on Windows, and one that may not for a folder elsewhere
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path):
    """Raises `DamagedCheckpoint` when the file is absent or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DamagedCheckpoint(f"{path} is missing or damaged.") from None


# -- the training state -----------------------------------------------------------------------------------------------


def save_training_state(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, counters: dict
) -> None:
    """Everything that the next step depends on, besides the weights: no pickle, tensors by the parameters' names."""
    tensors = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = value.contiguous()
    save_file(tensors, folder / "training_state.safetensors")
    write_json(folder / "training_state.json", counters | {"scaler": scaler.state_dict(), "torch": torch.__version__})


def load_training_state(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> dict:
    """Put back what `save_training_state` saved; returns the counters."""
    try:
        tensors = load_file(folder / "training_state.safetensors")
    except (OSError, SafetensorError):
        raise DamagedCheckpoint(f"{folder}: training_state.safetensors is missing or damaged.") from None
    state = read_json(folder / "training_state.json")
    for name, parameter in model.named_parameters():
        keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors]
        values = {key: tensors[f"{key}.{name}"] for key in keys}
        if values:
            optimizer.state[parameter] = {
                key: value if key == "step" and parameter.device.type == "cpu" else value.to(parameter.device)
                for key, value in values.items()
            }
    torch.set_rng_state(tensors["rng.cpu"])
    if torch.cuda.is_available() and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    scaler.load_state_dict(state["scaler"])
    return state


def check_free_space(folder: Path, needed: int) -> int:
    """Free bytes on the disk that `folder` is, or will be, on. Raises `DiskFull` when they are fewer than `needed`."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise DiskFull(
            f"{existing}: {free / 2**30:.1f} GB free, and saving this model takes {needed / 2**30:.1f} GB. "
            "Free some space, or choose another disk with --output_dir."
        )
    return free


# -- runs -------------------------------------------------------------------------------------------------------------


def new_run(output_dir: Path, name: str | None, model_name: str) -> Path:
    """A fresh folder for a run. Raises `UsageError` when one of that name exists."""
    run = output_dir / (name or f"{Path(model_name).name}-{time.strftime('%Y%m%d-%H%M%S')}")
    if (run / CONFIG).exists():
        raise UsageError(f"{run} exists. Go on with it (--resume {run}), or choose another --run_name.")
    run.mkdir(parents=True, exist_ok=True)
    return run


def resume_point(name: str, output_dir: Path) -> tuple[Path, Path | None]:
    """The run to go on with and the checkpoint to start from: its newest one, unless `name` is a checkpoint itself.

    `name` "" means the newest run. The checkpoint is None when the run was stopped before its first one. Raises
    `UsageError` when there is no such run.
    """
    if name and Path(name).name.startswith("checkpoint-"):
        checkpoint = Path(name)
        return find_run(str(checkpoint.parent), output_dir), checkpoint
    run = find_run(name or None, output_dir)
    return run, next(reversed(checkpoints_of(run)), None)


def find_run(name: str | None, output_dir: Path = Path("checkpoints")) -> Path:
    """A run by its name or path; without a name the one that was written to last. Raises `UsageError`."""
    if name is not None:
        for run in (Path(name), output_dir / name):
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
    found = [path for path in run.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def weights_of(run: Path) -> Path:
    """The folder with the best weights that a run has: `final`, else its newest checkpoint. Raises `UsageError`."""
    candidates = [*checkpoints_of(run), *([run / "final"] if (run / "final").is_dir() else [])]
    if not candidates:
        raise UsageError(f"{run} has no saved weights yet. Train it: python train.py --resume {run}")
    return candidates[-1]


def base_model_of(run: Path) -> str | Path:
    """What the run started from, as `load_model` takes it: its own `base` folder, another folder, or a hub id."""
    base = read_json(run / CONFIG).get("base_model")
    if not isinstance(base, str):
        raise DamagedCheckpoint(f"{run / CONFIG} does not name its base model.")
    return run / "base" if base == "base" else base


def remove_old_checkpoints(run: Path, keep: int) -> None:
    for folder in checkpoints_of(run)[:-keep]:
        shutil.rmtree(folder)
