"""Recognises the lines that `prepare_training_data.py` itself writes, to read them at once.

Such a line has our keys in our order with values of the right type. It means the same to every
JSON reader, so polars may take it: in one go with thousands of others, a tenth of the time.
Whatever else a line may be (other keys, other dates, a lone surrogate, an unpaired quote) is no
plain line and is left to the careful reader of `messages/`.
"""

from typing import Final

import polars as pl

_ESCAPE = (
    r'\\(?:["\\/bfnrt]'
    r"|u(?:[0-9a-cA-CefEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}"
    r"|[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))"
)
"""A JSON escape; a surrogate only as one of a pair."""

_TEXT = rf'(?:[^"\\\x00-\x1f]|{_ESCAPE})*'
_VISIBLE = r'(?:[^\s"\\\x00-\x1f]|\\["\\])'
_ID = f"{_VISIBLE}+"
_NAME = f"{_VISIBLE}(?:{_TEXT}{_VISIBLE})?"
"""Nothing that the careful reader would trim off."""

_MOMENT = r"(?:199\d|2[01]\d\d)-\d\d-\d\dT(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?\+00:00"
_FLAG = "(?:true|false)"
_VALUES: Final = {
    "id": f'"{_ID}"',
    "guild": f'"(?:{_NAME})?"',
    "channel_id": f'"{_ID}"',
    "channel": f'"{_NAME}"',
    "timestamp": f'"{_MOMENT}"',
    "author_id": f'"{_ID}"',
    "author": f'"{_NAME}"',
    "content": f'"{_TEXT}"',
    "username": f'"(?:{_NAME})?"',
    "reply_to": f'(?:null|"{_ID}")',
    "reactions": r"(?:0|[1-9]\d{0,17})",
    "is_bot": _FLAG,
    "train": _FLAG,
}
_OPTIONAL = "username"
_TYPES = {"reactions": pl.Int64(), "is_bot": pl.Boolean(), "train": pl.Boolean()}
_READ_AS: Final = {key: _TYPES.get(key, pl.String()) for key in _VALUES}


def _pattern() -> str:
    members = []
    for key, value in _VALUES.items():
        comma = "" if key == "id" else ", ?"
        member = f'{comma}"{key}": ?{value}'
        members.append(f"(?:{member})?" if key == _OPTIONAL else member)
    return r"^\{" + "".join(members) + r"\}[ \t\r]*$"


PLAIN_LINE: Final = _pattern()


def are_plain(lines: pl.Series) -> pl.Series:
    """Which of `lines` have the shape of our own; a date in it may still not exist."""
    return lines.str.contains(PLAIN_LINE)


def read_plain(lines: bytes) -> pl.DataFrame:
    """Plain lines as columns, one row a line; `timestamp` is null where there is no such day."""
    frame = pl.read_ndjson(lines, schema=_READ_AS)
    moment = pl.col("timestamp").str.to_datetime(
        "%Y-%m-%dT%H:%M:%S%.f%:z", time_unit="us", strict=False
    )
    return frame.with_columns(moment, pl.col("username").fill_null(""))
