"""Plots as SVG: lines over linear or logarithmic axes, and stacked bars. Readable in light and in dark, and without colours.

A picture paints its own ground, since the page that shows it may be dark where the reader's system is light. Lines differ in colour and in
dash; the legend stands above the plot in the order of the lines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import List, Optional, Sequence, Tuple

WIDTH, HEIGHT = 760, 430
LEFT, RIGHT, TOP, BOTTOM = 78, 40, 48, 58
LEGEND = 20
DASHES = ("", "7 4", "2 3", "11 4 2 4", "4 2", "1 4")
LIGHT = ("#0072b2", "#c4500b", "#00805c", "#a3447f", "#7a6100", "#555555")
DARK = ("#63b3ed", "#f6935c", "#3fc79a", "#e38cc4", "#d9bd45", "#b5b5b5")

STYLE = (
    "<style>\n"
    ".ground{fill:#ffffff} text{fill:#1f2328;font:13px system-ui,-apple-system,'Segoe UI',sans-serif} .title{font-weight:600;font-size:15px}\n"
    ".grid{stroke:#d0d7de;stroke-width:1} .axis{stroke:#57606a;stroke-width:1} .bound{stroke:#cf222e;stroke-width:1.5;stroke-dasharray:5 3}\n"
    ".boundtext{fill:#cf222e} .line{fill:none;stroke-width:2.2}\n"
    + "".join(f".c{n}{{stroke:{colour}}} .f{n}{{fill:{colour}}}\n" for n, colour in enumerate(LIGHT))
    + "@media (prefers-color-scheme: dark){\n.ground{fill:#0d1117} text{fill:#e6edf3} .grid{stroke:#30363d} .axis{stroke:#8b949e} .bound{stroke:#ff7b72} .boundtext{fill:#ff7b72}\n"
    + "".join(f".c{n}{{stroke:{colour}}} .f{n}{{fill:{colour}}}\n" for n, colour in enumerate(DARK))
    + "}\n</style>"
)


@dataclass
class Axis:
    title: str
    low: float
    high: float
    log: bool = False
    ticks: Optional[Sequence[float]] = None

    def place(self, value: float) -> float:
        """Where on the axis, from 0 to 1."""
        if self.log:
            return (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return (value - self.low) / (self.high - self.low)

    def marks(self) -> List[float]:
        if self.ticks is not None:
            return list(self.ticks)
        if self.log:
            return [10.0**n for n in range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)]
        raw = (self.high - self.low) / 6
        unit = 10 ** math.floor(math.log10(raw))
        step = next(unit * times for times in (1, 2, 2.5, 5, 10) if unit * times >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [step * n for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass
class Line:
    name: str
    points: List[Tuple[float, float]]


def _words(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _head(title: str, height: int) -> List[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-label="{escape(title)}">',
        STYLE,
        f'<rect class="ground" width="{WIDTH}" height="{height}"/>',
        f'<text class="title" x="16" y="26">{escape(title)}</text>',
    ]


def _legend(names: Sequence[str], top: float, lines: bool) -> Tuple[List[str], float]:
    """In rows; says where it ends."""
    out, x, y = [], 16.0, top
    for number, name in enumerate(names):
        wide = 42 + 6.9 * len(name)
        if x > 16.0 and x + wide > WIDTH - 8:
            x, y = 16.0, y + LEGEND
        if lines:
            dash = f' stroke-dasharray="{DASHES[number]}"' if DASHES[number] else ""
            out.append(f'<path class="line c{number}"{dash} d="M{x:.0f} {y - 4:.0f}h26"/>')
        else:
            out.append(f'<rect class="f{number}" x="{x:.0f}" y="{y - 11:.0f}" width="14" height="12"/>')
        out.append(f'<text x="{x + (32 if lines else 20):.0f}" y="{y:.0f}">{escape(name)}</text>')
        x += wide + 8
    return out, y


def lines(title: str, x: Axis, y: Axis, curves: Sequence[Line], bound: Optional[Tuple[float, str]] = None) -> str:
    """`bound`: a value of y with its name, drawn across."""
    out = _head(title, HEIGHT)
    legend, end = _legend([curve.name for curve in curves], TOP, True)
    out += legend
    top, bottom, right = end + 18, HEIGHT - BOTTOM, WIDTH - RIGHT

    def across(value: float) -> float:
        return LEFT + (right - LEFT) * x.place(value)

    def up(value: float) -> float:
        return bottom - (bottom - top) * y.place(value)

    for mark in y.marks():
        out.append(
            f'<path class="grid" d="M{LEFT} {up(mark):.1f}H{right}"/><text x="{LEFT - 8}" y="{up(mark) + 4:.1f}" text-anchor="end">{_words(mark)}</text>'
        )
    for mark in x.marks():
        out.append(
            f'<path class="grid" d="M{across(mark):.1f} {top:.1f}V{bottom}"/><text x="{across(mark):.1f}" y="{bottom + 18}" text-anchor="middle">{_words(mark)}</text>'
        )
    out.append(f'<path class="axis" d="M{LEFT} {top:.1f}V{bottom}H{right}" fill="none"/>')
    out.append(f'<text x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 14}" text-anchor="middle">{escape(x.title)}</text>')
    middle = (top + bottom) / 2
    out.append(f'<text x="18" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 18 {middle:.0f})">{escape(y.title)}</text>')
    if bound:
        value, name = bound
        out.append(
            f'<path class="bound" d="M{LEFT} {up(value):.1f}H{right}"/><text class="boundtext" x="{LEFT + 6}" y="{up(value) - 6:.1f}">{escape(name)}</text>'
        )
    for number, curve in enumerate(curves):
        dash = f' stroke-dasharray="{DASHES[number]}"' if DASHES[number] else ""
        path = "L".join(f"{across(at):.1f} {up(value):.1f}" for at, value in _inside(curve.points, y))
        if path:
            out.append(f'<path class="line c{number}"{dash} d="M{path}"/>')
    return "\n".join(out + ["</svg>"]) + "\n"


def _inside(points: Sequence[Tuple[float, float]], y: Axis) -> List[Tuple[float, float]]:
    """Cut where the axis begins and ends: what lies beyond stays at the edge."""
    return [(at, min(max(value, y.low), y.high)) for at, value in points]


def bars(title: str, axis: str, rows: Sequence[Tuple[str, Sequence[float]]], parts: Sequence[str], mark: str = "{:.2f}") -> str:
    """Stacked, lying; the sum stands behind each."""
    tall, gap, left = 24, 12, 250
    legend, end = _legend(parts, TOP, False)
    top = end + 20
    height = int(top + len(rows) * (tall + gap) + 52)
    out = _head(title, height) + legend
    right = WIDTH - 70
    most = max(sum(values) for _, values in rows)
    scale = Axis(axis, 0, most)
    bottom = top + len(rows) * (tall + gap)
    for at in scale.marks():
        place = left + (right - left) * scale.place(at)
        out.append(
            f'<path class="grid" d="M{place:.1f} {top - 6:.1f}V{bottom:.1f}"/><text x="{place:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{_words(at)}</text>'
        )
    for number, (name, values) in enumerate(rows):
        y, x = top + number * (tall + gap), float(left)
        out.append(f'<text x="{left - 8}" y="{y + 17:.1f}" text-anchor="end">{escape(name)}</text>')
        for part, value in enumerate(values):
            wide = (right - left) * value / most
            out.append(f'<rect class="f{part}" x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall}"/>')
            x += wide
        out.append(f'<text x="{x + 6:.1f}" y="{y + 17:.1f}">{escape(mark.format(sum(values)))}</text>')
    out.append(f'<text x="{(left + right) / 2:.0f}" y="{bottom + 38:.1f}" text-anchor="middle">{escape(axis)}</text>')
    return "\n".join(out + ["</svg>"]) + "\n"
