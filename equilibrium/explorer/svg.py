"""Pictures as SVG text, written in milliseconds: matplotlib takes half a second for four panels, too long for a slider.

The colours and the meaning of dashes are those of ``contracting.plots.style``.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]
Points = Iterable[Point]

WIDTH, HEIGHT = 520, 420  # Of a panel, in pixels, with its title, its labels and its legend.
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 26, 42  # The room beside the axes, the legend not counted, in pixels.
_ROW = 15  # The height of a row of the legend, in pixels.
_LETTER = 6.1  # The width of a letter of size 11, about, in pixels.
_TICKS = 6  # At most so many steps between the ticks of an axis.
_FAR = 9.0  # What lies outside is moved to so many sizes of the axes, or its numbers could be too large for a browser.


@dataclass
class Panel:
    """Axes with lines, areas and dots on them.

    Attributes:
        title: above the axes.
        x: first and last value.
        y: the same; of a logarithmic axis both are positive.
        labels: of the two axes.
        log: whether y is logarithmic.
        equal: whether a unit is as long on both axes; the axes are then widened.
    """

    title: str
    x: tuple[float, float]
    y: tuple[float, float]
    labels: tuple[str, str]
    log: bool = False
    equal: bool = False
    _shapes: list[tuple[str, list[Point], str]] = field(default_factory=list, init=False)
    _legend: list[tuple[str, str]] = field(default_factory=list, init=False)

    def line(self, points: Points, colour: str, *, width: float = 1.5, dash: str = "", name: str = "") -> None:
        """A line through the points; where one is not finite it is broken."""
        style = f'fill="none" stroke="{colour}" stroke-width="{width:g}" stroke-dasharray="{dash}"'
        self._shapes += [("polyline", part, style) for part in _finite_parts(points)]
        self._named(name, f'<line x1="0" x2="18" y1="-4" y2="-4" {style}/>')

    def area(self, points: Points, colour: str, *, opacity: float = 0.4, name: str = "") -> None:
        """A filled polygon."""
        style = f'fill="{colour}" fill-opacity="{opacity:g}" stroke="{colour}" stroke-width="1"'
        self._shapes += [("polygon", part, style) for part in _finite_parts(points)]
        self._named(name, f'<rect x="2" y="-10" width="14" height="10" {style}/>')

    def dots(self, points: Points, colour: str, *, radius: float = 2.0, name: str = "") -> None:
        """A dot at each point."""
        style = f'fill="{colour}" r="{radius:g}"'
        self._shapes += [("circle", [point], style) for part in _finite_parts(points) for point in part]
        self._named(name, f'<circle cx="9" cy="-5" {style}/>')

    def _named(self, name: str, mark: str) -> None:
        if name:
            self._legend.append((mark, name))

    def drawn(self) -> str:
        """The panel as the inside of an ``<svg>`` of ``WIDTH`` × ``HEIGHT`` pixels."""
        columns = 2 if all(len(name) * _LETTER < (WIDTH - _LEFT) / 2 - 26 for _, name in self._legend) else 1
        height = HEIGHT - _BOTTOM - _TOP - -(-len(self._legend) // columns) * _ROW
        width = WIDTH - _RIGHT - _LEFT
        (x0, x1), (y0, y1) = self._window(width, height)

        def at(point: Point) -> Point:
            across = (point[0] - x0) / (x1 - x0)
            up = (_height(point[1], self.log) - y0) / (y1 - y0)
            return _LEFT + width * _near(across), _TOP + height * (1 - _near(up))

        frame = f'x="{_LEFT}" y="{_TOP}" width="{width}" height="{height}"'
        # a nested picture cuts off what lies outside, and needs no name that two panels could share
        inside = "".join(_shape(tag, [at(point) for point in points], style) for tag, points, style in self._shapes)
        parts = [
            _text(_LEFT, 16, self.title, size=13),
            f'<rect {frame} fill="#fff" stroke="#bbb"/>',
            *self._axes((x0, x1), (y0, y1), at, width, height),
            f'<svg {frame} viewBox="{_LEFT} {_TOP} {width} {height}">{inside}</svg>',
        ]
        for index, (mark, name) in enumerate(self._legend):
            left = _LEFT + (index % columns) * (WIDTH - _LEFT) // columns
            top = _TOP + height + _BOTTOM + index // columns * _ROW + 6
            parts.append(f'<g transform="translate({left},{top})">{mark}{_text(24, 0, name)}</g>')
        return "".join(parts)

    def _window(self, width: int, height: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """First and last value of each axis, of a logarithmic one the exponents."""
        low, high = (_height(value, self.log) for value in self.y)
        if not self.equal:
            return self.x, (low, high)
        unit = max((self.x[1] - self.x[0]) / width, (high - low) / height)
        (left, right), (bottom, top) = (
            ((first + last - unit * room) / 2, (first + last + unit * room) / 2)
            for first, last, room in ((*self.x, width), (low, high, height))
        )
        return (left, right), (bottom, top)

    def _axes(
        self, x: tuple[float, float], y: tuple[float, float], at: Callable[[Point], Point], width: int, height: int
    ) -> list[str]:
        parts = []
        for value in ticks(*x):
            place, _ = at((value, self.y[0]))
            parts.append(_rule(place, place, _TOP, _TOP + height))
            parts.append(_text(place, _TOP + height + 14, _number(value), anchor="middle"))
        for value in ticks(*y, whole=self.log):
            _, place = at((x[0], 10.0**value if self.log else value))
            parts.append(_rule(_LEFT, _LEFT + width, place, place))
            parts.append(_text(_LEFT - 5, place + 4, _number(value, power=self.log), anchor="end"))
        middle = _TOP + height / 2
        parts.append(_text(_LEFT + width / 2, _TOP + height + 31, self.labels[0], anchor="middle", size=12))
        turned = f'transform="rotate(-90 13 {middle:.1f})"'
        parts.append(_text(13, middle, self.labels[1], anchor="middle", size=12, more=turned))
        return parts


def page(panels: Sequence[Panel], *, columns: int = 2) -> str:
    """Panels side by side in one picture, which scales with the page that it is on."""
    placed = "".join(
        f'<g transform="translate({WIDTH * (index % columns)},{HEIGHT * (index // columns)})">{panel.drawn()}</g>'
        for index, panel in enumerate(panels)
    )
    size = f"{columns * WIDTH} {-(-len(panels) // columns) * HEIGHT}"
    look = 'style="width:100%;background:#fff" font-family="sans-serif"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" {look}>{placed}</svg>'


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Round numbers between the two, at steps of 1, 2 or 5 times a power of ten; whole numbers if asked for."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / _TICKS))
    step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= _TICKS)
    step = max(1.0, float(math.ceil(step))) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * index for index in range(first, last + 1)]


def _finite_parts(points: Points) -> list[list[Point]]:
    parts: list[list[Point]] = [[]]
    for point in points:
        if all(map(math.isfinite, point)):
            parts[-1].append(point)
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


def _shape(tag: str, places: Sequence[Point], style: str) -> str:
    if tag == "circle":
        ((x, y),) = places
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" {style}/>'
    return f'<{tag} points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}" {style}/>'


def _rule(x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}" stroke="#e8e8e8"/>'


def _text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 11, more: str = "") -> str:
    said = html.escape(words)
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="#222" {more}>{said}</text>'


def _height(value: float, log: bool) -> float:
    return math.log10(max(value, 1e-300)) if log else value


def _near(share: float) -> float:
    return min(max(share, -_FAR), _FAR)


def _number(value: float, *, power: bool = False) -> str:
    return (f"1e{value:.0f}" if power else f"{value:.10g}").replace("-", "−")
