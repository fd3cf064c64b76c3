"""Curves of a run, smoothed and thinned: the page of 100,000 steps is as short as any other."""

from collections.abc import Sequence

Points = list[tuple[float, float]]
"""(step, value), by rising step."""

MOST_POINTS = 400
"""Of a curve on the page: about one for each two pixels."""

SMOOTHED_OVER = 20
"""The smoothed curve forgets about this share (one so-many-th) of a run."""


def smoothed(points: Sequence[tuple[float, float]]) -> Points:
    """Exponential moving average, its start not drawn towards zero (Kingma and Ba 2015, section 3).

    The more points there are, the more of them count, so that short and long runs look alike.
    """
    keep = 1 - 1 / max(1.0, len(points) / SMOOTHED_OVER)
    average, weight = 0.0, 0.0
    curve: Points = []
    for step, value in points:
        average = keep * average + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        curve.append((step, average / weight))
    return curve


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> Points:
    """At most `most` points: of each stretch its lowest and its highest, so that no spike is lost.

    The first and the last point stay.
    """
    if len(points) <= most:
        return list(points)
    first, *inner, last = points
    stretches = (most - 2) // 2
    kept = [first]
    for n in range(stretches):
        stretch = inner[n * len(inner) // stretches : (n + 1) * len(inner) // stretches]
        low = min(stretch, key=lambda point: point[1])
        high = max(stretch, key=lambda point: point[1])
        kept += sorted({low, high})
    return [*kept, last]
