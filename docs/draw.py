"""The pictures of docs/WALKTHROUGH.md, into docs/pictures: plain SVG, on a light ground of their own.

    python docs/draw.py

Numbers come from the program, or from the first step of `python train.py --explain`, and are held to both by
tests/test_walkthrough.py.
"""

import math
import sys
from html import escape
from itertools import accumulate
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from run.config import TrainConfig, with_model_defaults
from run.plan import learning_rate_at

PICTURES = Path(__file__).parent / "pictures"
WIDTH = 920
INK, FAINT, GROUND, LINE = "#1f2328", "#59636e", "#ffffff", "#d1d9e0"
PROMPT, ANSWER, PADDING, NEW = "#b9c2cc", "#3b7dd8", "#f4e3e0", "#2f8f5b"

# The first step of the example catalogue, longest record first as in the batch: tokens of its prompt, of all of it.
FIRST_STEP = [
    *((65, 114), (52, 93), (39, 89), (25, 66), (19, 61), (17, 58), (12, 56), (13, 56)),
    *((10, 54), (10, 50), (11, 50), (10, 48), (12, 48), (11, 47), (10, 46), (7, 45)),
]
# Its shortest record: position, token. The prompt of 7 tokens, the beginning of the answer, and its end.
RECORD = [
    *((0, "You are … Question:"), (1, " Ram"), (2, "otor"), (5, " Puzzle"), (6, "\\nAnswer:")),
    *((7, " Here"), (8, " is"), (9, " a"), (10, " wooden"), (42, " hand"), (43, "."), (44, "<|endoftext|>")),
]
RECORD_PROMPT, RECORD_LENGTH = 7, 45
STEPS = 1030  # of `python train.py` without a GPU


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    for name, picture in pictures().items():
        (PICTURES / name).write_text(picture, encoding="utf-8", newline="\n")


def pictures() -> dict[str, str]:
    """Each picture by the name of its file."""
    return {
        "flat.svg": flat(),
        "supervised.svg": supervised(),
        "schedule.svg": schedule(),
        "attention.svg": attention(),
        "checkpoint.svg": life(),
    }


# -- shapes -----------------------------------------------------------------------------------------------------------


def svg(height: float, title: str, parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img"'
    font = 'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="14"'
    ground = f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:g}" rx="8" {fill(GROUND)} {stroke(LINE)}/>'
    return "\n".join([f"{head} {font}>", f"<title>{escape(title)}</title>", ground, *parts, "</svg>", ""])


def fill(colour: str) -> str:
    return f'fill="{colour}"'


def stroke(colour: str, width: float = 1) -> str:
    return f'stroke="{colour}" stroke-width="{width:g}"'


def box(x: float, y: float, width: float, height: float, colour: str, edge: str = "", more: str = "") -> str:
    edge = stroke(edge or GROUND, 1 if edge else 0.6)
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" {fill(colour)} {edge} {more}/>'


