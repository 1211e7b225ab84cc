"""The log in another program's window: TensorBoard or Weights & Biases, where they are installed (`--report_to`)."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}


class MissingPackage(RuntimeError):
    """What `--report_to` names cannot be imported, or does not begin."""

    exit_code = 3


def check_tracker(name: str) -> None:
    """Import it, which can take seconds; "none" is always there. Raises `MissingPackage`."""
    try:
        import_module(MODULES.get(name, "json"))
    except ImportError as error:
        advice = f"pip install {name}, or leave --report_to out: metrics.jsonl and report.html are written anyway."
        raise MissingPackage(f"--report_to {name} needs the package {name} ({error}): {advice}") from None


def open_tracker(name: str, run: Path) -> Callable[[dict], None]:
    """What takes an entry of metrics.jsonl and shows its numbers over its step. Raises `MissingPackage`.

    TensorBoard reads them from <run>/tensorboard. wandb gets the run's name as its id: a run that goes on is one there
    too.
    """
    check_tracker(name)
    if name == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(run / "tensorboard"))

        def show(entry: dict) -> None:
            for key, value in numbers_of(entry).items():
                writer.add_scalar(key, value, entry["step"])
            writer.flush()  # a run that is killed has shown all that it logged

    elif name == "wandb":
        import wandb

        try:
            tracked = wandb.init(project="vitrine", name=run.name, id=run.name, resume="allow", dir=str(run))
        except Exception as error:  # no account, no network; WANDB_MODE=offline needs neither
            raise MissingPackage(f"wandb does not begin ({error}): WANDB_MODE=offline, or no --report_to.") from None

        def show(entry: dict) -> None:
            tracked.log(numbers_of(entry), step=entry["step"])

    else:

        def show(entry: dict) -> None:
            pass

    return show


def numbers_of(entry: dict) -> dict[str, float]:
    return {key: value for key, value in entry.items() if isinstance(value, int | float) and key != "step"}
