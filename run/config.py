"""The options of a training run: one frozen dataclass is the only list of them.

A value is taken from the command line, else from the run that is resumed, else from the recipe, else from here.
"""

import argparse
import tomllib
import typing
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path

from run.cli import Parser, UsageError, check_number, did_you_mean
from run.folders import run_of

NEWEST = ""  # what --resume without a value means

# What may be named anew on --resume: where things are, what is said and saved, how much is computed at once, how long.
# More steps or another device change the numbers of the steps that are left.
# Anything else would make it another run.
CHANGEABLE = {"data_dir", "replay", "output_dir", "device", "micro_batch_tokens", "num_train_epochs", "max_steps"}
CHANGEABLE |= {"logging_steps", "eval_steps", "max_eval_samples", "save_steps", "save_total_limit"}
CHANGEABLE |= {"load_best_model_at_end", "max_skipped_steps", "shard", "report_to", "minutes"}


BEFORE = {"optim": "adamw", "context_share": 0.0}  # what runs had that do not say it


def option(default, help: str, *names: str, choices: tuple[str, ...] | None = None, **limits: float):
    """A field with its help text, its short names, and what it may hold; `limits` as `check_number` has them."""
    return field(default=default, metadata={"help": help, "names": names, "choices": choices, "limits": limits})


@dataclass(frozen=True)
class TrainConfig:
    # what is learned, from what, to where
    model_name_or_path: str = option(
        "auto", "auto, distilgpt2, any hub id, a local folder, or pocket (small, from scratch)", "--model"
    )
    data_dir: str = option("data", "folder with train.jsonl, val.jsonl and test.jsonl", "--data")
    replay: str | None = option(
        None, "folder with the data that the model was trained on before: some of it is trained on again"
    )
    replay_share: float = option(0.1, "of the records, those of --replay", least=1e-3, most=0.9)
    output_dir: str = option("checkpoints", "folder that holds the runs")
    run_name: str | None = option(None, "name of this run's folder; default: model and time")
    template: str = option("qa", "the prompt: qa, inst, chat, hf (the tokenizer's own), or a TOML file")
    language: str = option("en", "of qa, inst and chat", choices=("en", "pt"))
    question_share: float = option(0.2, "share of the records that are asked for by a question", least=0, most=1)
    context_share: float | None = option(
        None,
        "share that gets a text before the prompt, as with --grounded; default: 0, for pocket 0.05",
        least=0,
        most=1,
    )
    loss_on: str = option("answer", "tokens that are supervised", choices=("answer", "all"))
    max_length: int = option(
        256,
        "longest record in tokens; a longer one is cut at its last sentence end that fits, else hard",
        least=8,
        most=2**20,
    )
    # which weights: all of them, or adapters beside them
    lora: bool = option(False, "train low-rank adapters beside the weights, which stay as they are")
    lora_r: int = option(8, "rank of the adapters", least=1, most=2**16)
    lora_alpha: float = option(16.0, "their scale: alpha / r", least=0)
    lora_dropout: float = option(0.0, "of what goes into the adapters", least=0, most=1 - 1e-6)
    lora_rslora: bool = option(False, "scale by alpha / sqrt(r): for large ranks")
    lora_target_modules: str | None = option(
        None, "layers with an adapter, by name and comma; default: every linear layer of the blocks"
    )
    load_in_4bit: bool = option(False, "with --lora: the weights beside the adapters in NF4, a quarter of fp16")
    gradient_checkpointing: bool = option(False, "compute the blocks twice instead of keeping what is in them")
    # how long
    num_train_epochs: float | None = option(
        None,
        "passes over the data; default: 3, for pocket as many as 1,030 steps are, from 1 to 6",
        "--epochs",
        least=1e-6,
    )
    max_steps: int | None = option(None, "optimizer steps; overrides the epochs", least=1)
    minutes: float | None = option(
        None, "instead of both: as many steps as end in that time, measured, then fixed", least=0.01, most=2**20
    )
    # the step
    per_device_train_batch_size: int = option(
        16, "records a step, times the accumulation", "--batch_size", least=1, most=2**16
    )
    gradient_accumulation_steps: int = option(1, "multiplies the records of a step", least=1, most=2**16)
    micro_batch_tokens: int | None = option(
        None, "tokens computed at once: memory and speed, and with dropout its masks; default: what fits", least=1
    )
    optim: str | None = option(
        None, "adamw, or muon on the blocks' matrices; default: adamw, for pocket muon", choices=("adamw", "muon")
    )
    learning_rate: float | None = option(
        None, "peak; default: 5e-5, with --lora 2e-4, for pocket 3e-3, with adamw 2e-3", "--lr", least=0
    )
    lr_scheduler_type: str = option("linear", "decay after the warm-up", choices=("linear", "cosine"))
    warmup_ratio: float = option(0.03, "share of the steps with a rising learning rate", least=0, most=1)
    weight_decay: float = option(0.01, "AdamW's, on matrices only: not on biases and norms", least=0)
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0: not at all", least=0)
    dropout: float = option(0.0, "in every place where the architecture has it", least=0, most=1 - 1e-6)
    seed: int = option(
        42, "of the order, of the dropout and of pocket's first weights", least=1 - 2**63, most=2**63 - 1
    )
    # the machine
    device: str = option("auto", "where to compute", choices=("auto", "cuda", "cpu"))
    precision: str = option("auto", "auto: fp16 on CUDA, else fp32", choices=("auto", "fp32", "fp16", "bf16"))
    shard: bool = option(False, "under torchrun: divide the model itself among the processes (FSDP2)")
    # what is said and saved
    logging_steps: int = option(100, "steps between two lines of progress", least=1)
    eval_steps: int = option(500, "steps between two validations", least=1)
    max_eval_samples: int = option(500, "records of val.jsonl that are validated on", least=1)
    report_to: str = option(
        "none", "show the log there too, where it is installed", choices=("none", "tensorboard", "wandb")
    )
    save_steps: int = option(500, "steps between two checkpoints", least=1)
    save_total_limit: int = option(1, "checkpoints that are kept; the moments of the newest only", least=1)
    load_best_model_at_end: bool = option(
        False, "keep the checkpoint with the lowest validation loss too, and make it the final model"
    )
    max_skipped_steps: int = option(
        10, "steps in a row that may be skipped because a number in them is not finite", least=1
    )

    def __post_init__(self):
        for f in fields(self):
            value, choices = getattr(self, f.name), f.metadata["choices"]
            if value == "" or (isinstance(value, str) and "\0" in value):
                raise UsageError(f"{f.name} is empty, or holds what no name can.")
            if choices and value is not None and value not in choices:
                raise UsageError(f"{f.name}: {value!r} is not one of {', '.join(choices)}.")
            if isinstance(value, int | float) and not isinstance(value, bool):
                check_number(value, f.name, **f.metadata["limits"])
        if self.load_best_model_at_end and self.save_steps % self.eval_steps:
            raise UsageError("load_best_model_at_end: save_steps should be a multiple of eval_steps.")
        idle = [f.name for f in fields(self) if f.name.startswith("lora_") and getattr(self, f.name) != f.default]
        if idle and not self.lora:
            raise UsageError(f"{idle[0]} does nothing without lora: add --lora.")
        if self.replay_share != 0.1 and not self.replay:
            raise UsageError("replay_share does nothing without replay: name the folder of the older data.")
        if self.language != "en" and self.template not in ("qa", "inst", "chat"):
            raise UsageError(f"language does nothing with the template {self.template}, which has its own.")
        if self.shard and self.load_in_4bit:
            raise UsageError("shard: 4-bit weights cannot be divided: leave one of shard and load_in_4bit out.")
        if self.shard and self.optim == "muon":
            raise UsageError("shard: muon needs whole matrices, and shard divides them: leave one of them out.")
        if self.minutes and (self.max_steps or self.num_train_epochs):
            raise UsageError("minutes says how long a run is, and so do max_steps and epochs: name one of them.")
        if self.load_in_4bit and not self.lora:
            raise UsageError("load_in_4bit: 4-bit weights cannot be trained themselves: add --lora.")

    @property
    def records_per_step(self) -> int:
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


