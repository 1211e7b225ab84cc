"""report.html of a run: one page with all that its folder tells, for people to read. It can be written at any time.

Nothing is computed here that training or evaluate.py did not log; what they did not, the page says so.
"""

import sys
from pathlib import Path

from catalogue.claims import Claims, marked, repeated
from catalogue.index import FILE_NAME, Catalogue
from catalogue.page import as_text, page, row, section, table_of, tiles_of
from run.files import read_json, write_json, write_text
from run.folders import read_run
from run.metrics import minutes_of, points_of, read_metrics
from run.session import Session
from run.units import clock, short, size
from text.errors import DataError

METRICS = "metrics.json"
HIT = ('<span class="hit">', "</span>")
WIDTH, HEIGHT, LEFT, BOTTOM = 400, 220, 62, 30  # of a curve, in units of its own
# key, how it is called, its format, and whether more is better
ROWS = [
    ("loss", "loss, nats per answer token", ".4f", "lower"),
    ("question_loss", "the same, asked by a question in a form never trained on", ".4f", "lower"),
    ("perplexity", "perplexity", ".1f", "lower"),
    ("bits_per_character", "bits per character", ".3f", "lower"),
    ("chrf", "chrF", ".1f", "higher"),
    ("distinct_2", "distinct-2", ".3f", "higher"),
    ("repetition_rate", "repeated 4-grams", ".1%", "lower"),
    ("stopped", "stopped by itself", ".1%", "higher"),
    ("fact_rate", "facts of title and attributes repeated", ".1%", "higher"),
    ("cut_down", "the same, titles cut down to their kind, the rest given as attributes", ".1%", "higher"),
    ("unseen_brand_rate", "brands never trained on repeated", ".1%", "higher"),
    ("unsupported", "answers that state what nothing supports, by the catalogue", ".1%", "lower"),
    ("inventions", "the same, by the known facts", ".1%", "lower"),
    ("inventions_short", "the same, titles cut down to kind, to kind and colour, without brand", ".1%", "lower"),
    ("copied_words", "longest span of words that stands in a training description, mean", ".1f", "lower"),
    ("copied_most", "the same, the longest of all answers", "d", "lower"),
    ("verbatim", "answers that stand in a training description word for word", ".1%", "lower"),
    ("grounded", "--grounded: facts of the text repeated, titles cut down to their kind", ".1%", "higher"),
    (
        "misled",
        "--grounded: answers that state what the title does not, behind a text about another product",
        ".1%",
        "lower",
    ),
]


def end_report(session: Session, after: dict[str, str]) -> str:
    """Keep the answers from after training in after.json and write the report; for the screen, where it is. On the
    main rank; elsewhere nothing happens."""
    if not session.ranks.is_main:
        return ""
    write_json(session.folder / "after.json", after)
    return str(write_report(session.folder, Path(session.config.data_dir)))


def write_report(run: Path, data: Path) -> Path:
    """Write report.html into the run and return its path. `data`: the folder whose index tells what is unsupported;
    one that cannot be read is said, and nothing is marked.

    Raises `DamagedCheckpoint` when a file of the run cannot be read.
    """
    saved, log = read_run(run), read_metrics(run / "metrics.jsonl")
    measured, plan = _read(run / METRICS, {}), _read(run / "plan.json", [])
    try:
        samples = _samples(run, measured, Claims(Catalogue(data)) if (data / FILE_NAME).is_file() else None)
    except DataError as error:
        print(f"The report marks no unsupported claims: {error}", file=sys.stderr)
        samples = _samples(run, measured, None)
    body = [
        f"<h1>{as_text(run.name)}</h1><p>What was trained on what, how it went, and what came out.</p>",
        tiles_of(_tiles(log)),
        _trained(saved, plan),
        _curves(log),
        _memory(log),
        _cost(log, plan),
        _measured(run, measured),
        samples,
    ]
    write_text(run / "report.html", page(f"Run {run.name}", body))
    return run / "report.html"


def _read(path: Path, empty):
    """A file of JSON, or `empty` where there is none, or one of another kind."""
    value = read_json(path) if path.exists() else empty
    return value if isinstance(value, type(empty)) else empty


def _last(log: list[dict], key: str, form=str) -> str:
    points = points_of(log, key)
    return form(points[-1][1]) if points else "not logged"


