"""The pieces of a report: one self-contained page of cards, tiles and bars, in light and dark, on any width."""

import html

from catalogue.fields import printable

COLOURS = {"#2f6db5": "blue", "#d9822b": "warm", "#1d2733": "ink", "#66727f": "soft"}  # of the style, by their names
SHORT = 16  # characters of a cell that is never broken
STYLE = """
:root{color-scheme:light dark;--ink:#1d2733;--soft:#66727f;--line:#e3e8ed;--paper:#fff;--blue:#2f6db5;--warm:#d9822b;
--ground:#f4f6f8;--hit:#d8ebff;--miss:#ffe0bd}
@media(prefers-color-scheme:dark){:root{--ink:#e6ebf0;--soft:#9aa7b4;--line:#2e3945;--paper:#1a222b;--blue:#6aa5e8;
--warm:#eca050;--ground:#11171d;--hit:#1f466e;--miss:#6b4215}}
*{box-sizing:border-box}body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:960px;margin:0 auto;padding:40px 24px}h1{margin:0 0 4px;font-size:30px;letter-spacing:-.02em}
h2{margin:0 0 8px;font-size:19px}p{margin:0 0 12px;color:var(--soft)}
section{background:var(--paper);border:1px solid var(--line);border-radius:12px;padding:24px;margin:20px 0}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:16px;margin:24px 0}
.tiles div{background:var(--paper);border:1px solid var(--line);border-radius:12px;padding:16px 20px}
.tiles b{display:block;font-size:26px;letter-spacing:-.02em}.tiles span{color:var(--soft);font-size:14px}
table{border-collapse:collapse;width:100%;font-size:15px}td,th{padding:6px 8px;border-bottom:1px solid var(--line);
text-align:left;vertical-align:top;overflow-wrap:anywhere}th{color:var(--soft);font-weight:500}
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap;width:1%}td.in{padding-left:28px}
td.bar{width:38%;min-width:90px}td.bar i{display:block;height:10px;margin-top:7px;border-radius:5px;
background:var(--blue);min-width:2px}td.bar i.out{background:var(--warm)}
.pairs td{width:50%;font-size:14px}.pairs .raw{font-family:ui-monospace,monospace;font-size:12.5px;color:var(--soft)}
svg text{fill:var(--soft)}svg{display:block;width:100%;height:auto}
@media(max-width:700px){.tiles{grid-template-columns:1fr 1fr}}
.curves{display:grid;grid-template-columns:1fr 1fr;gap:24px}.curves h3{margin:0;font-size:15px;font-weight:500}
.curves svg{font:13px system-ui,sans-serif}.curves path{fill:none;stroke:var(--blue);stroke-width:2}
.curves .grid{stroke:var(--line);stroke-width:1}.curves circle{fill:var(--blue)}.curves path.out{stroke:var(--warm)}
.curves circle.out{fill:var(--warm)}.key{color:var(--blue)}.key.out{color:var(--warm)}
mark{background:var(--miss);color:inherit;border-bottom:2px solid var(--warm)}
.hit{background:var(--hit);border-radius:3px}.answers{display:grid;gap:12px;margin:8px 0 24px;
grid-template-columns:repeat(auto-fit,minmax(230px,1fr))}.answers div{border:1px solid var(--line);border-radius:8px;
padding:10px 12px;font-size:14px;overflow-wrap:anywhere;max-height:320px;overflow-y:auto}
.answers small{display:block;color:var(--soft)}h1,h3{overflow-wrap:anywhere}.wide{overflow-x:auto}
.wide td,.wide th{overflow-wrap:break-word}.wide td:nth-child(n+2){min-width:72px}
.tokens{line-height:2;margin:0 0 12px;overflow-wrap:anywhere;white-space:pre-wrap}.tokens span{padding:1px 0;
border:1px solid var(--line);border-radius:3px}.tokens .hit{border-color:var(--blue)}
.checks{margin:12px 0 0;padding:0;list-style:none;color:var(--soft);font-size:14px}
summary{cursor:pointer;color:var(--blue);margin-bottom:12px}
td.short{white-space:nowrap}
@media(max-width:700px){main{padding:24px 12px}section{padding:16px}.curves{grid-template-columns:1fr}
.tiles div{padding:14px}.tiles b{font-size:22px}.wide table{font-size:13px}.wide td,.wide th{padding:6px 4px}
.wide td:nth-child(n+2){min-width:0}td.bar{width:30%;min-width:60px}}
"""


def page(title: str, body: list[str]) -> str:
    """`title` is plain text, `body` is HTML."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{as_text(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body><main>\n" + "\n".join(body) + "\n</main></body></html>\n"
    )


def section(title: str, lead: str, content: str) -> str:
    """A card; `content` is HTML."""
    return f"<section><h2>{title}</h2><p>{as_text(lead)}</p>{content}</section>"


def tiles_of(tiles: list[tuple[str, str]]) -> str:
    """Large numbers, each with its name."""
    shown = (f"<div><b>{as_text(number)}</b><span>{as_text(name)}</span></div>" for number, name in tiles)
    return f'<div class="tiles">{"".join(shown)}</div>'


def table_of(rows: list[list[str]], head: list[str] | None = None) -> str:
    """Cells of plain text. What is as short as a number or a shape keeps to one line; a narrow screen scrolls."""
    heading = f"<tr>{''.join(f'<th>{as_text(cell)}</th>' for cell in head)}</tr>" if head else ""
    short = ' class="short"'
    lines = ("".join(f"<td{short * (len(cell) <= SHORT)}>{as_text(cell)}</td>" for cell in cells) for cells in rows)
    return f'<div class="wide"><table>{heading}{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def bars(counted: list[tuple[str, int]]) -> str:
    most = max(count for _, count in counted)
    rows = (row(f"<td>{as_text(name)}</td>", [f"{count:,}"], 100 * count / most) for name, count in counted)
    return f"<table>{''.join(rows)}</table>"


def row(cell: str, numbers: list[str], percent: float, color: str = "") -> str:
    """A line of a table: a name as HTML, its numbers, a bar of `percent` of the width."""
    numbers = "".join(f'<td class="n">{number}</td>' for number in numbers)
    return f'<tr>{cell}{numbers}<td class="bar"><i{color} style="width:{percent:.2f}%"></i></td></tr>'


def as_text(text: str) -> str:
    """Text as it is: nothing of it is markup or a control; a lone surrogate, which UTF-8 cannot hold, is escaped."""
    return html.escape("".join(mark if mark.isprintable() else " " for mark in printable(text)))
