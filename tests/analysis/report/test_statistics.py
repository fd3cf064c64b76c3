"""The arithmetic of percentiles, shares, concentration and time zones, for any input."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discord_lora.analysis.report.activity import check_timezone, measure_activity
from discord_lora.analysis.report.columns import columns_of
from discord_lora.analysis.report.findings import percent
from discord_lora.analysis.report.statistics import (
    distribution,
    fewest_for_half,
    gini,
    herfindahl,
    nearest_rank,
    part,
)
from discord_lora.console import UserError
from fakes import say

WHOLE = st.lists(st.integers(0, 10**9), min_size=1, max_size=200)
COUNTS = st.lists(st.integers(1, 10**6), min_size=1, max_size=200).map(np.array)
ZONES = ("UTC", "Europe/Berlin", "America/St_Johns", "Asia/Kathmandu", "Pacific/Apia")
MOMENTS = st.datetimes(datetime(1995, 1, 1), datetime(2037, 1, 1)).map(
    lambda moment: moment.replace(tzinfo=UTC)
)


@given(WHOLE, st.integers(1, 100))
def test_a_percentile_is_the_smallest_value_with_enough_below(values, of_hundred):
    found = nearest_rank(np.sort(values), of_hundred)
    below = sum(value <= found for value in values)
    assert found in values
    assert Fraction(below, len(values)) >= Fraction(of_hundred, 100)
    smaller = [value for value in values if value < found]
    assert Fraction(len(smaller), len(values)) < Fraction(of_hundred, 100)


@given(WHOLE)
def test_percentiles_grow_and_the_mean_is_exact(values):
    found = distribution(values)
    assert min(values) <= found.median <= found.p90 <= found.p95 <= found.p99 <= found.longest
    assert found.mean == sum(values) / len(values)


def test_nothing_has_no_distribution():
    assert distribution([]) is None


@given(COUNTS)
def test_concentration_stays_within_its_bounds(counts):
    n = len(counts)
    assert 1 / n - 1e-12 <= herfindahl(counts) <= 1 + 1e-12
    assert 0 <= gini(counts) < 1
    assert 1 <= fewest_for_half(counts) <= n // 2 + 1
    assert herfindahl(counts * 3) == pytest.approx(herfindahl(counts))
    assert gini(counts * 3) == pytest.approx(gini(counts))


@given(COUNTS)
def test_shares_add_up_to_one(counts):
    total = int(counts.sum())
    assert sum(part(count, total).share for count in counts) == pytest.approx(1)
    assert part(0, 0).share == 0


def test_known_concentrations():
    assert gini(np.array([5, 5, 5])) == 0
    assert gini(np.array([1, 3])) == pytest.approx(0.25)
    assert herfindahl(np.array([6, 3, 1])) == pytest.approx(0.46)
    assert fewest_for_half(np.array([6, 3, 1])) == 1
    assert fewest_for_half(np.array([4, 3, 3])) == 2


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0.0 %"), (0.0004, "under 0.1 %"), (0.004, "0.4 %"), (0.0996, "10 %"), (0.61, "61 %")],
)
def test_shares_as_people_write_them(share, text):
    assert percent(share) == text


@given(st.lists(MOMENTS, min_size=1, max_size=30), st.sampled_from(ZONES))
def test_hours_weekdays_and_months_are_the_local_ones(moments, zone):
    start = say("Ada").timestamp
    messages = [say("Ada", minute=(moment - start) / timedelta(minutes=1)) for moment in moments]
    found = measure_activity(columns_of(messages), zone)
    local = [message.timestamp.astimezone(ZoneInfo(zone)) for message in messages]
    hours, days = Counter(it.hour for it in local), Counter(it.weekday() for it in local)
    assert found.hours == [hours[hour] for hour in range(24)]
    assert found.weekdays == [days[day] for day in range(7)]
    assert Counter({it.month: it.messages for it in found.months}) == Counter(
        f"{it:%Y-%m}" for it in local
    )
    names = [it.month for it in found.months]
    assert names == sorted(set(names))
    assert names[0] == f"{min(local):%Y-%m}"


def test_an_unknown_zone_is_told_with_an_example():
    check_timezone("Europe/Berlin")
    with pytest.raises(UserError, match="Mars/Base is no time zone; write one such as"):
        check_timezone("Mars/Base")
