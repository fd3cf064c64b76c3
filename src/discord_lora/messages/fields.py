"""Reading one value of a foreign record: generous with types, never guessing meaning."""

import re
from collections.abc import Mapping
from typing import Any

_SURROGATES = re.compile("[\ud800-\udfff]")
_DISCORD_EPOCH_MS = 1_420_070_400_000  # 2015-01-01, from Discord's snowflake reference
_SMALLEST_SNOWFLAKE = 10**15
_LARGEST_SNOWFLAKE = 2**63


class UnreadableValue(ValueError):  # noqa: N818 - reads as what it is in an except clause
    """A value that cannot be what its place asks for; the text is the reason, without data."""


def as_text(value: object) -> str:
    """The text in `value`: a string, a number, nothing, or a list of text pieces.

    Raises UnreadableValue for anything else.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list):
        return "".join(_text_piece(piece) for piece in value)
    raise UnreadableValue(f"the text is {kind_of(value)}")


def _text_piece(piece: object) -> str:
    """One piece of a split text: Telegram and OpenAI write `{"type": …, "text": …}`."""
    if isinstance(piece, Mapping) and isinstance(piece.get("text"), str):
        return str(piece["text"])
    if isinstance(piece, str):
        return piece
    raise UnreadableValue(f"the text is a list that holds {kind_of(piece)}")


def without_surrogates(value: Any) -> Any:
    """`value` with every lone surrogate, which no file can hold, made U+FFFD.

    Only a JSON escape such as `"\\ud83d"` can bring one in, and orjson refuses those.
    """
    if isinstance(value, str):
        return value if value.isascii() else _SURROGATES.sub("\ufffd", value)
    if isinstance(value, list):
        return [without_surrogates(entry) for entry in value]
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(v) for key, v in value.items()}
    return value


def as_id(value: object) -> str:
    """An id as a string: "" when there is none. 64-bit numbers keep their digits."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return ""


def as_name(value: object) -> str:
    """A name as a string: "" for everything that is not one."""
    if isinstance(value, str):
        return value.strip()
    return as_id(value)


def as_count(value: object) -> int:
    """How many reactions: a number, or Discord's list of `{"emoji": …, "count": n}`."""
    if not value:
        return 0
    if isinstance(value, list):
        return sum(_one_count(entry) for entry in value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return max(0, int(value)) if abs(value) < _LARGEST_SNOWFLAKE else 0
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value[:18])
    return 0


def _one_count(entry: object) -> int:
    count = entry.get("count", 1) if isinstance(entry, Mapping) else 1
    return max(0, count) if isinstance(count, int) else 1


def as_flag(value: object, default: bool) -> bool:
    """A yes or no that may have been written as a word or a number."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return value != 0
    if isinstance(value, str) and value.strip():
        return value.strip().lower() in {"true", "yes", "1", "t", "y"}
    return default


def as_mapping(value: object) -> Mapping[str, Any]:
    """`value` when it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def as_list(value: object) -> list[Any]:
    """`value` when it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def kind_of(value: object) -> str:
    """The JSON name of a value's type, for a reason that quotes no data."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, int | float):
        return "a number"
    return "a list" if isinstance(value, list) else "an object"


def snowflake_milliseconds(message_id: str) -> int | None:
    """When Discord made this id, in ms since 1970; None when it is no Discord id."""
    if not (message_id.isdecimal() and message_id.isascii() and len(message_id) < 20):
        return None
    number = int(message_id)
    if not _SMALLEST_SNOWFLAKE <= number < _LARGEST_SNOWFLAKE:
        return None
    return (number >> 22) + _DISCORD_EPOCH_MS
