"""Dates of nine years of exporters."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discord_lora.messages.timestamps import (
    DateOrder,
    decide_date_order,
    from_microseconds,
    parse_timestamp,
    snowflake_time,
    to_microseconds,
)

MOMENTS = st.datetimes(datetime(1990, 1, 2), datetime(2199, 12, 30), timezones=st.just(UTC))
ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@pytest.mark.parametrize(
    "text",
    [
        "19-Oct-18 01:34 PM", "19-Oct-2018 13:34", "10/19/2018 1:34 PM", "19/10/2018 13:34",
        "19.10.2018 13:34", "19.10.18 13:34:00", "Oct 19, 2018 1:34 PM", "19 October 2018 13:34",
        "October 19, 2018 at 1:34 pm", "2018-10-19 13:34", "2018-10-19T13:34:00.0000000+00:00",
        "2018-10-19T13:34Z", "2018-10-19 15:34+02:00", "1539956040", "1539956040000",
        " 2018-10-19 13:34:00 UTC ",
    ],
)  # fmt: skip
def test_the_same_minute_in_many_spellings(text: str) -> None:
    assert parse_timestamp(text) == datetime(2018, 10, 19, 13, 34, tzinfo=UTC)


@pytest.mark.parametrize(
    "value",
    ["", "soon", "32/13/2019 10:00", "19-Foo-18 01:34 PM", "0001-01-01T00:00:00+14:00", None, [],
     {}, True, float("nan"), float("inf"), 10**40, -5, "9" * 17, "9999-12-31T23:59:59-14:00"],
)  # fmt: skip
def test_what_is_no_date_is_none(value: object) -> None:
    assert parse_timestamp(value) is None


@given(MOMENTS, ZONES)
def test_a_local_time_is_the_same_moment_in_utc(moment: datetime, zone: timezone) -> None:
    parsed = parse_timestamp(moment.astimezone(zone).isoformat())
    assert parsed == moment
    assert parsed is not None and parsed.tzinfo is UTC


@given(MOMENTS)
def test_microseconds_are_exact(moment: datetime) -> None:
    assert from_microseconds(to_microseconds(moment)) == moment


@given(st.text(max_size=30))
def test_no_text_gives_a_traceback(text: str) -> None:
    parsed = parse_timestamp(text)
    assert parsed is None or parsed.tzinfo is UTC


def test_noon_and_midnight() -> None:
    assert parse_timestamp("1-Jan-20 12:00 AM") == datetime(2020, 1, 1, 0, 0, tzinfo=UTC)
    assert parse_timestamp("1-Jan-20 12:00 PM") == datetime(2020, 1, 1, 12, 0, tzinfo=UTC)


def test_the_first_row_that_settles_it_decides() -> None:
    assert decide_date_order(["1/2/2019", "13/2/2019"]) == (DateOrder.DAY_FIRST, True)
    assert decide_date_order(["1/2/2019", "2/13/2019"]) == (DateOrder.MONTH_FIRST, True)
    assert decide_date_order(["1/2/2019", "2/3/2019"]) == (DateOrder.DAY_FIRST, False)
    assert decide_date_order(["1/2/2019 1:00 AM"]) == (DateOrder.MONTH_FIRST, False)
    assert decide_date_order([None, "2019-01-01"])[1]
    assert decide_date_order([])[1]


def test_only_discord_ids_tell_a_time() -> None:
    assert snowflake_time("175928847299117063") == datetime(
        2016, 4, 30, 11, 18, 25, 796_000, tzinfo=UTC
    )
    assert [snowflake_time(text) for text in ("5", "", "x", "9" * 30, "²" * 18)] == [None] * 5
