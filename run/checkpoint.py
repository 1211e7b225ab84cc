"""Run folders and what is in them: checkpoints that are whole or absent, and the search for the newest run.

    checkpoints/<run>/
        train_config.json   the resolved options, the base model, the versions, the data's fingerprints
        metrics.jsonl       one line for each entry of the log
        before.json         what the base model answered to three held-out titles
        lock.json           only while somebody trains into the run
        base/               only for a model from scratch: its first weights, what "before" means
        checkpoint-<step>/  a Hugging Face folder, and the training state beside it
        final/              the finished model, a Hugging Face folder

A folder is written under a hidden name, flushed to the disk and renamed, so whatever bears its own name is whole. What
the death of a process leaves behind bears a hidden name too, and goes at the next start (`clear_leftovers`).
"""

import errno
import hashlib
import json
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from run.cli import UsageError
from run.log import read_metrics, size
from run.shard import placed_like

MANIFEST = "manifest.json"
CONFIG = "train_config.json"
OPTIMIZER = "optimizer.safetensors"  # AdamW's moments: two thirds of a checkpoint, and only in the newest
STATE = "training_state.json"
RANDOM = "random_state.safetensors"


class DiskFull(OSError):
    """There is not enough room for what will be saved."""

    exit_code = 6

    def __str__(self) -> str:
        return str(self.args[0])


class DamagedCheckpoint(RuntimeError):
    """A file of a saved folder is missing, or not the bytes that were saved."""

    exit_code = 2


