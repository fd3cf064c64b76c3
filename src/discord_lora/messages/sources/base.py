"""What every source yields, whatever format it reads."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from discord_lora.messages.record import ReadyConversation, Reject


class Kind(Enum):
    """What a message is, as far as learning from it goes."""

    TALK = 0
    SYSTEM = 1
    INTERACTION = 2
    """An answer to a slash command or context menu."""
    FORWARD = 3
    """Somebody else's words, passed on."""


@dataclass(frozen=True, slots=True)
class Channel:
    """Where messages were written. `id` is the key; without one it is the name."""

    guild: str
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Export:
    """The header of one export: comes before its messages.

    `exported_at` is in µs since 1970; without a date it is one of the UNDATED values, which
    order the formats from poor to rich, so that of two undated copies the richer one wins.
    """

    channel: Channel
    exported_at: int


UNDATED_DATA_PACKAGE = 0
UNDATED_CSV = 1_000
UNDATED_HTML = 2_000
UNDATED_JSON = 3_000


@dataclass(slots=True)
class Person:
    """A person under the names that one export knows; `id` is who it is."""

    id: str
    username: str
    nickname: str


@dataclass(slots=True)  # not frozen: that would triple the cost of making one
class ParsedMessage:
    """One message as its source has it, not cleaned yet.

    `time` is in µs since 1970, 0 when neither a date nor the id tells it.
    """

    id: str
    channel: Channel
    time: int
    author: Person
    content: str
    kind: Kind = Kind.TALK
    is_bot: bool = False
    is_reply: bool = False
    reply_to: str | None = None
    reactions: int = 0
    has_attachments: bool = False
    mentions: tuple[Person, ...] = ()
    """People whose rendered `@nickname` may stand in the content."""
    train: bool = True


@dataclass(frozen=True, slots=True)
class Warned:
    """Something the user should know about a file that was read all the same."""

    text: str


SourceItem = Export | ParsedMessage | ReadyConversation | Reject | Warned
SourceItems = Iterator[SourceItem]

_FILE_NAME = re.compile(r"(?P<guild>.+?) - (?:.+ - )?(?P<channel>.+?) \[(?P<id>\d{5,20})\]")
_ID_AT_THE_END = re.compile(r"(?P<channel>.*?)[_ -]*\[?(?P<id>\d{15,20})\]?")
_PARTITION = re.compile(r" ?\[(?:part \d+|\d+ of \d+)\]$")
_DATE_RANGE = re.compile(r" ?\((?:after|before|\d{4}-\d\d-\d\d to) [^()]*\)$")


def channel_from_file_name(stem: str) -> Channel:
    """The channel that DiscordChatExporter named a file after, for formats without a header.

    `Guild - Category - channel [id] (after 2024-01-01) [part 2]` is its pattern; any other name
    is taken as the channel's name.
    """
    stem = _DATE_RANGE.sub("", _PARTITION.sub("", stem))
    if match := _FILE_NAME.match(stem):
        return Channel(match["guild"], match["id"], match["channel"])
    if match := _ID_AT_THE_END.fullmatch(stem):
        return Channel("", match["id"], match["channel"] or match["id"])
    return Channel("", stem, stem)
