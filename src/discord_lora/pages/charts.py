"""The geometry of charts: figures become percentages of a drawing, which charts.html draws.

A drawing has no fixed size. Everything in it stands at a percentage of its width and height, so
that it fills a phone as well as a desk and its letters keep their size.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

_STEPS = (1, 2, 5, 10)
_MOST_TICKS = 4
_MOST_DOTS = 40
_EDGE = 6.0
_LEAST_SPAN = 1e-300
"""A quarter of less may be nothing."""
_GAP = 0.22
"""Of a column's place that stays empty."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A word beside an axis."""

    at: float
    text: str

    @property
    def anchor(self) -> Literal["start", "middle", "end"]:
        """So that nothing is cut off at the edges."""
        return "start" if self.at < _EDGE else "end" if self.at > 100 - _EDGE else "middle"


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    value: int
    x: float
    width: float
    height: float
    is_pale: bool


@dataclass(frozen=True, slots=True)
class ColumnChart:
    """Counts beside each other, such as messages by hour."""

    columns: list[Column]
    scale: list[Mark]
    marks: list[Mark]


@dataclass(frozen=True, slots=True)
class Series:
    """`points`: x,y pairs of an SVG polyline; `dots`: the same with what each one says."""

    name: str
    points: str
    dots: list[tuple[float, float, str]]


@dataclass(frozen=True, slots=True)
class LineChart:
    series: list[Series]
    scale: list[Mark]
    marks: list[Mark]


@dataclass(frozen=True, slots=True)
class Lane:
    """A distribution on a logarithmic axis: how far each of `ends` reaches, smallest first."""

    name: str
    ends: list[float]
    values: list[str]


@dataclass(frozen=True, slots=True)
class LaneChart:
    lanes: list[Lane]
    marks: list[Mark]


def column_chart(
    counts: Mapping[str, int], marks: Mapping[float, str], *, pale: int = 0
) -> ColumnChart:
    """Columns in the order given, the first `pale` of them drawn weaker.

    `marks`: place in columns → what to write below it; 0.5 is the middle of the first column.
    """
    levels = ticks(0, max(counts.values(), default=0), whole=True)
    place = 100 / max(len(counts), 1)
    columns = [
        Column(
            name,
            value,
            place * (n + _GAP / 2),
            place * (1 - _GAP),
            100 * value / levels[-1],
            n < pale,
        )
        for n, (name, value) in enumerate(counts.items())
    ]
    scale = [Mark(100 * level / levels[-1], compact(level)) for level in levels]
    return ColumnChart(columns, scale, [Mark(place * at, text) for at, text in marks.items()])


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    y_from: float | None = None,
    x_text: Callable[[float], str] = lambda x: f"{x:,g}",
    y_text: Callable[[float], str] = lambda y: f"{y:,g}",
) -> LineChart:
    """Lines over a common x axis. There are at least two different x among the points.

    Args:
        series: name → points (x, y), by rising x.
        y_from: where the y axis begins; left out, a little below the lowest point.
        x_text: words for a place on the x axis.
        y_text: words for a height.
    """
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    left, width = min(xs), max(xs) - min(xs)
    levels = ticks(min(ys) if y_from is None else y_from, max(ys))
    bottom, height = levels[0], levels[-1] - levels[0]

    def drawn(name: str, points: Sequence[tuple[float, float]]) -> Series:
        at = [(100 * (x - left) / width, 100 - 100 * (y - bottom) / height) for x, y in points]
        says = [f"{name}, {x_text(x)}: {y_text(y)}" for x, y in points]
        dots = [(*place, text) for place, text in zip(at, says, strict=True)]
        line = " ".join(f"{x:.2f},{y:.2f}" for x, y in at)
        return Series(name, line, dots if len(dots) <= _MOST_DOTS else [])

    below = [x for x in ticks(left, max(xs), whole=True) if left <= x <= max(xs)]
    return LineChart(
        [drawn(name, points) for name, points in series.items()],
        [Mark(100 * (level - bottom) / height, y_text(level)) for level in levels],
        [Mark(100 * (x - left) / width, x_text(x)) for x in below],
    )


def lane_chart(
    rows: Mapping[str, Sequence[int]],
    marks: Mapping[int, str],
    text: Callable[[float], str] = lambda value: f"{value:,}",
) -> LaneChart:
    """Rows of rising values from 0 on, over one axis of log(1 + value).

    `marks`: value → what to write below it; those beyond the largest value are left out.
    """
    top = max((values[-1] for values in rows.values()), default=0) or 1

    def at(value: int) -> float:
        return 100 * math.log1p(value) / math.log1p(top)

    return LaneChart(
        [
            Lane(name, [at(value) for value in values], [text(value) for value in values])
            for name, values in rows.items()
        ],
        [Mark(at(value), word) for value, word in marks.items() if value <= top],
    )


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Round numbers in even steps of 1, 2 or 5 x 10^n, from at most `low` to at least `high`."""
    span = max(high - low or abs(high) or 1, _LEAST_SPAN)
    power = 10.0 ** math.floor(math.log10(span / _MOST_TICKS))
    # The last of the steps is always enough, but for what floating point makes of it.
    step = next((s * power for s in _STEPS if s * power * _MOST_TICKS >= span), 10 * power)
    if whole:
        step = max(1.0, step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * n for n in range(first, max(last, first + 1) + 1)]


def compact(number: float) -> str:
    """7, 1.2k, 20k, 3M: a number that has little room."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"