# -- folders that are whole or absent ---------------------------------------------------------------------------------


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Write into the folder that this yields; it becomes `path` once everything in it is on the disk, or never.

    A manifest with the size and SHA-256 of each file goes in last. Raises `DiskFull` when there is no more room; what
    was at `path` before is then still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        entries = {f.relative_to(temporary).as_posix(): {"size": f.stat().st_size, "sha256": sha256(f)} for f in files}
        write_json(temporary / MANIFEST, entries)
        for entry in (*temporary.rglob("*"), temporary):
            sync(entry)
        put_in_place(temporary, path)
    except Exception as error:
        number = re.search(r"os error (\d+)", str(error))  # of a compiled writer, which has it as text
        if not is_disk_full(error) and number:
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        if not is_disk_full(error):
            raise
        raise DiskFull(
            f"{path}: the disk is full, and this was not saved. What was saved before is whole. "
            "Free some space and go on with --resume, or choose another disk with --output_dir."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`. A folder of that name steps aside first and goes last.

    No system can exchange two folders in one operation that Python offers, so there is a moment in which neither is at
    `path`; `clear_leftovers` puts the old one back when the process died in it.
    """
    old = path.with_name(f".{path.name}.old")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.replace(old)
    try:
        temporary.replace(path)
        sync(path.parent)
    except OSError:
        if old.exists() and not path.exists():
            old.replace(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Delete a folder so that it is never half there under its own name."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.replace(hidden)
    except OSError:  # Windows, while somebody has a file of it open: it goes after a later save
        return
    shutil.rmtree(hidden, ignore_errors=True)


def clear_leftovers(run: Path) -> None:
    """Remove what killed saves left in a run. Only the process that holds the run's lock may call this."""
    for old in run.glob(".*.old"):
        path = run / old.name.removeprefix(".").removesuffix(".old")
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.replace(path)
    for temporary in run.glob(".*.tmp"):
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def verify(folder: Path) -> None:
    """Raises `DamagedCheckpoint`, naming the file, when `folder` is not what its manifest says."""
    manifest = folder / MANIFEST
    entries = read_json(manifest)
    try:
        # Compared as text too, so that there is no byte of the manifest that may change.
        whole = bool(entries) and json_text(entries) == manifest.read_text(encoding="utf-8")
        whole = whole and all(name.isprintable() for name in entries)  # they are named on the screen
        for name, entry in entries.items() if whole else ():
            file = folder / name
            if not file.is_file() or file.stat().st_size != entry["size"] or sha256(file) != entry["sha256"]:
                raise DamagedCheckpoint(f"{file} is missing or damaged.")
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        whole = False
    if not whole:
        raise DamagedCheckpoint(f"{manifest} is missing or damaged.")


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


def is_disk_full(error: Exception) -> bool:
    """Whether the disk, or this user's part of it, is full. Compiled writers pass the system's number on as text."""
    full = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), 112}  # 112: Windows' ERROR_DISK_FULL
    if isinstance(error, OSError) and not isinstance(error, DiskFull):
        return error.errno in full or getattr(error, "winerror", None) in full
    number = re.search(r"(?:os error|code:) (\d+)", str(error))
    return bool(number) and int(number[1]) in full


def json_text(value) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def write_json(path: Path, value) -> None:
    """The file is replaced in one operation: at every moment it is the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json_text(value), encoding="utf-8", newline="\n")
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path):
    """Raises `DamagedCheckpoint` when the file is absent or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise DamagedCheckpoint(f"{path} is missing or damaged.") from None


# -- the training state -----------------------------------------------------------------------------------------------


def seed_random_state(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def random_state() -> dict[str, torch.Tensor]:
    """Every generator of this process that a model may draw from."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    states = {
        "cpu": torch.get_rng_state(),
        "python": torch.tensor(random.getstate()[1], dtype=torch.int64),
        "numpy": torch.tensor([*keys.tolist(), position], dtype=torch.int64),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_state(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    random.setstate((3, tuple(states["python"].tolist()), None))
    *keys, position = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position))
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


@dataclass(frozen=True)
class Counters:
    """Where a run stands between two steps."""

    step: int = 0
    loss_sum: float = 0.0  # nats since the last entry of the log
    supervised: int = 0  # tokens since the last entry
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    micro_batch_tokens: int = 0


def save_checkpoint(
    run: Path,
    save_model: Callable[[Path, dict[str, torch.Tensor]], None],
    weights: dict[str, torch.Tensor],
    optimizer_state: dict[str, torch.Tensor],
    scaler: torch.amp.GradScaler,
    random_states: list[dict[str, torch.Tensor]],
    counters: Counters,
) -> Path:
    """checkpoint-<step> of a run, whole or not at all; returns it. `save_model(folder, weights)` writes the model, and
    `random_states` has one entry for each rank.

    Raises `DiskFull`, before anything is written if it can be foreseen.
    """
    check_free_space(run, sum(value.nbytes for value in (*weights.values(), *optimizer_state.values())))
    with whole_folder(run / f"checkpoint-{counters.step}") as folder:
        save_model(folder, weights)
        save_training_state(folder, optimizer_state, random_states, scaler, counters)
    return run / f"checkpoint-{counters.step}"


def save_training_state(
    folder: Path,
    optimizer_state: dict[str, torch.Tensor],
    random_states: list[dict[str, torch.Tensor]],
    scaler: torch.amp.GradScaler,
    counters: Counters,
) -> None:
    """Everything that the next step depends on, besides the weights. No pickle: tensors by name, the rest in JSON."""
    save_file(optimizer_state, folder / OPTIMIZER)
    named = {f"{key}.{rank}": state for rank, states in enumerate(random_states) for key, state in states.items()}
    save_file(named, folder / RANDOM)
    state = {"counters": asdict(counters), "scaler": scaler.state_dict(), "versions": versions()}
    write_json(folder / STATE, state)


def versions() -> dict[str, str]:
    """What a later run must have too, for its numbers to be bitwise the same."""
    return {name: version(name) for name in ("torch", "transformers", "tokenizers")}


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's state by the parameters' names: `exp_avg.<name>`, `exp_avg_sq.<name>`, `step.<name>`."""
    return {
        f"{key}.{name}": value.contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_training_state(
    folder: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    rank: int = 0,
) -> Counters:
    """Put back what `save_training_state` saved. Says on standard error what keeps the run from being the same one.

    Raises `DamagedCheckpoint`.
    """
    try:
        state = read_json(folder / STATE)
        counters = Counters(**{f.name: f.type(state["counters"][f.name]) for f in fields(Counters)})
        named = {name: value.clone() for name, value in load_file(folder / RANDOM).items()}
        mine = {name.removesuffix(f".{rank}"): v for name, v in named.items() if name.endswith(f".{rank}")}
        if mine:
            set_random_state(mine)
            if "micro_batch_tokens" in mine:  # of this rank: after an out-of-memory error it may have its own
                counters = replace(counters, micro_batch_tokens=int(mine["micro_batch_tokens"]))
        else:  # this run has more ranks than the one that saved
            seed_random_state(torch.initial_seed() + 1000 * counters.step)
        if (folder / OPTIMIZER).exists():
            load_moments(load_file(folder / OPTIMIZER), model, optimizer)
        else:
            print(f"{folder} has the weights alone: AdamW's averages begin anew.", file=sys.stderr)
        if state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        if state["versions"] != versions():
            print(f"Saved with {state['versions']}, this is {versions()}: the last digits may differ.", file=sys.stderr)
    except DamagedCheckpoint:
        raise
    except (OSError, SafetensorError, AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError):
        raise DamagedCheckpoint(f"{folder}: its training state is missing or damaged.") from None
    return counters


def load_moments(tensors: dict[str, torch.Tensor], model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for name, parameter in model.named_parameters():
        keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors]
        found = {key: tensors[f"{key}.{name}"] for key in keys}
        if any(value.shape != parameter.shape for key, value in found.items() if key != "step"):
            raise DamagedCheckpoint(f"AdamW's state of {name} does not fit the model.")
        if found:
            # Copies, because these tensors are windows into the file, which Windows could then not delete.
            optimizer.state[parameter] = {key: placed_like(value, parameter) for key, value in found.items()}


def check_free_space(folder: Path, needed: int) -> int:
    """Free bytes on the disk that `folder` is, or will be, on. Raises `DiskFull` when they are fewer than `needed`."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise DiskFull(
            f"{existing}: {size(free)} free, and saving this model takes {size(needed)}. "
            "Free some space, or choose another disk with --output_dir."
        )
    return free


def disk_needed(checkpoint_bytes: int, kept: int) -> int:
    """The most bytes that a run has on the disk at once: while the newest checkpoint is written, the one before is
    still whole; the others, `final` and `base` are weights alone, a third of a checkpoint."""
    return 2 * checkpoint_bytes + (kept + 1) * checkpoint_bytes // 3


# -- runs -------------------------------------------------------------------------------------------------------------


def new_run(output_dir: Path, name: str | None, model_name: str) -> Path:
    """A fresh folder for a run. Raises `UsageError` when one of that name exists."""
    run = output_dir / (name or f"{Path(model_name).name}-{time.strftime('%Y%m%d-%H%M%S')}")
    if (run / CONFIG).exists():
        raise UsageError(f"{run} exists. Go on with it (--resume {run}), or choose another --run_name.")
    run.mkdir(parents=True, exist_ok=True)
    sync(run.parent)
    return run


def check_data(run: Path, saved: dict[str, str], now: dict[str, str], folder: Path) -> None:
    """Raises `UsageError` when the files in `folder` are not those that `run` was trained on, by their fingerprints."""
    if saved != now:
        changed = ", ".join(name for name in now if saved.get(name) != now[name])
        raise UsageError(f"{run} is trained on another {changed} than the one in {folder}: point --data at that one.")


def read_run(run: Path) -> dict:
    """train_config.json. Raises `DamagedCheckpoint` when it is not what a run writes."""
    saved = read_json(run / CONFIG)
    wanted = {"options": dict, "base_model": str, "base_weights": str, "versions": dict, "data": dict, "ranks": int}
    for key, kind in wanted.items():
        if not isinstance(saved, dict) or not isinstance(saved.get(key), kind):
            raise DamagedCheckpoint(f"{run / CONFIG} is damaged, or of an older version: it has no {key}.")
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


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the lowest validation loss in metrics.jsonl; None when none was validated."""
    return next(iter(best_checkpoints(run)), None)


def best_checkpoints(run: Path) -> list[Path]:
    """Those that were validated, the lowest loss first."""
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
    if keep_best and (best := best_checkpoint(run)):
        kept.add(best)
    for checkpoint in checkpoints_of(run):
        if checkpoint not in kept:
            remove_folder(checkpoint)
        elif checkpoint != newest:
            drop_optimizer(checkpoint)


def drop_optimizer(checkpoint: Path) -> None:
    """Remove AdamW's moments: first from the manifest, then from the disk, so the checkpoint is whole throughout."""
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