def text(x: float, y: float, words: str, anchor: str = "start", colour: str = INK, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {fill(colour)} {more}>{escape(words)}</text>'


def path(points: list[tuple[float, float]], colour: str, width: float = 2, more: str = "") -> str:
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{drawn}" fill="none" {stroke(colour, width)} {more}/>'


def arrow(x: float, y: float, to_x: float, to_y: float, colour: str = FAINT) -> str:
    """A line with a head at its end."""
    angle = math.atan2(to_y - y, to_x - x)
    ends = [(to_x - 7 * math.cos(angle + turn), to_y - 7 * math.sin(angle + turn)) for turn in (-0.45, 0.45)]
    line = path([(x, y), (to_x, to_y)], colour, 1.4)
    return line + path([ends[0], (to_x, to_y), ends[1]], colour, 1.4)


BOLD, SMALL, MONO = 'font-weight="600"', 'font-size="12"', 'font-family="ui-monospace, Consolas, monospace"'


# -- the pictures -----------------------------------------------------------------------------------------------------


def flat() -> str:
    """The first step twice: padded to the longest record, and end to end. One unit of length is one token."""
    lengths = [length for _, length in FIRST_STEP]
    longest, total = max(lengths), sum(lengths)
    cell, line, left, top = 3.3, 13, 20, 62
    parts = [text(left, 28, f"padded: {len(lengths)} x {longest} = {len(lengths) * longest:,} places", more=BOLD)]
    parts.append(text(left, 48, "each record has a line, filled up to the longest", colour=FAINT, more=SMALL))
    for i, (prompt, length) in enumerate(FIRST_STEP):
        y = top + i * line
        parts.append(box(left, y, prompt * cell, line - 2, PROMPT))
        parts.append(box(left + prompt * cell, y, (length - prompt) * cell, line - 2, ANSWER))
        parts.append(box(left + length * cell, y, (longest - length) * cell, line - 2, PADDING))

    right = left + longest * cell + 110
    parts.append(text(right, 28, f"flat: {total:,} places", more=BOLD))
    parts.append(text(right, 48, f"one line of {total:,} tokens, folded here to fit", colour=FAINT, more=SMALL))
    for (prompt, length), start in zip(FIRST_STEP, accumulate(lengths, initial=0), strict=False):
        for begin, end, colour in ((start, start + prompt, PROMPT), (start + prompt, start + length, ANSWER)):
            while begin < end:  # a piece for each folded line that it lies on
                row, column = divmod(begin, longest)
                count = min(end - begin, longest - column)
                parts.append(box(right + column * cell, top + row * line, count * cell, line - 2, colour))
                begin += count
        row, column = divmod(start, longest)
        y = top + row * line
        parts.append(path([(right + column * cell, y - 1), (right + column * cell, y + line - 1)], INK, 1.6))
    y = top + (total // longest + 2) * line + 10
    parts.append(text(right, y, "│ a record begins, its positions restart at 0", colour=FAINT, more=SMALL))
    for i, (colour, words) in enumerate(
        [(PROMPT, "prompt: read"), (ANSWER, "answer and end token: supervised"), (PADDING, "padding: computed in vain")]
    ):
        parts += [box(right, y + 14 + 20 * i, 14, 11, colour, LINE)]
        parts += [text(right + 22, y + 24 + 20 * i, words, more=SMALL)]
    return svg(top + len(lengths) * line + 14, f"Padded and flat: {len(lengths)} records", parts)


def supervised() -> str:
    """The shortest record of the first step: what each place reads, and what it has to predict."""
    following = [*(token for _, token in RECORD[1:]), "nothing"]
    wide = [max(len(token), len(after)) for (_, token), after in zip(RECORD, following, strict=True)]
    gap, left, unit = 6, 90, 7.1
    widths = [max(30, 12 + unit * count) for count in wide]
    scale = (WIDTH - left - 20 - gap * len(widths) - 36) / sum(widths)
    widths = [width * scale for width in widths]
    parts = [text(20, 30, f"One record: {RECORD_LENGTH} tokens, the first {RECORD_PROMPT} are the prompt", more=BOLD)]
    rows = {"position": 66, "reads": 92, "predicts": 176, "in the loss": 206}
    parts += [text(20, y, name, colour=FAINT, more=SMALL) for name, y in rows.items()]
    x, before, middles = left, -1, []
    for (place, token), width in zip(RECORD, widths, strict=True):
        if place != before + 1:
            parts.append(text(x + 6, rows["reads"], "…", "middle", FAINT))
            parts.append(text(x + 6, rows["predicts"], "…", "middle", FAINT))
            x += 18
        middles.append((place, token, x + width / 2, width))
        x, before = x + width + gap, place
    small = f'{MONO} font-size="10"'
    for i, (place, token, x, width) in enumerate(middles):
        answer, counted = place >= RECORD_PROMPT, RECORD_PROMPT - 1 <= place < RECORD_LENGTH - 1
        parts.append(text(x, rows["position"], str(place), "middle", FAINT, SMALL))
        parts.append(box(x - width / 2, rows["reads"] - 15, width, 24, ANSWER if answer else PROMPT, LINE))
        parts.append(text(x, rows["reads"] + 1, token.replace(" ", "·"), "middle", GROUND if answer else INK, small))
        following = middles[i + 1] if i + 1 < len(middles) else None
        word = "nothing" if following is None else following[1] if following[0] == place + 1 else "…"
        if following and following[0] == place + 1:
            parts.append(arrow(following[2] - 3, rows["reads"] + 12, x + 2, rows["predicts"] - 17))
        if word == "…":
            word = {2: " Wooden", 10: " jigsaw"}[place]
        parts.append(text(x, rows["predicts"], word.replace(" ", "·"), "middle", INK if counted else FAINT, small))
        parts.append(
            text(x, rows["in the loss"], "yes" if counted else "no", "middle", NEW if counted else FAINT, SMALL)
        )
    note = f"A place predicts the token after it: {RECORD_PROMPT - 1} to {RECORD_LENGTH - 2} are in the loss, "
    note += f"{RECORD_LENGTH - RECORD_PROMPT} of {RECORD_LENGTH}. (· is a space, which belongs to the token after it.)"
    parts.append(text(20, 238, note, colour=FAINT, more=SMALL))
    return svg(256, "Which tokens are supervised", parts)


def schedule() -> str:
    """The learning rate of `python train.py` on a CPU, by the program's own function."""
    config = with_model_defaults(TrainConfig(), from_scratch=True)
    steps, peak = STEPS, config.learning_rate
    warmup = math.ceil(config.warmup_ratio * steps)
    left, right, top, bottom = 84, WIDTH - 30, 62, 220
    rates = [learning_rate_at(step, steps, warmup, peak, config.lr_scheduler_type) for step in range(steps)]

    def at(step: int) -> tuple[float, float]:  # counted from 0
        return left + (right - left) * step / (steps - 1), bottom - (bottom - top) * rates[step] / peak

    parts = [text(20, 30, f"Learning rate: {steps:,} steps of pocket", more=BOLD)]
    parts.append(box(left, top, at(warmup)[0] - left, bottom - top, "#e9f2fd"))
    parts.append(path([(left, top - 10), (left, bottom), (right, bottom)], FAINT, 1))
    parts.append(path([at(step) for step in (0, warmup, steps - 1)], ANSWER, 2.5))
    parts.append(text(left - 8, top + 4, f"{peak:.0e}".replace("e-0", "e-"), "end", more=SMALL))
    parts.append(text(left - 8, bottom + 4, "0", "end", more=SMALL))
    for step in (1, warmup + 1, steps // 2, steps):
        x, y = at(step - 1)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {fill(ANSWER)}/>')
        near = "start" if step == 1 else "end" if step == steps else "middle"
        parts.append(
            text(
                x - 4 if near == "start" else x + 4 if near == "end" else x, bottom + 20, f"{step:,}", near, more=SMALL
            )
        )
    x, y = at(warmup)
    parts.append(
        text(x + 12, y + 2, f"step {warmup + 1}: the peak. {warmup} steps of warm-up lie before it.", more=SMALL)
    )
    parts.append(text(left + 70, bottom - 14, "step 1: 0, no weight moves", colour=FAINT, more=SMALL))
    parts.append(arrow(left + 66, bottom - 18, left + 8, bottom - 4))
    parts.append(text(right - 300, bottom - 30, "then a straight line to 0", "end", FAINT, SMALL))
    parts.append(
        text((left + right) / 2, bottom + 40, "optimizer step, counted from 1 as on the screen", "middle", FAINT, SMALL)
    )
    return svg(bottom + 56, "The learning rate, step by step", parts)


def attention() -> str:
    """Two records end to end: which token may look at which, and the grid on which it is so without a mask."""
    records, cell, top = ["abc", "de"], 30, 84
    tokens = [(n, i, token) for n, record in enumerate(records) for i, token in enumerate(record)]
    longest, mono = max(map(len, records)), f'{MONO} font-size="13"'
    parts = [text(20, 30, "What a token may look at", more=BOLD)]
    parts.append(text(20, 50, "a line looks at the columns in colour", colour=FAINT, more=SMALL))
    left = 56
    for line, (record, place, token) in enumerate(tokens):
        y = top + line * cell
        parts.append(text(left - 14, y + 20, token, "middle", more=mono))
        parts.append(text(left + line * cell + cell / 2, top - 8, token, "middle", more=mono))
        for column, (other, before, _) in enumerate(tokens):
            colour = (ANSWER, NEW)[record] if record == other and before <= place else PADDING
            parts.append(box(left + column * cell, y, cell, cell, colour, LINE))

    left = 290
    parts.append(text(left, 30, "The grid: a line for each record", more=BOLD))
    parts.append(text(left, 50, "laid out for attention alone, then end to end again", colour=FAINT, more=SMALL))
    for n, record in enumerate(records):
        for i in range(longest):
            x, y = left + i * 46, top + n * 46
            parts.append(box(x, y, 42, 42, (ANSWER, NEW)[n] if i < len(record) else PADDING, LINE))
            ink = GROUND if i < len(record) else FAINT
            parts.append(text(x + 21, y + 26, record[i] if i < len(record) else "0", "middle", ink, mono))

    left, cell = 640, 24
    parts.append(text(left, 30, "Each line by itself, causal", more=BOLD))
    parts.append(text(left, 50, "to the left and itself, nothing else", colour=FAINT, more=SMALL))
    for n, record in enumerate(records):
        x = left + n * 128
        filled = record.ljust(longest, "0")
        for i in range(longest):
            parts.append(
                text(x - 10, top + i * cell + 17, filled[i], "middle", FAINT if filled[i] == "0" else INK, mono)
            )
            parts.append(text(x + i * cell + 12, top - 8, filled[i], "middle", more=mono))
            for j in range(longest):
                seen = j <= i and i < len(record)
                parts.append(box(x + j * cell, top + i * cell, cell, cell, (ANSWER, NEW)[n] if seen else PADDING, LINE))
    for i, words in enumerate(
        ["No real token reaches the 0: it stands to the", "right. What its own line gives is left out."]
    ):
        parts.append(text(left - 16, top + 98 + 18 * i, words, colour=FAINT, more=SMALL))
    parts.append(text(290, top + 120, "Causal attention on this grid allows just the", colour=FAINT, more=SMALL))
    parts.append(text(290, top + 138, "coloured cells on the left. So no mask is made.", colour=FAINT, more=SMALL))
    return svg(top + 5 * 30 + 20, "Attention within each record", parts)


def life() -> str:
    """A checkpoint is written under a hidden name, flushed, renamed; only then does the one before it go."""
    left, width = 24, 150
    stages = [
        ("write", "weights, moments,", "counters, generators"),
        ("manifest", "size and SHA-256", "of each file"),
        ("flush", "every byte is", "on the disk"),
        ("rename", "wholly, or", "not at all"),
        ("tidy up", "the older one gives", "up moments or goes"),
    ]
    gap = (WIDTH - 2 * left - len(stages) * width) / (len(stages) - 1)
    xs = [left + i * (width + gap) for i in range(len(stages))]
    parts = [text(20, 30, "The life of a checkpoint, here of step 1,000", more=BOLD)]
    for i, (x, (name, *lines)) in enumerate(zip(xs, stages, strict=True)):
        parts.append(box(x, 48, width, 66, "#eef2f6", LINE, 'rx="6"'))
        parts.append(text(x + width / 2, 68, name, "middle", more=BOLD))
        parts += [text(x + width / 2, 88 + 16 * n, part, "middle", FAINT, SMALL) for n, part in enumerate(lines)]
        if i:
            parts.append(arrow(x - gap + 2, 81, x - 2, 81))
    renamed = xs[3] + width / 2
    end = WIDTH - left
    parts.append(text(left, 146, "on the disk", colour=FAINT, more=SMALL))
    bars = [
        (154, left, xs[4] + width / 2, PROMPT, INK, "checkpoint-500"),
        (184, left, renamed, PADDING, INK, ".checkpoint-1000.<process>.tmp"),
        (184, renamed, end, NEW, GROUND, "checkpoint-1000"),
    ]
    for y, start, stop, colour, ink, name in bars:
        parts.append(box(start, y, stop - start, 22, colour, LINE))
        parts.append(text(start + 8, y + 15, name, colour=ink, more=f'{MONO} font-size="12"'))
    parts.append(path([(renamed, 140), (renamed, 262)], INK, 1.2, 'stroke-dasharray="4 3"'))
    parts.append(text(left, 254, "killed then?", colour=FAINT, more=SMALL))
    parts.append(text(renamed - 12, 254, "--resume goes on from step 500", "end", more=SMALL))
    parts.append(text(renamed + 12, 254, "from step 1,000", more=SMALL))
    return svg(276, "The life of a checkpoint", parts)


if __name__ == "__main__":
    main()
