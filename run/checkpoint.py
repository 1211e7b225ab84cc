"""The state of a run on the disk: what a step depends on besides its number, saved whole and put back bit by bit.

No pickle: tensors by name in safetensors, the rest in JSON.
"""

import random
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from model.adapter import saved_adapter
from model.load import save_model, saved_weights, weights_to_save
from run.files import DamagedCheckpoint, check_free_space, read_json, whole_folder, write_json
from run.folders import CONFIG, OPTIMIZER, best_checkpoints, first_whole, go_back_to, remove_old_checkpoints, versions
from run.log import Stopwatch
from run.plan import TrainPlan
from run.session import Session
from run.shard import all_whole, placed_like, reshard
from run.state import TrainState
from run.validation import Samples
from text.batch import Encoder

STATE = "training_state.json"
RANDOM = "random_state.safetensors"


class CheckpointManager:
    """The folder of a run, written and read: its beginning, its checkpoints, its final model.

    Every rank calls every method, for what is saved may have to be gathered from them; rank 0 alone writes.
    """

    def __init__(
        self,
        session: Session,
        model: PreTrainedModel,
        encoder: Encoder,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        stopwatch: Stopwatch,
    ):
        self.session, self.model, self.encoder = session, model, encoder
        self.optimizer, self.scaler, self.stopwatch = optimizer, scaler, stopwatch

    def begin(self, samples: Samples, data: dict[str, str]) -> None:
        """Collective. Make the run's folder, ask the untouched model, and write what `--resume` needs.

        `data` are the fingerprints of its files. Raises `UsageError` when there is a run of that name.
        """
        session = self.session
        session.create_folder()
        if session.command.explain:  # nobody goes on with it
            return
        before = samples.answers()
        first = self._weights() if session.from_scratch else None
        if session.ranks.is_main:
            if first:
                self._save_model(session.folder / "base", first)
            self.encoder.template.save(session.folder)
            write_json(session.folder / "before.json", before)
            write_json(session.folder / CONFIG, session.record(data))  # last: with it, it is a run that can be resumed

    def restore(self, plan: TrainPlan) -> TrainState:
        """Collective. Optimizer, scaler, counters and random state of the checkpoint; of a new run, as they begin.

        To be called last before the loop: whatever draws a random number after it makes a resumed run another one.
        """
        session = self.session
        config, ranks = session.config, session.ranks
        reshard(self.model)  # after the steps that were measured
        state = TrainState.new(session.machine.device, plan.micro_batch_tokens)
        seed_random_state(config.seed + ranks.rank)
        if session.checkpoint:
            load_training_state(session.checkpoint, self.model, self.optimizer, self.scaler, state, ranks.rank)
            if ranks.is_main:
                go_back_to(session.folder, session.checkpoint)
            if "micro_batch_tokens" in session.command.given:
                state.micro_batch_tokens = config.micro_batch_tokens
        if ranks.is_main:
            if not session.is_new and "minutes" in session.command.given:  # the steps that fit are the run's own now
                write_json(session.folder / CONFIG, session.saved | {"options": asdict(config)})
            write_json(session.folder / "plan.json", plan.rows)  # for the report; of the newest session
        return state

    def save(self, state: TrainState) -> None:
        """Collective. checkpoint-<step>, whole or not at all; then older ones go.

        Raises `DiskFull`, before anything is written if it can be foreseen.
        """
        session = self.session
        run, config, ranks = session.folder, session.config, session.ranks
        own = random_state() | {"micro_batch_tokens": torch.tensor(state.micro_batch_tokens)}
        weights, random_states = self._weights(), ranks.gather(own)
        moments = all_whole(optimizer_tensors(self.model, self.optimizer), keep=ranks.is_main)
        if not ranks.is_main:
            return
        with self.stopwatch.paused():
            check_free_space(run, sum(value.nbytes for value in (*weights.values(), *moments.values())))
            newest = run / f"checkpoint-{state.step}"
            with whole_folder(newest) as folder:
                self._write_model(folder, weights)
                save_training_state(folder, moments, random_states, self.scaler, state)
            remove_old_checkpoints(run, newest, config.save_total_limit, config.load_best_model_at_end)

    def how_to_go_on(self, state: TrainState, plan: TrainPlan) -> str:
        command = f"{self.session.ranks.command} train.py --resume {self.session.folder}"
        return f"Saved step {state.step} of {plan.total_steps}. Go on with: {command}"

    def load_best(self) -> None:
        """Collective. The weights of the whole checkpoint with the lowest validation loss; none: nothing happens."""
        session = self.session
        best = session.ranks.from_main(lambda: first_whole(best_checkpoints(session.folder)))
        if best is None:
            return
        # Its tensors, not another model: an adapter's base is there already, and on a card it would not fit twice.
        ours = weights_to_save(self.model)
        its = saved_adapter(best) if session.config.lora else saved_weights(best)
        tied = {id(weight) for name, weight in ours.items() if name in its}  # under one of their names
        for name, weight in ours.items():
            if name in its:
                weight.data.copy_(placed_like(its[name], weight))
            elif id(weight) not in tied:
                raise DamagedCheckpoint(f"{best} lacks the weight {name}.")
        print(f"The validation loss was lowest at {best.name}: that is the final model.")

    def save_final(self) -> None:
        """Collective. The finished model, in final/."""
        weights = self._weights()
        if self.session.ranks.is_main:
            self._save_model(self.session.folder / "final", weights)

    def _weights(self) -> dict[str, Tensor]:
        return all_whole(weights_to_save(self.model), keep=self.session.ranks.is_main)

    def _save_model(self, path: Path, weights: dict[str, Tensor]) -> None:
        with whole_folder(path) as folder:
            self._write_model(folder, weights)

    def _write_model(self, folder: Path, weights: dict[str, Tensor]) -> None:
        save_model(self.model, self.encoder.tokenizer, folder, weights)
        self.encoder.template.save(folder)