def _tiles(log: list[dict]) -> list[tuple[str, str]]:
    minutes = minutes_of(log)
    return [
        (f"{log[-1]['step']:,}" if log else "0", "steps"),
        (_last(log, "val_loss", "{:.4f}".format), "last validation loss, nats per supervised token"),
        (clock(60 * max(minutes.values())) if minutes else "not logged", "of training, without validation and saves"),
        (_last(log, "peak_memory_bytes", size), "of memory at most, in the last session"),
    ]


def _trained(saved: dict, plan: list) -> str:
    rows = plan or [
        ["model", saved["options"].get("model_name_or_path")],
        ["records", saved["options"].get("data_dir")],
    ]
    versions = ", ".join(f"{name} {number}" for name, number in saved["versions"].items())
    rows = [*rows, ["processes", saved["ranks"]], ["versions", versions]]
    lead = "The plan as it was said before the first step of the newest session."
    if not plan:
        lead = "This run has no plan.json, as runs of earlier versions: these are its options."
    return section("What was trained on what", lead, table_of([[str(cell) for cell in line] for line in rows]))


def _curves(log: list[dict]) -> str:
    kinds = [
        ("Loss, nats per supervised token", [("training", "loss", ""), ("validation", "val_loss", "out")]),
        ("Learning rate", [("", "learning_rate", "")]),
        ("Gradient norm, before clipping", [("", "grad_norm", "")]),
        ("Speed, answer tokens per second", [("", "answer_tokens_per_second", "")]),
    ]
    shown = [curve(title, [(n, points_of(log, key), color) for n, key, color in lines]) for title, lines in kinds]
    lead = "Over the steps. A point of the training loss is the mean over the tokens since the point before."
    return section("Curves", lead, f'<div class="curves">{"".join(shown)}</div>')


