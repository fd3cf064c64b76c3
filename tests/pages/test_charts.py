"""The geometry of charts: heights are proportional, nothing leaves the drawing, ticks are round."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discord_lora.pages.charts import column_chart, compact, lane_chart, line_chart, ticks

FIGURES = st.floats(-1e9, 1e9, allow_nan=False)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=60))
def test_columns_are_as_high_as_their_counts_and_stay_apart(counts):
    chart = column_chart({str(n): count for n, count in enumerate(counts)}, {})
    assert [column.value for column in chart.columns] == counts
    tallest = max(chart.columns, key=lambda column: column.value)
    assert tallest.height <= 100 + 1e-9
    for column in chart.columns:
        assert math.isclose(column.height * tallest.value, column.value * tallest.height)
    for left, right in pairwise(chart.columns):
        assert left.x + left.width < right.x
    assert chart.columns[-1].x + chart.columns[-1].width <= 100


def test_a_column_of_the_highest_tick_fills_the_chart():
    chart = column_chart({"a": 40, "b": 10, "c": 0}, {0.5: "a"}, pale=1)
    assert [column.height for column in chart.columns] == [100, 25, 0]
    assert [column.is_pale for column in chart.columns] == [True, False, False]
    assert [mark.text for mark in chart.scale] == ["0", "10", "20", "30", "40"]
    assert chart.marks[0].at == pytest.approx(100 / 6)


@given(FIGURES, FIGURES, st.booleans())
def test_ticks_are_even_and_hold_what_is_drawn(one, other, whole):
    low, high = sorted((one, other))
    found = ticks(low, high, whole=whole)
    slack = 1e-6 * max(1, abs(low), abs(high))
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
    assert 2 <= len(found) <= 7
    steps = [right - left for left, right in pairwise(found)]
    assert all(math.isclose(step, steps[0], rel_tol=1e-6, abs_tol=slack) for step in steps)
    assert not whole or all(tick == int(tick) for tick in found)


def test_ticks_where_there_is_no_span():
    assert ticks(0, 0, whole=True) == [0, 1]
    assert ticks(0, 1, whole=True) == [0, 1]
    assert ticks(2.5, 2.5)[0] <= 2.5 <= ticks(2.5, 2.5)[-1]


def test_ticks_of_numbers_that_can_hardly_be_told_from_nothing():
    assert ticks(0.0, 5e-324)[-1] >= 5e-324
    assert ticks(5e-324, 5e-324)[0] <= 5e-324


def test_lines_run_from_edge_to_edge_and_upwards_is_more():
    chart = line_chart({"loss": [(0, 3.0), (50, 2.0), (100, 1.0)], "held out": [(100, 1.5)]})
    assert chart.series[0].points.split()[0].startswith("0.00,")
    assert chart.series[1].points.startswith("100.00,")
    heights = [y for _, y, _ in chart.series[0].dots]
    assert heights == sorted(heights)
    assert chart.series[0].dots[1][2] == "loss, 50: 2"
    assert [mark.text for mark in chart.marks] == ["0", "50", "100"]


def test_a_long_line_has_no_dots():
    assert line_chart({"loss": [(n, 1 / (n + 1)) for n in range(500)]}).series[0].dots == []


def test_lanes_keep_the_order_of_their_values():
    chart = lane_chart({"a": (0, 9, 99, 999), "b": (1, 2, 3, 4)}, {0: "0", 10: "10", 1000: "1k"})
    assert chart.lanes[0].ends == pytest.approx([0, 100 / 3, 200 / 3, 100])
    assert chart.lanes[1].ends == sorted(chart.lanes[1].ends)
    assert [mark.text for mark in chart.marks] == ["0", "10"]
    assert lane_chart({"a": (0, 0, 0, 0)}, {0: "0"}).lanes[0].ends == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (7, "7"), (0.25, "0.25"), (999, "999"), (1_200, "1.2k"), (20_000, "20k"),
     (3e6, "3M"), (2.5e9, "2.5G")],
)  # fmt: skip
def test_numbers_with_little_room(number, text):
    assert compact(number) == text