@dataclass(frozen=True)
class Command:
    """What `python train.py ...` asks for: the options, and the three things that are not the run's own."""

    config: TrainConfig
    given: dict  # the options that the user named, on the command line or in a recipe
    resume: str | None  # None, NEWEST, or a run or checkpoint
    dry_run: bool
    explain: bool = False


def parse_train(args: list[str] | None = None) -> Command:
    """Read the command line. Leaves with exit code 2 and a sentence when it cannot be understood."""
    parser = Parser(
        prog="train.py",
        usage="python train.py [options]",
        description="Train a small language model to describe products.",
    )
    for f in fields(TrainConfig):
        if value_type(f.name) is bool:
            text = f.metadata["help"]
            parser.add_argument(f"--{f.name}", *f.metadata["names"], action=argparse.BooleanOptionalAction, help=text)
            continue
        parser.add_argument(
            f"--{f.name}",
            *f.metadata["names"],
            type=value_type(f.name),
            choices=f.metadata["choices"],
            metavar="|".join(f.metadata["choices"] or (value_type(f.name).__name__.upper(),)),
            default=f.default,
            help=f.metadata["help"] + ("" if f.default is None else f" [{f.default}]"),
        )
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="TOML file with any of these options; flags win")
    parser.add_argument(
        "--resume_from_checkpoint",
        "--resume",
        nargs="?",
        const=NEWEST,
        metavar="FOLDER",
        help="go on with a run: its folder or a checkpoint; without a value the newest run",
    )
    parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    parser.add_argument(
        "--explain", action="store_true", help="look into the first two steps, write explain.html, and stop"
    )
    asked = vars(parser.parse_args(args))
    # A second pass without defaults tells what was named from what was not.
    parser.set_defaults(**dict.fromkeys(asked, MISSING))
    named = {name: value for name, value in vars(parser.parse_args(args)).items() if value is not MISSING}
    try:
        recipe = read_recipe(asked["recipe"]) if asked["recipe"] else {}
        given = recipe | {name: named[name] for name in known_options() if name in named}
        if given.get("run_name") is not None and not is_folder_name(
            given["run_name"]
        ):  # a run that is there has its own
            raise UsageError(f"run_name: {given['run_name'][:60]!r} cannot be the name of a folder on every system.")
        config, resume = TrainConfig(**given), asked["resume_from_checkpoint"]
        if asked["explain"] and asked["dry_run"]:
            raise UsageError("--dry_run takes no step, and --explain looks into two: leave one of them out.")
        if asked["explain"] and resume is not None:
            raise UsageError("--explain looks into the first steps of a run. Of a trained model: --model RUN/final.")
        command = Command(config, given, resume, asked["dry_run"], asked["explain"])
        if args is None:  # the real command line: what needs no torch is said before it is loaded
            _check_what_is_there(command)
        return command
    except UsageError as error:
        parser.error(str(error))


