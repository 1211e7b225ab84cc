"""One run as the command asks for it: options, machine, processes, and its place on the disk."""

import atexit
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from model.load import POCKET, choose_model, stored_precision
from run.cli import UsageError
from run.config import Command, TrainConfig, resumed, with_model_defaults
from run.device import Machine, keep_freed_memory, pick_machine
from run.folders import find_checkpoint, new_run, read_run, run_of, versions
from run.lock import RunLock
from run.ranks import Ranks, start_ranks
from run.trackers import check_tracker


@dataclass
class Session:
    """`folder` is None until `create_folder`: a dry run, or a plan that does not fit, writes nothing."""

    command: Command
    config: TrainConfig  # with everything filled in
    machine: Machine
    ranks: Ranks
    why_this_model: str
    folder: Path | None = None
    checkpoint: Path | None = None  # to go on from
    saved: dict | None = None  # train_config.json of a run that goes on
    lock: RunLock | None = None  # held as long as this object lives, so nothing that it refers to may refer back
    base_weights: str = ""  # names the weights before training; known once the model is loaded
    begun: float = field(default_factory=time.perf_counter)

    @property
    def is_new(self) -> bool:
        return self.saved is None

    @property
    def from_scratch(self) -> bool:
        return self.config.model_name_or_path == POCKET

    @property
    def seconds(self) -> float:
        """Since it was begun: what --minutes are counted from."""
        return time.perf_counter() - self.begun

    @property
    def weights(self) -> Path | str | None:
        """The folder or hub id that the weights come from; None: from nothing."""
        first = self.folder / "base" if self.folder else None
        return self.checkpoint or (first if self.from_scratch else self.config.model_name_or_path)

    @property
    def records_per_step(self) -> int:
        """Of all ranks, and of as many ranks as the run began with."""
        return self.config.records_per_step * (self.ranks.size if self.is_new else self.saved["ranks"])

    def create_folder(self) -> None:
        """Collective. Raises `UsageError` when there is a run of that name. From here on its lock is held."""
        where, name, model = Path(self.config.output_dir), self.config.run_name, self.config.model_name_or_path
        self.folder = self.ranks.from_main(lambda: new_run(where, name, model))
        self.lock = RunLock(self.folder) if self.ranks.is_main else None

    def record(self, data: dict[str, str]) -> dict:
        """What train_config.json holds; `data` are the fingerprints of the files that are trained on."""
        name = self.config.model_name_or_path
        base = "base" if self.from_scratch else str(Path(name).resolve()) if Path(name).is_dir() else name
        saved: dict[str, object] = {"options": asdict(self.config), "base_model": base}
        saved |= {"base_weights": self.base_weights, "ranks": self.ranks.size, "precision": self.machine.precision}
        return saved | {"versions": versions(), "data": data}


def open_session(command: Command) -> Session:
    """Collective. A new run, or one that goes on with its own options and, on top, what the user named now.

    Raises `UsageError`, `DamagedCheckpoint`, `EnvironmentFault`, `MissingPackage` or `RankLost`. A run's lock is taken
    before its checkpoints are looked at.
    """
    ranks, config = start_ranks(command.config.device), command.config
    if command.explain:
        config = to_be_explained(config, ranks)
    folder = saved = lock = checkpoint = None
    if command.resume is not None:
        folder = ranks.from_main(lambda: run_of(command.resume, Path(config.output_dir)))
        saved = read_run(folder)
        config = resumed(saved["options"], command.given, str(folder))
        lock = RunLock(folder) if ranks.is_main and not command.dry_run else None
        checkpoint = ranks.from_main(lambda: find_checkpoint(command.resume, folder))
    check_tracker(config.report_to)  # hours before it is missed
    machine = pick_machine(config.device, config.precision)
    keep_freed_memory(machine.device)
    has_gpu = machine.device.type == "cuda"
    name, why = ranks.from_main(lambda: choose_model(config.model_name_or_path, has_gpu))
    if has_gpu and name != POCKET:  # a run that goes on stays in the precision that it began in
        begun_in = "bfloat16" if saved and saved.get("precision") == "bf16" else ""
        stored = begun_in if saved else ranks.from_main(lambda: stored_precision(name))
        machine = pick_machine(config.device, config.precision, stored)
    if config.shard and ranks.size == 1 and (folder is None or "shard" in command.given):
        raise UsageError("--shard divides a model among processes: torchrun --nproc_per_node=N train.py --shard")
    ranks = replace(ranks, sharded=config.shard and ranks.size > 1)
    config = with_model_defaults(replace(config, model_name_or_path=name), from_scratch=name == POCKET)
    return Session(command, config, machine, ranks, why, folder, checkpoint, saved, lock)


def to_be_explained(config: TrainConfig, ranks: Ranks) -> TrainConfig:
    """The same run in a hidden folder that goes with this process, with every step in its log. Raises `UsageError`."""
    if ranks.size > 1:
        raise UsageError("--explain looks into one process: start it with python instead of torchrun.")
    Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    passing = tempfile.mkdtemp(prefix=".explain-", dir=config.output_dir)
    atexit.register(shutil.rmtree, passing, ignore_errors=True)  # at the end, when Windows has every file closed
    return replace(config, output_dir=passing, logging_steps=1, report_to="none")
