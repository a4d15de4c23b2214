"""Points over tokens as SVG whose colours are classes: the pages' policy forbids styles within elements."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from qedmeg.grading.rubric import RUBRIC_POINTS
from qedmeg.monitor.page import visible

COLOURS = 8
"""Classes `c0`, `c1`, ... of the style sheet."""
_WIDTH, _HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 70
_STRIP = 22  # below the axis: what has no points


@dataclass(frozen=True)
class Dot:
    """One point of the plot, which is a link."""

    tokens: float
    points: float | None
    """Of 7; None: shown below the axis."""
    colour: int
    """Below `COLOURS`."""
    label: str
    href: str
    spread: float = 0.0
    """From -1 to 1: how far it is moved, so that equal points do not hide each other."""


def scatter(dots: Sequence[Dot], title: str) -> Markup:
    """The plot of these points, with their labels as tooltips and for readers of screens."""
    step = _step(max((dot.tokens for dot in dots), default=1.0))
    most = step * max(1, math.ceil(max((dot.tokens for dot in dots), default=1.0) / step))
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT

    def x(tokens: float) -> float:
        return round(_LEFT + (right - _LEFT) * tokens / most, 1)

    def y(points: float) -> float:
        return round(bottom - (bottom - _TOP) * points / RUBRIC_POINTS, 1)

    parts = [f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="group" aria-label="{escape(title)}">']
    for points in range(RUBRIC_POINTS + 1):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y(points)}" y2="{y(points)}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y(points) + 4}" text-anchor="end">{points}</text>')
    for number in range(round(most / step) + 1):
        at = x(number * step)
        anchor = "end" if number == round(most / step) else "middle"
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(
            f'<text class="tick" x="{at}" y="{bottom + _STRIP + 24}" text-anchor="{anchor}">'
            f"{_short(number * step)}</text>"
        )
    if any(dot.points is None for dot in dots):
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{bottom + _STRIP}" text-anchor="end">none</text>')
    parts.append(f'<text class="tick" x="{right}" y="{_HEIGHT - 4}" text-anchor="end">tokens</text>')
    for dot in dots:
        height = bottom + _STRIP - 4 if dot.points is None else y(dot.points)
        centre = f'cx="{x(dot.tokens)}" cy="{height + 5 * dot.spread:.1f}"'
        shape = f'<circle class="c{dot.colour}" {centre} r="5"/>'
        label = escape(visible(dot.label))
        parts.append(f'<a href="{escape(dot.href)}" aria-label="{label}"><title>{label}</title>{shape}</a>')
    return Markup("".join(parts) + "</svg>")


def _step(most: float) -> float:
    """The distance of ticks: 1, 2 or 5 times a power of ten, so that there are at most six."""
    rough = max(most, 1.0) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)


def _short(number: float) -> str:
    if number >= 1e6:
        return f"{number / 1e6:g}M"
    return f"{number / 1e3:g}k" if number >= 1e4 else f"{number:g}"
