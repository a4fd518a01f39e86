"""Drawings as SVG text, made without a browser or a plotting library; tables beside them have the figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from odn_hybrid.report.html.elements import text

__all__ = ["Line", "Mark", "bars", "plot"]

WIDTH, HEIGHT = 560, 330
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 28, 44


@dataclass(frozen=True)
class Line:
    """A curve: `kind` is its class in the style sheet; `names` stand beside its points, if given."""

    kind: str
    points: Sequence[tuple[float, float]]
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Mark:
    """One point with its interval; `kind` is "full", "static", "dynamic" or "hollow"."""

    kind: str
    x: float
    y: float
    low: float
    high: float


def plot(
    name: str,
    title: str,
    axes: tuple[str, str],
    lines: Sequence[Line],
    marks: Sequence[Mark] = (),
    floor: float = -math.inf,
) -> str:
    """Lines and marks over two axes; what lies below `floor` is left out."""
    seen = [y for line in lines for _, y in line.points if y >= floor]
    seen += [y for mark in marks for y in (mark.low, mark.high) if y >= floor]
    across = [x for line in lines for x, _ in line.points] + [mark.x for mark in marks]
    if not seen or not across:
        return ""
    low, high = min(seen), max(seen)
    room = 0.05 * (high - low) or 1.0
    low, high, far = low - room, high + room, max(across) * 1.03 or 1.0
    right, ground = WIDTH - RIGHT, HEIGHT - BOTTOM

    def place_x(x: float) -> float:
        return LEFT + x / far * (right - LEFT)

    def place_y(y: float) -> float:
        return ground - (y - low) / (high - low) * (ground - TOP)

    parts = [*_axes(axes, (low, high), far, place_x, place_y)]
    for line in lines:
        parts.append(_line(line, floor, place_x, place_y))
    for mark in marks:
        if mark.y >= floor:
            parts.append(
                _mark(mark, place_x(mark.x), [place_y(max(v, low)) for v in (mark.y, mark.low, mark.high)])
            )
    return _frame(name, title, HEIGHT, parts)


def bars(name: str, title: str, rows: Sequence[tuple[str, float]]) -> str:
    """A bar per row, as long as its share (a fraction) of the longest."""
    most = max((share for _, share in rows), default=0.0) or 1.0
    parts = []
    for number, (label, share) in enumerate(rows):
        top, length = 10 + 28 * number, share / most * (WIDTH - 190)
        parts.append(f'<text class="tick" x="84" y="{top + 14}" text-anchor="end">{text(label)}</text>')
        parts.append(f'<rect class="bar" x="94" y="{top}" width="{max(length, 1):.1f}" height="19" rx="3"/>')
        parts.append(f'<text class="tick" x="{102 + length:.1f}" y="{top + 14}">{100 * share:.1f} %</text>')
    return _frame(name, title, 18 + 28 * len(rows), parts)


def _frame(name: str, title: str, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="{name}-title">'
        f'<title id="{name}-title">{text(title)}. The table below has the figures.</title>'
        f"{''.join(parts)}</svg>"
    )


def _axes(
    names: tuple[str, str],
    heights: tuple[float, float],
    far: float,
    place_x: Callable[[float], float],
    place_y: Callable[[float], float],
) -> list[str]:
    right, ground = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for at in _ticks(*heights):
        y = place_y(at)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{at:g}</text>')
    for at in _ticks(0.0, far):
        parts.append(
            f'<text class="tick" x="{place_x(at):.1f}" y="{ground + 18}" text-anchor="middle">{at:g}</text>'
        )
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{ground}" y2="{ground}"/>')
    middle = (LEFT + right) / 2
    parts.append(
        f'<text class="tick" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{text(names[0])}</text>'
    )
    parts.append(f'<text class="tick" x="{LEFT - 40}" y="14">{text(names[1])}</text>')
    return parts


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within low..high."""
    raw = (high - low) / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(one * size for one in (1, 2, 5, 10) if one * size >= raw - 1e-12)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 10) + 0.0 for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _line(
    line: Line, floor: float, place_x: Callable[[float], float], place_y: Callable[[float], float]
) -> str:
    kept = [(place_x(x), place_y(y), n) for n, (x, y) in enumerate(line.points) if y >= floor]
    way = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in kept)
    parts = [f'<polyline class="line {line.kind}" points="{way}"/>']
    if line.names:
        for x, y, n in kept:
            parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')
            parts.append(f'<text class="tick" x="{x + 6:.1f}" y="{y + 15:.1f}">{text(line.names[n])}</text>')
    return "".join(parts)


def _mark(mark: Mark, x: float, heights: Sequence[float]) -> str:
    y, low, high = heights
    whisker = f'<line class="whisker {mark.kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
    if mark.kind == "full":
        return f'{whisker}<rect class="mark full" x="{x - 6:.1f}" y="{y - 6:.1f}" width="12" height="12"/>'
    if mark.kind == "static":
        return f'{whisker}<path class="mark static" d="M{x:.1f} {y - 8:.1f}l7.5 13h-15z"/>'
    return f'{whisker}<circle class="mark {mark.kind}" cx="{x:.1f}" cy="{y:.1f}" r="7"/>'
