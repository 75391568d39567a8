"""Bars as SVG, with axes and marks, for light and dark pages: the colours follow the reader's setting."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

COLUMNS = 2
WIDTH, MARGIN, GAP = 1040, 24, 40
NAMES = 176
"""Room for what the bars are called."""
ROW, BAR = 26, 16
TITLE, AXIS, LINE = 30, 46, 18
LETTER = 6.5
"""About how wide one is."""
TICKS = 5
HEADROOM = 1.22
"""A bar's figure stands behind its end."""
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.value, .word { paint-order: stroke; stroke: #ffffff; stroke-width: 4px; }
.paper { fill: #ffffff; } .title { font-weight: 600; } .small { font-size: 12px; fill: #59636e; }
.ours { fill: #0969da; } .peer { fill: #8c959f; } .grid { stroke: #d1d9e0; }
.word { fill: #bc4c00; } .mark { stroke: #bc4c00; stroke-width: 2; stroke-dasharray: 5 3; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; } .value, .word { stroke: #0d1117; }
  .paper { fill: #0d1117; } .small { fill: #9198a1; }
  .ours { fill: #4493f8; } .peer { fill: #6e7681; } .grid { stroke: #3d444d; }
  .word { fill: #f0883e; } .mark { stroke: #f0883e; }
}
"""


@dataclass(frozen=True, slots=True)
class Bar:
    name: str
    value: float
    ours: bool


@dataclass(frozen=True, slots=True)
class Mark:
    """A line across the bars, and what it is called."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    axis: str
    bars: Sequence[Bar]
    marks: Sequence[Mark]


def draw(panels: Sequence[Panel], caption: str) -> str:
    """An SVG document with all panels, two a row, and a caption below them."""
    inner = (WIDTH - 2 * MARGIN - GAP * (COLUMNS - 1)) / COLUMNS
    pieces: list[str] = []
    top = float(MARGIN)
    for start in range(0, len(panels), COLUMNS):
        beside = panels[start : start + COLUMNS]
        lines = max(len(panel.marks) for panel in beside)
        for column, panel in enumerate(beside):
            left = MARGIN + column * (inner + GAP)
            pieces.append(f'<g transform="translate({left:g} {top:g})">{"".join(_panel(panel, inner, lines))}</g>')
        top += TITLE + LINE * lines + ROW * max(len(panel.bars) for panel in beside) + AXIS + GAP / 2
    pieces.append(_text(MARGIN, top + LINE, caption, "small"))
    height = top + LINE + MARGIN
    label = quoteattr("; ".join(_in_words(panel) for panel in panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label={label}>\n'
        f'<style>{STYLE}</style>\n<rect class="paper" width="100%" height="100%"/>\n' + "\n".join(pieces) + "\n</svg>\n"
    )


def _panel(panel: Panel, width: float, lines: int) -> Iterator[str]:
    """With room for so many lines about marks above the bars."""
    most = max([bar.value for bar in panel.bars] + [mark.value for mark in panel.marks]) * HEADROOM
    scale = (width - NAMES) / most
    top = TITLE + LINE * lines
    bottom = top + ROW * len(panel.bars)
    yield _text(0, 16, panel.title, "title")
    for tick in _ticks(most):
        x = NAMES + tick * scale
        yield _line("grid", x, top, bottom)
        yield _text(x, bottom + 16, f"{tick:,g}", "small", "middle")
    yield _text(NAMES + (width - NAMES) / 2, bottom + 34, panel.axis, "small", "middle")
    for at, bar in enumerate(panel.bars):
        y, kind = top + ROW * at + (ROW - BAR) / 2, "ours" if bar.ours else "peer"
        yield _text(NAMES - 8, y + BAR - 3, bar.name, "name", "end")
        yield f'<rect class="{kind}" x="{NAMES}" y="{y:g}" width="{bar.value * scale:.1f}" height="{BAR}" rx="2"/>'
    for at, mark in enumerate(panel.marks):
        x, y = NAMES + mark.value * scale, TITLE + LINE * at
        yield _line("mark", x, y, bottom)
        fits = x + 6 + LETTER * len(mark.name) < width
        yield _text(x + (6 if fits else -6), y + 10, mark.name, "small word", "start" if fits else "end")
    for at, bar in enumerate(panel.bars):
        yield _text(NAMES + bar.value * scale + 6, top + ROW * (at + 1) - ROW / 2 + 5, _figure(bar.value), "value")


def _line(kind: str, x: float, top: float, bottom: float) -> str:
    return f'<line class="{kind}" x1="{x:.1f}" y1="{top:g}" x2="{x:.1f}" y2="{bottom:g}"/>'


def _ticks(most: float) -> list[float]:
    """Round numbers from 0 to below `most`."""
    rough = most / TICKS
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough)
    return [round(step * count, 10) for count in range(math.floor(most / step) + 1)]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _in_words(panel: Panel) -> str:
    return f"{panel.title}, {panel.axis}: " + ", ".join(f"{bar.name} {_figure(bar.value)}" for bar in panel.bars)


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'
