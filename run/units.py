"""Numbers for people: durations, bytes, counts, and a table of them."""

import math


def eta_seconds(done: int, total: int, seconds: float) -> float:
    """Seconds that the rest takes at the rate so far."""
    return (total - done) * seconds / done if done else math.nan


def clock(seconds: float) -> str:
    """75 -> '1:15', 3725 -> '1:02:05'."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def duration(seconds: float) -> str:
    """75 -> '75 s', 200 -> '3.3 min', 3725 -> '62 min': within a twentieth."""
    count, unit = next(
        (count, unit)
        for count, unit in ((seconds, "s"), (seconds / 60, "min"), (seconds / 3600, "h"))
        if count < 90 or unit == "h"
    )
    return f"{count:.0f} {unit}" if count >= 9.5 else f"{count:.1f} {unit}"


def size(count: float) -> str:
    """Bytes for people: 1536 -> '1.5 KB' (powers of 1024, as task managers count)."""
    return _scaled(count, 1024, (" B", " KB", " MB", " GB", " TB"))


def short(count: float) -> str:
    """1234 -> '1.2k', 3456789 -> '3.5M'."""
    return _scaled(count, 1000, ("", "k", "M", "G", "T"))


def _scaled(count: float, base: int, units: tuple[str, ...]) -> str:
    power = 0
    while abs(count) >= base and power < len(units) - 1:
        count, power = count / base, power + 1
    return f"{count:.0f}{units[power]}" if count >= 100 or power == 0 else f"{count:.1f}{units[power]}"


def table(rows: list[tuple[str, str]]) -> str:
    """Two aligned columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:{width}}  {value}" for name, value in rows)
