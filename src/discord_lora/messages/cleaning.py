"""Cleaning as an ordered list of named steps, each of which can be switched."""

import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from discord_lora.messages.mentions import (
    NameOf,
    name_custom_emoji,
    rename_mentions,
    resolve_mentions,
    write_out_timestamps,
)
from discord_lora.messages.sources.base import Kind
from discord_lora.messages.store import StoredMessage

DEFAULT_COMMAND_PREFIXES = "!/"
_SYSTEM, _INTERACTION, _FORWARD = (
    kind.value for kind in (Kind.SYSTEM, Kind.INTERACTION, Kind.FORWARD)
)
_LINK = re.compile(r"<?\bhttps?://[^\s<>]+>?")
_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]"
)
# From the beginning of the spaces only: elsewhere a long run of them would be searched once for
# each of its characters.
_BLANK_LINES = re.compile(r"(?<![ \t])[ \t]*\n(?:[ \t]*\n){2,}")
_LONG_TEXT = 256
_MOST_MARKS = 30
"""On one letter; the Stream-Safe Text Format of UAX #15 allows as many."""


def command_pattern(prefixes: str = DEFAULT_COMMAND_PREFIXES) -> re.Pattern[str]:
    """A message that starts with one of `prefixes` and a word: `!play`, but not `/usr/bin`."""
    if not prefixes:
        return re.compile(r"(?!)")  # matches nothing
    return re.compile(rf"[{re.escape(prefixes)}][A-Za-z][\w-]*(?=\s|$)")


@dataclass(frozen=True)
class CleaningContext:
    """What the steps may ask: names by id, and what a bot command starts with."""

    person_name: NameOf
    channel_name: NameOf
    command: re.Pattern[str] = field(default_factory=command_pattern)


Step = Callable[[StoredMessage, CleaningContext], str | None]


@dataclass(frozen=True)
class CleaningStep:
    """One step: changes the message in place, or returns the reason to drop it.

    `when_off` says what becomes of its messages when the step is skipped.
    """

    name: str
    description: str
    apply: Step
    on_by_default: bool = True
    when_off: Step | None = None


def _drop_system(message: StoredMessage, _: CleaningContext) -> str | None:
    return "system message" if message.kind == _SYSTEM else None


def _drop_bots(message: StoredMessage, _: CleaningContext) -> str | None:
    if message.kind == _INTERACTION:
        return "answer to a slash command"
    return "bot message" if message.is_bot else None


def _bots_are_context(message: StoredMessage, _: CleaningContext) -> str | None:
    if message.is_bot or message.kind == _INTERACTION:
        message.train = False
    return None


def _drop_commands(message: StoredMessage, context: CleaningContext) -> str | None:
    return "bot command" if context.command.match(message.content) else None


def _drop_repeats(message: StoredMessage, _: CleaningContext) -> str | None:
    return "exact repeat" if message.is_repeat else None


def _forwards_are_context(message: StoredMessage, _: CleaningContext) -> str | None:
    if message.kind == _FORWARD:
        message.train = False
    return None


def _normalise_mentions(message: StoredMessage, context: CleaningContext) -> str | None:
    if message.mentions:
        message.content = rename_mentions(message.content, message.mentions, context.person_name)
    message.content = resolve_mentions(message.content, context.person_name, context.channel_name)
    return None


def _normalise_emoji(message: StoredMessage, _: CleaningContext) -> str | None:
    message.content = name_custom_emoji(message.content)
    return None


def _normalise_times(message: StoredMessage, _: CleaningContext) -> str | None:
    message.content = write_out_timestamps(message.content)
    return None


def _drop_links(message: StoredMessage, _: CleaningContext) -> str | None:
    if "http" not in message.content:
        return None
    text = _LINK.sub("", message.content)
    message.content = re.sub(r"[ \t]{2,}", " ", text)
    return None if text.strip() else "only a link"


def _tidy(message: StoredMessage, _: CleaningContext) -> str | None:
    text = message.content.strip()
    message.content = text
    if text.isascii() and text.isprintable():
        return None  # most of a chat: nothing to look for
    if not text.isascii():
        text = _composed(text)
    text = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    message.content = _BLANK_LINES.sub("\n\n", text).strip()
    return None


def _composed(text: str) -> str:
    """NFC; where a letter bears more marks than any writing has, in pieces.

    Sorting the marks takes the square of their number.
    """
    if len(text) <= _LONG_TEXT:
        return unicodedata.normalize("NFC", text)
    pieces, start, marks = [], 0, 0
    for place, char in enumerate(text):
        marks = marks + 1 if unicodedata.combining(char) else 0
        if marks > _MOST_MARKS:
            pieces.append(text[start:place])
            start, marks = place, 1
    pieces.append(text[start:])
    return "".join(unicodedata.normalize("NFC", piece) for piece in pieces)


def _drop_empty(message: StoredMessage, _: CleaningContext) -> str | None:
    if message.content.strip():
        return None
    return "only an attachment" if message.has_attachments else "empty"


STEPS: tuple[CleaningStep, ...] = (
    CleaningStep("system", "drop joins, pins, boosts and other notices of Discord's", _drop_system),
    CleaningStep(
        "bots", "drop bots, webhooks and slash-command answers (skipped: they become context)",
        _drop_bots, when_off=_bots_are_context,
    ),
    CleaningStep("tidy", "trim, remove control characters, at most one blank line", _tidy),
    CleaningStep("commands", "drop what people type to bots: !play, /roll", _drop_commands),
    CleaningStep("forwards", "keep forwarded text as context, never learn it",
                 _forwards_are_context),
    CleaningStep("mentions", "<@1>, <#2>, <@&3>, @OldName become @name, #channel, @role",
                 _normalise_mentions),
    CleaningStep("emoji", "<:LUL:1> becomes :LUL:", _normalise_emoji),
    CleaningStep("times", "<t:1700000000> becomes 2023-11-14 22:13 UTC", _normalise_times),
    CleaningStep("links", "remove links (off unless --drop-links)", _drop_links,
                 on_by_default=False),
    CleaningStep("empty", "drop messages without text, such as a lone picture", _drop_empty),
    CleaningStep("repeats", "drop the same text by the same person within ten minutes",
                 _drop_repeats),
)  # fmt: skip


class Cleaner:
    """The chosen steps, in their order."""

    def __init__(
        self, context: CleaningContext, skip: Collection[str] = (), *, drop_links: bool = False
    ) -> None:
        self._context = context
        self._steps: Sequence[Step] = list(_chosen(skip, drop_links))

    def clean(self, message: StoredMessage) -> str | None:
        """Clean in place; the reason when the message is to be dropped, else None."""
        for step in self._steps:
            if reason := step(message, self._context):
                return reason
        return None


def _chosen(skip: Collection[str], drop_links: bool) -> "list[Step]":
    chosen: list[Step] = []
    for step in STEPS:
        on = (step.on_by_default or drop_links) and step.name not in skip
        action = step.apply if on else step.when_off
        if action is not None:
            chosen.append(action)
    return chosen
