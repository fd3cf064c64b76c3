"""Discord's tokens in a text (`<@1>`, `<:LUL:2>`, `<t:3>`) made readable, names consistent."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

NameOf = Callable[[str], str | None]

_UNKNOWN_MEMBER = "@someone"
_UNKNOWN_CHANNEL = "#channel"
_ROLE = "@role"
_TOKEN = re.compile(
    r"<(?:@!?(?P<user>\d+)|@&(?P<role>\d+)|#(?P<channel>\d+)|/(?P<command>[^:<>\n]{1,80}):\d+)>"
)
_CUSTOM_EMOJI = re.compile(r"<a?:(\w{1,40}):\d+>")
_TIMESTAMP = re.compile(r"<t:(-?\d{1,12})(?::([tTdDfFRsS]))?>")
_TIME_FORMATS = {"t": "%H:%M UTC", "T": "%H:%M:%S UTC", "d": "%Y-%m-%d", "D": "%Y-%m-%d"}


def resolve_mentions(text: str, person_name: NameOf, channel_name: NameOf) -> str:
    """Raw tokens → `@name`, `#channel`, `@role`, `/command`; strangers get a neutral word."""

    def readable(match: re.Match[str]) -> str:
        if user := match["user"]:
            name = person_name(user)
            return f"@{name}" if name else _UNKNOWN_MEMBER
        if channel := match["channel"]:
            name = channel_name(channel)
            return f"#{name}" if name else _UNKNOWN_CHANNEL
        return f"/{match['command']}" if match["command"] else _ROLE

    return _TOKEN.sub(readable, text) if "<" in text else text


def rename_mentions(text: str, mentions: Sequence[tuple[str, str]], person_name: NameOf) -> str:
    """`@OldNick` of the people in `mentions` (id, name in the text) → `@` their settled name."""
    renamed = {
        shown: name
        for person_id, shown in mentions
        if shown and (name := person_name(person_id)) is not None
    }
    if all(shown == name for shown, name in renamed.items()):
        return text
    # Longest first, since "@Ann" begins "@Anna"; one pass, so that no new name is renamed again.
    names = sorted(renamed, key=len, reverse=True)
    pattern = "@(" + "|".join(re.escape(name) for name in names) + ")"
    return re.sub(pattern, lambda match: f"@{renamed[match[1]]}", text)


def name_custom_emoji(text: str) -> str:
    """`<a:LUL:123>` → `:LUL:`."""
    return _CUSTOM_EMOJI.sub(r":\1:", text) if "<" in text else text


def write_out_timestamps(text: str) -> str:
    """`<t:1700000000:R>` → `2023-11-14 22:13 UTC`."""
    return _TIMESTAMP.sub(_written_time, text) if "<t:" in text else text


def _written_time(match: re.Match[str]) -> str:
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(match[1]))
    except OverflowError:
        return "some time"
    return moment.strftime(_TIME_FORMATS.get(match[2] or "f", "%Y-%m-%d %H:%M UTC"))
