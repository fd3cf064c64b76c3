"""Dates as the exporters of nine years wrote them, read into aware UTC datetimes."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from enum import Enum

from discord_lora.messages.fields import snowflake_milliseconds

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_MILLISECONDS = 10**11  # as seconds this would be the year 5138
_FIRST_MICROSECONDS = 10**14
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_TIME = r"(?:[,\s]+(?:at\s+)?(\d{1,2})[:.](\d{2})(?:[:.](\d{2})(?:[.,]\d+)?)?\s*([ap])?\.?m?\.?)?"
_NUMERIC = re.compile(rf"(\d{{1,2}})[./-](\d{{1,2}})[./-](\d{{4}}|\d{{2}}){_TIME}", re.I)
_DAY_MONTH = re.compile(
    rf"(\d{{1,2}})[-\s.]+([a-z]{{3}})[a-z]*[-\s.,]+(\d{{4}}|\d{{2}}){_TIME}", re.I
)
_MONTH_DAY = re.compile(rf"([a-z]{{3}})[a-z]*\.?\s+(\d{{1,2}}),?\s+(\d{{4}}){_TIME}", re.I)


class DateOrder(Enum):
    """Which comes first in a date such as 3/4/2019."""

    DAY_FIRST = "day/month/year"
    MONTH_FIRST = "month/day/year"


def parse_timestamp(value: object, order: DateOrder = DateOrder.MONTH_FIRST) -> datetime | None:
    """`value` as a UTC datetime: ISO 8601, epoch seconds to µs, or a written-out date.

    A date without a zone is taken as UTC. None when it is no date, or one at which nobody
    chatted (before 1990, after 2199).
    """
    moment: datetime | None = None
    if isinstance(value, str):
        try:
            moment = _as_utc(datetime.fromisoformat(value))
        except ValueError:
            moment = _parse_text(value.strip(), order)
        except OverflowError:
            return None
    elif isinstance(value, int | float) and not isinstance(value, bool):
        moment = _from_epoch(value)
    return moment if moment is not None and 1990 <= moment.year < 2200 else None


def snowflake_time(message_id: str) -> datetime | None:
    """The moment a Discord id was made (exact to the ms), None for any other id."""
    milliseconds = snowflake_milliseconds(message_id)
    return None if milliseconds is None else _EPOCH + timedelta(milliseconds=milliseconds)


def to_microseconds(moment: datetime) -> int:
    """An aware datetime as whole microseconds since 1970 (exact, unlike a float)."""
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def from_microseconds(microseconds: int) -> datetime:
    """The inverse of `to_microseconds`."""
    return _EPOCH + timedelta(microseconds=microseconds)


def decide_date_order(values: Iterable[object]) -> tuple[DateOrder, bool]:
    """How one file writes its dates, from its own rows; False when nothing decides it.

    Stops at the first value that settles it, so a file of ISO dates costs one look.
    """
    hint: DateOrder | None = None
    for value in values:
        match = _NUMERIC.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            if parse_timestamp(value) is not None:
                return DateOrder.MONTH_FIRST, True
            continue
        first, second = int(match[1]), int(match[2])
        if first > 12 or second > 12:
            return (DateOrder.DAY_FIRST if first > 12 else DateOrder.MONTH_FIRST), True
        if hint is None:
            # Only English locales write AM and PM; most that write neither put the day first.
            hint = DateOrder.MONTH_FIRST if match[7] else DateOrder.DAY_FIRST
    return hint or DateOrder.MONTH_FIRST, hint is None


def undecided_dates(file: str, order: DateOrder) -> str:
    """The warning for a file whose dates no row decides."""
    return (
        f"{file}: dates such as 3/4/2019 can be read two ways and no row decides it; "
        f"they were read as {order.value}."
    )


def _as_utc(moment: datetime) -> datetime:
    zone = moment.tzinfo
    if zone is UTC:
        return moment
    return moment.replace(tzinfo=UTC) if zone is None else moment.astimezone(UTC)


def _from_epoch(number: float) -> datetime | None:
    if abs(number) >= _FIRST_MICROSECONDS:
        number /= 1_000_000
    elif abs(number) >= _FIRST_MILLISECONDS:
        number /= 1_000
    try:
        return _EPOCH + timedelta(seconds=number)
    except (OverflowError, ValueError):
        return None


def _parse_text(text: str, order: DateOrder) -> datetime | None:
    if re.fullmatch(r"-?\d{9,17}(\.\d+)?", text, re.ASCII):
        return _from_epoch(float(text) if "." in text else int(text))
    try:
        return _as_utc(datetime.fromisoformat(text.removesuffix(" UTC").removesuffix(" GMT")))
    except (ValueError, OverflowError):
        pass
    if match := _NUMERIC.fullmatch(text):
        first, second = int(match[1]), int(match[2])
        day_first = first > 12 or (second <= 12 and order is DateOrder.DAY_FIRST)
        day, month = (first, second) if day_first else (second, first)
        return _build(match, match[3], month, day)
    if match := _DAY_MONTH.fullmatch(text):
        return _build(match, match[3], _month_number(match[2]), int(match[1]))
    if match := _MONTH_DAY.fullmatch(text):
        return _build(match, match[3], _month_number(match[1]), int(match[2]))
    return None


def _month_number(name: str) -> int:
    return _MONTHS.index(name.lower()) + 1 if name.lower() in _MONTHS else 0


def _build(match: re.Match[str], year: str, month: int, day: int) -> datetime | None:
    hour, minute, second = (int(match[group] or 0) for group in (4, 5, 6))
    if match[7]:
        hour = hour % 12 + (12 if match[7].lower() == "p" else 0)
    full_year = int(year) + (2000 if len(year) == 2 else 0)
    try:
        return datetime(full_year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