def _check_what_is_there(command: Command) -> None:
    if command.resume is not None:
        run_of(command.resume, Path(command.config.output_dir))
    folder = command.given.get("data_dir", "data")
    with suppress(OSError):  # a name that is too long is none
        if folder == "data" or Path(folder).is_dir():
            return
    raise UsageError(f"There is no folder {folder}. Make it: python data_prep.py FILE --output_dir {folder}")


def read_recipe(path: Path) -> dict:
    """The options of a TOML recipe. Raises `UsageError` on a missing file, an unknown key or a wrong type."""
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"recipe {path}: {error.strerror}. The ready ones are in recipes/.") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"recipe {path} is not valid TOML: {error}") from None
    return {name: checked(name, value, f"recipe {path}") for name, value in recipe.items()}


def checked(name: str, value, where: str):
    """`value` as the option `name` holds it. Raises `UsageError` when there is no such option or it does not fit."""
    if name not in known_options():
        raise UsageError(f"{where}: unknown option {name}{did_you_mean(name, known_options())}")
    wanted = value_type(name)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        check_number(value, f"{where}: {name}")
        value = float(value)
    optional = next(f.default is None for f in fields(TrainConfig) if f.name == name)
    if type(value) is not wanted and not (value is None and optional):
        raise UsageError(f"{where}: {name} should be of type {wanted.__name__}, and {value!r} is not.")
    return value


def is_folder_name(name: str) -> bool:
    """Whether a folder may be called so on Windows, Linux and macOS alike."""
    devices = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
    is_plain = name.isprintable() and not set(name) & set('<>:"/\\|?*') and name == name.strip(" ").rstrip(".")
    return (
        is_plain and 0 < len(name.encode("utf-8", "replace")) <= 150 and name.partition(".")[0].lower() not in devices
    )


def known_options() -> list[str]:
    return [f.name for f in fields(TrainConfig)]


def value_type(name: str) -> type:
    """str, bool, int or float, also where the option may be left out (`float | None`)."""
    hint = typing.get_type_hints(TrainConfig)[name]
    return next(t for t in (typing.get_args(hint) or (hint,)) if t is not type(None))


def with_model_defaults(config: TrainConfig, from_scratch: bool) -> TrainConfig:
    """Fill in what depends on the model: one from scratch, or adapters, want a larger learning rate.

    Raises `UsageError` for adapters beside a model from scratch.
    """
    if config.lora and from_scratch:
        raise UsageError("--lora corrects a model that was trained before, and pocket was not: name one with --model.")
    optim = config.optim or ("muon" if from_scratch and not config.shard else "adamw")
    from_nothing = 3e-3 if optim == "muon" else 2e-3
    defaults: dict[str, typing.Any] = {
        "optim": optim,
        "learning_rate": from_nothing if from_scratch else 2e-4 if config.lora else 5e-5,
        "num_train_epochs": None if from_scratch or config.minutes else 3.0,  # None: the plan counts the records
        "context_share": 0.05 if from_scratch else 0.0,
    }
    return replace(config, **{name: value for name, value in defaults.items() if getattr(config, name) is None})


def from_json(values: dict, where: str) -> TrainConfig:
    """The options saved in a run. Raises `UsageError` on anything that this version does not know."""
    if not isinstance(values, dict):
        raise UsageError(f"{where} holds no options.")
    values = BEFORE | values
    return TrainConfig(**{name: checked(name, value, where) for name, value in values.items()})


def resumed(saved: dict, given: dict, where: str) -> TrainConfig:
    """A run's own options, and on top what the user named now. Raises `UsageError` naming what cannot be changed."""
    config = from_json(saved, where)
    if "num_train_epochs" in given and config.max_steps and "max_steps" not in given:
        raise UsageError(f"{where} has --max_steps {config.max_steps}, which counts more: name another --max_steps.")
    for name, value in given.items():
        same_folder = name == "model_name_or_path" and Path(value).resolve() == Path(getattr(config, name)).resolve()
        if name not in CHANGEABLE and not same_folder and value != getattr(config, name):
            raise UsageError(
                f"{where} is trained with --{name} {getattr(config, name)}, and you named {value}: that would be "
                "another run. Leave the option out, or start a new run without --resume."
            )
    length = {"max_steps": None, "num_train_epochs": None} if "minutes" in given else {}
    return replace(config, **length | given)