def curve(title: str, lines: list[tuple[str, list[tuple[int, float]], str]]) -> str:
    """Lines of (name, points, CSS class) over one pair of axes, as inline SVG in the colours of the page."""
    lines = [line for line in lines if line[1]]
    every = [point for _, points, _ in lines for point in points]
    if not every:
        return f"<div><h3>{as_text(title)}</h3><p>Nothing was logged.</p></div>"
    first, last = min(s for s, _ in every), max(s for s, _ in every)
    low, high = min(v for _, v in every), max(v for _, v in every)
    span, rise = max(1, last - first), (high - low) or abs(high) or 1.0

    def place(step: float, value: float) -> tuple[float, float]:
        across, up = (step - first) / span, (value - low) / rise
        return LEFT + across * (WIDTH - LEFT - 12), HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - 12)

    parts = []
    for value in (low + rise * i / 4 for i in range(5)):
        x, y = place(first, value)
        parts.append(f'<path class="grid" d="M{x:.1f} {y:.1f}H{WIDTH}"/>')
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick(value)}</text>')
    for step in sorted({first, (first + last) // 2, last}):
        x, _ = place(step, low)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{step:,}</text>')
    for _, points, color in lines:
        placed = [place(*point) for point in points]
        parts.append(f'<path class="{color}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in placed)}"/>')
        if len(placed) <= 40:  # of more, dots would hide the line
            parts += [f'<circle class="{color}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in placed]
    keys = " ".join(f'<span class="key {color}">&#9644; {as_text(name)}</span>' for name, _, color in lines if name)
    svg = f'<svg viewBox="0 0 {WIDTH + 8} {HEIGHT}" role="img">{"".join(parts)}</svg>'
    return f"<div><h3>{as_text(title)}</h3>{keys}{svg}</div>"


def tick(value: float) -> str:
    """A number at an axis, in at most seven characters: 1,234, 0.25, 4.0e-05."""
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e5 else short(value)
    return f"{value:.1e}" if 0 < abs(value) < 0.01 else f"{value:.3g}"


def _memory(log: list[dict]) -> str:
    kinds = [
        ("before training", "memory_before_training_bytes", ""),
        ("planned: training adds at most", "planned_adds_bytes", " class=out"),
        ("measured: training added", "training_adds_bytes", ""),
        ("measured: peak, all together", "peak_memory_bytes", ""),
        ("held by CUDA's allocator, gaps included", "reserved_memory_bytes", ""),
    ]
    counted = [(name, color, points_of(log, key)[-1][1]) for name, key, color in kinds if points_of(log, key)]
    most = max((count for *_, count in counted), default=0) or 1
    rows = "".join(row(f"<td>{name}</td>", [size(count)], 100 * count / most, color) for name, color, count in counted)
    lead = "Of the newest session: on a CPU of the whole process, on CUDA of tensors. The plan counts tensors."
    return section("Memory, planned and measured", lead, f"<table>{rows}</table>" if rows else "<p>Not logged.</p>")


def _cost(log: list[dict], plan: list) -> str:
    minutes, tokens = minutes_of(log), points_of(log, "answer_tokens")
    count, seconds = sum(value for _, value in tokens), 60 * max(minutes.values(), default=0.0)
    rows = [["machine", next((str(line[1]) for line in plan if line[0] == "device"), "not logged")]]
    rows.append(["time of training", clock(seconds) if minutes else "not logged"])
    rows.append(["answer tokens learned from", short(count) if len(tokens) == len(log) > 0 else "not logged"])
    rows.append(["waiting for records, last entry", _last(log, "data_wait", "{:.1%} of the time".format)])
    rows.append(["steps skipped for numbers that were not finite", _last(log, "skipped_steps")])
    lead = "Without validation and saves, and without what a stopped session computed after its last entry of the log."
    return section("Speed and cost", lead + " Energy is not measured.", table_of(rows))


def columns_of(measured: dict) -> dict[str, dict]:
    """The columns of metrics.json: "before", "after", the latter with several tries, the held-out "catalogue"."""
    return {name: value for name, value in measured.items() if isinstance(value, dict)}


def _measured(run: Path, measured: dict) -> str:
    columns = columns_of(measured)
    if not columns:
        lead = f"This run has not been measured yet. Measure it: python evaluate.py --run {run}"
        return section("Before and after, and what was memorised", lead, "")
    rows = [
        [label, *(cell_of(numbers, key, form) for numbers in columns.values()), better]
        for key, label, form, better in ROWS
        if any(key in numbers for numbers in columns.values())
    ]
    looked_at = next((n["copied_from"] for n in columns.values() if "copied_from" in n), 0)
    lead = (
        f"{measured.get('records')} records of {measured.get('split')}, which were not trained on. In brackets the "
        "interval of 95 %, by drawing the records again (bootstrap), where it is counted a record at a time. "
    )
    if looked_at:
        lead += f"Copied spans were looked for in {looked_at:,} training descriptions; under catalogue is what the "
        lead += "held-out descriptions themselves share with these, without any memorising."
    return section("Before and after, and what was memorised", lead, table_of(rows, ["", *columns, "better"]))


def cell_of(numbers: dict, key: str, form: str) -> str:
    """A number, and the interval in which it lies with 95 % where that is known."""
    if key not in numbers:
        return ""
    low, high = numbers.get(f"{key}_interval", (None, None))
    return format(numbers[key], form) + (f" ({low:{form}} to {high:{form}})" if low is not None else "")


def _samples(run: Path, measured: dict, claims: Claims | None) -> str:
    before, after = _read(run / "before.json", {}), _read(run / "after.json", {})
    samples = [
        {"given": title, "texts": {"before": text} | ({"after": after[title]} if title in after else {})}
        for title, text in before.items()
    ]
    samples += measured.get("samples", [])
    shown = "".join(_sample(sample["given"], sample["texts"], claims) for sample in samples)
    lead = "Held-out titles. Blue: what an answer repeats of its title. "
    lead += "Underlined: claims that nothing supports, told by the training descriptions." if claims else (
        "Unsupported claims are not marked: the data folder has no catalogue.sqlite that can be read."
    )  # fmt: skip
    return section("Samples", lead, shown or "<p>There are none.</p>")


def _sample(title: str, texts: dict[str, str], claims: Claims | None) -> str:
    """The title and the texts to it, side by side; what the catalogue itself says is not checked."""
    boxes = [f"<div><small>title</small><b>{as_text(title)}</b></div>"]
    for name, text in texts.items():
        unsupported = claims.unsupported(text, [title]) if claims and name != "catalogue" else []
        # what is unsupported repeats nothing, so the two never meet
        html = marked(text, unsupported, lambda part: marked(part, repeated(title, part), as_text, HIT))
        boxes.append(f"<div><small>{as_text(name)}</small>{html or '(empty)'}</div>")
    return f'<div class="answers">{"".join(boxes)}</div>'
