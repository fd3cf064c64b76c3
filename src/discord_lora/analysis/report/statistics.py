"""The small arithmetic of the report: percentiles, shares, concentration."""

import numpy as np
import numpy.typing as npt

from discord_lora.analysis.report.data_report import Distribution, Part

Whole = npt.NDArray[np.int64]


def distribution(values: npt.ArrayLike) -> Distribution | None:
    """Mean, percentiles and largest of whole numbers; None when there are none."""
    ordered = np.sort(np.asarray(values, dtype=np.int64))
    if not len(ordered):
        return None
    median, p90, p95, p99 = (nearest_rank(ordered, percent) for percent in (50, 90, 95, 99))
    total = int(ordered.sum())
    mean = total / len(ordered)
    return Distribution(len(ordered), total, mean, median, p90, p95, p99, int(ordered[-1]))


def nearest_rank(ordered: Whole, percent: int) -> int:
    """The smallest of the sorted values that at least `percent` % of them do not exceed.

    Always a value that occurs; percent is from 1 to 100. Computed in whole numbers: 0.95 x 20 is
    not 19 in floating point on every machine.
    """
    return int(ordered[-(-percent * len(ordered) // 100) - 1])


def part(count: int | np.integer, of: int | np.integer) -> Part:
    """A count with its share."""
    return Part(int(count), int(count) / int(of) if of else 0.0)


def herfindahl(counts: Whole) -> float:
    """The sum of squared shares: 1 for one author, 1/n for n that write the same (Hirschman 1945).

    It is the likelihood that two messages picked at random are by the same author.
    """
    shares = counts / counts.sum()
    return float((shares**2).sum())


def gini(counts: Whole) -> float:
    """Gini coefficient: 0 when all write the same number, towards 1 when one writes everything.

    From the sorted counts x_1 <= ... <= x_n: 2 sum(i x_i) / (n sum(x)) - (n + 1) / n.
    """
    ordered = np.sort(counts).astype(np.float64)
    n = len(ordered)
    ranks = np.arange(1, n + 1)
    value = 2 * (ranks * ordered).sum() / (n * ordered.sum()) - (n + 1) / n
    return float(max(0.0, value))


def fewest_for_half(counts: Whole) -> int:
    """How few of the largest counts make up half of all."""
    running = np.cumsum(np.sort(counts)[::-1])
    return int(np.searchsorted(running, running[-1] / 2)) + 1
