"""Curves of several runs in one picture: training and validation loss over steps and over minutes.

python plot.py RUN [RUN ...]           names or paths; writes curves.png beside the first
python plot.py RUN RUN --out both.svg  the ending tells the format: png, svg or pdf
"""

import warnings
from pathlib import Path

from run.cli import Parser, UsageError, path, run_script
from run.folders import find_run
from run.metrics import minutes_of, points_of, read_metrics

FORMATS = (".png", ".svg", ".pdf")


def parse(args: list[str] | None = None):
    parser = Parser(prog="plot.py", usage="python plot.py RUN [RUN ...] [options]", description="Curves of runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="its name in --output_dir, or its path")
    parser.add_argument("--output_dir", type=path, default=Path("checkpoints"), metavar="FOLDER", help="[checkpoints]")
    parser.add_argument("--out", type=path, metavar="FILE", help="[curves.png beside the first run]")
    options = parser.parse_args(args)
    if options.out and options.out.suffix.lower() not in FORMATS:
        raise UsageError(f"--out {options.out}: its ending should be one of {', '.join(FORMATS)}.")
    options.runs = list(dict.fromkeys(find_run(name, options.output_dir) for name in options.runs))
    options.out = options.out or options.runs[0].parent / "curves.png"
    return options


if __name__ == "__main__":
    OPTIONS = parse()  # before matplotlib is imported, so that --help answers at once

from matplotlib.figure import Figure


def main(options) -> int:
    logs = {run: read_metrics(run / "metrics.jsonl") for run in options.runs}
    for run, log in logs.items():
        if not points_of(log, "loss"):
            raise UsageError(f"{run} has logged no loss yet.")
    figure = plot(logs)
    warnings.filterwarnings("ignore", "Glyph .* missing")  # of a run's name in another script: it shows as boxes
    figure.savefig(options.out, dpi=150)
    print(f"Saved {options.out}.")
    return 0


def plot(logs: dict[Path, list[dict]]) -> Figure:
    """Loss over steps on the left, over minutes of training on the right; validation is dashed.

    A log of an earlier version has no minutes: its run is on the left alone, and its name says so.
    """
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    over_steps, over_minutes = figure.subplots(1, 2, sharey=True)
    names = [run.name for run in logs]
    for number, (run, log) in enumerate(logs.items()):
        minutes, color = minutes_of(log), f"C{number % 10}"
        name = run.name if names.count(run.name) == 1 else str(run)
        name += "" if minutes else " (no minutes logged)"
        name = name.replace("$", r"\$")  # between two of them matplotlib reads formulas
        for key, style, label in (("loss", "-", name), ("val_loss", "--", f"{name}, validation")):
            points = points_of(log, key)
            steps, losses = [step for step, _ in points], [loss for _, loss in points]
            if not points:
                continue
            marker = "o" if len(points) < 30 else None
            look = {"color": color, "linestyle": style, "marker": marker, "markersize": 3}
            over_steps.plot(steps, losses, label=label, **look)
            if minutes:
                over_minutes.plot([minutes[step] for step in steps], losses, **look)
    over_steps.set(xlabel="steps", ylabel="loss, nats per supervised token")
    over_minutes.set(xlabel="minutes of training, without validation and saves")
    for axes in (over_steps, over_minutes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    over_steps.legend(frameon=False)
    return figure


if __name__ == "__main__":
    run_script(main, OPTIONS)