# -- the training state -----------------------------------------------------------------------------------------------


def save_training_state(
    folder: Path,
    moments: dict[str, Tensor],
    random_states: list[dict[str, Tensor]],
    scaler: torch.amp.GradScaler,
    state: TrainState,
) -> None:
    """Everything that the next step depends on, besides the weights. `random_states` has one entry for each rank."""
    save_file(moments, folder / OPTIMIZER)
    named = {f"{key}.{rank}": value for rank, own in enumerate(random_states) for key, value in own.items()}
    save_file(named, folder / RANDOM)
    write_json(folder / STATE, {"counters": state.to_json(), "scaler": scaler.state_dict(), "versions": versions()})


def load_training_state(
    folder: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    state: TrainState,
    rank: int = 0,
) -> None:
    """Put back what `save_training_state` saved. Says on standard error what keeps the run from being the same one.

    Raises `DamagedCheckpoint`.
    """
    try:
        saved = read_json(folder / STATE)
        state.load_json(saved["counters"])
        named = {name: value.clone() for name, value in load_file(folder / RANDOM).items()}
        mine = {name.removesuffix(f".{rank}"): v for name, v in named.items() if name.endswith(f".{rank}")}
        if mine:
            set_random_state(mine)
            if "micro_batch_tokens" in mine:  # of this rank: after an out-of-memory error it may have its own
                state.micro_batch_tokens = int(mine["micro_batch_tokens"])
        else:  # this run has more ranks than the one that saved
            seed_random_state(torch.initial_seed() + 1000 * state.step)
        if (folder / OPTIMIZER).exists():
            load_moments(load_file(folder / OPTIMIZER), model, optimizer)
        else:
            print(f"{folder} has the weights alone: the optimizer's averages begin anew.", file=sys.stderr)
        if saved["scaler"]:
            scaler.load_state_dict(saved["scaler"])
        if saved["versions"] != versions():
            print(f"Saved with {saved['versions']}, this is {versions()}: the last digits may differ.", file=sys.stderr)
    except DamagedCheckpoint:
        raise
    except (OSError, SafetensorError, AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError):
        raise DamagedCheckpoint(f"{folder}: its training state is missing or damaged.") from None


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by the parameters' names: AdamW's `exp_avg.<name>`, `exp_avg_sq.<name>`, `step.<name>`,
    Muon's `momentum.<name>`."""
    return {
        f"{key}.{name}": value.contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_moments(tensors: dict[str, Tensor], model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for name, parameter in model.named_parameters():
        keys = [key for key in ("step", "exp_avg", "exp_avg_sq", "momentum") if f"{key}.{name}" in tensors]
        found = {key: tensors[f"{key}.{name}"] for key in keys}
        if any(value.shape != parameter.shape for key, value in found.items() if key != "step"):
            raise DamagedCheckpoint(f"The optimizer's state of {name} does not fit the model.")
        if found:
            # Copies, because these tensors are windows into the file, which Windows could then not delete.
            optimizer.state[parameter] = {key: placed_like(value, parameter) for key, value in found.items()}


def seed_random_state(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def random_state() -> dict[str, Tensor]:
    """Of torch, Python and NumPy, and of this process's GPU. A Gaussian held back for the next call is not kept."""
    of_numpy = np.random.get_state(legacy=False)["state"]
    states = {
        "cpu": torch.get_rng_state(),
        "python": torch.tensor(random.getstate()[1], dtype=torch.int64),
        "numpy": torch.tensor([*of_numpy["key"].tolist(), of_numpy["pos"]], dtype=torch.int64),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_state(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    random.setstate((3, tuple(states["python"].tolist()), None))
    *keys, position = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, 0, 0.0))
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
