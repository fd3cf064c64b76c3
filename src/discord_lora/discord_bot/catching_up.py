"""What happened while the bot was away: history → memory, and mentions that nobody answered.

There is no database. Discord's own history says what was answered: a message of ours that replies
to it, or to a later one of the same member (who then was answered once for both), or the reaction
that says that it was heard.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import discord

from discord_lora.discord_bot.channel_memory import MESSAGES_PER_CHANNEL, ChannelMemory
from discord_lora.discord_bot.delivery import FAILED_REQUEST, may_pass
from discord_lora.discord_bot.from_discord import seen_message
from discord_lora.discord_bot.seen_message import SeenMessage
from discord_lora.discord_bot.signs import BUSY_SIGN, HEARD_SIGN

log = logging.getLogger(__name__)

MISSED_HOURS = 6
"""Older mentions stay unanswered: by then the talk has moved on."""

PAGE = 100
MOST_MESSAGES = 4000
"""Fetched of a channel, in forty requests. Few channels write that many in those hours."""

AT_ONCE = 4
"""Channels looked through at the same time; Discord allows fifty requests a second in all."""

RETRY_SECONDS = (0.5, 1, 2, 4)

Missed = Callable[[discord.Message, SeenMessage, bool], Awaitable[bool]]
"""Gets a message that was not answered, and whether it has the hourglass; says if it will be."""

Gone = Callable[[int, Iterable[int]], Awaitable[None]]
"""Gets a channel's id, and those of messages that were deleted there unseen."""

Page = list[tuple[discord.Message, SeenMessage]]

Name = Callable[[Sequence[discord.Message]], Awaitable[None]]
"""Gives the authors of a history the names that they have in the server."""


class History:
    """Reads each channel once after each start and each new session."""

    def __init__(
        self,
        memory: ChannelMemory,
        *,
        bot_id: int,
        is_known: Callable[[str], bool],
        missed: Missed,
        gone: Gone,
        name: Name,
        clock: Callable[[], datetime],
    ) -> None:
        """
        Args:
            is_known: whether a message, by id, was heard when it was written.
            missed: called in order for what was not.
            gone: called for what was remembered and stands there no longer.
            name: called for what was fetched, before anything is made of it.
        """
        self.memory = memory
        self.bot_id = bot_id
        self.is_known = is_known
        self.missed = missed
        self.gone = gone
        self.name = name
        self.clock = clock
        self._round = 0
        self._is_connected = False
        self._read: dict[int, int] = {}
        """By channel: the round in which it was read last."""
        self._gapless: dict[int, int] = {}
        """By channel: the message up to which nothing was missed. Unknown after a start."""
        self._reading: dict[int, asyncio.Lock] = {}

    def connection_lost(self) -> None:
        """What is written from now on is missed. What comes in again later says nothing of that."""
        if self._is_connected:
            for channel_id in self._read_in_this_round():
                self._gapless[channel_id] = int(self.memory.newest_id(str(channel_id)) or 0)
        self._is_connected = False
        self._round += 1

    def begin_anew(self) -> None:
        """The connection is there. Something may have been missed everywhere."""
        self._is_connected = True
        self._round += 1

    def forget(self, channel_id: int) -> None:
        """That it was read counts no longer: the next time it is read as after a start."""
        self._read.pop(channel_id, None)
        self._gapless.pop(channel_id, None)

    async def look_through(self, channels: Iterable[Any]) -> None:
        """Restore all of these, the liveliest first."""
        since = self.clock() - timedelta(hours=MISSED_HOURS)
        lively = [it for it in channels if _last_message_time(it) > since]
        lively.sort(key=_last_message_time, reverse=True)
        free = asyncio.Semaphore(AT_ONCE)

        async def one(channel: Any) -> None:
            async with free:
                await self.restore(channel)

        await asyncio.gather(*map(one, lively))

    async def restore(self, channel: Any) -> None:
        """Know what the channel shows, unless that was read in this round already."""
        lock = self._reading.setdefault(channel.id, asyncio.Lock())
        try:
            async with lock:
                if self._read.get(channel.id) != self._round:
                    await self._read_anew(channel)
        finally:
            self._reading.pop(channel.id, None)

    def _read_in_this_round(self) -> list[int]:
        return [it for it, number in self._read.items() if number == self._round]

    async def _read_anew(self, channel: Any) -> None:
        this_round = self._round
        try:
            page = await self._fetch(channel)
        except FAILED_REQUEST as error:
            log.warning("the history of channel %s cannot be read: %s", channel.id, error)
            if may_pass(error):
                return
            page = []
        self._read[channel.id] = this_round
        await self._take_in(str(channel.id), page[::-1])

    async def _fetch(self, channel: Any) -> Page:
        """Newest first."""
        for seconds in RETRY_SECONDS:
            try:
                return await self._pages(channel)
            except FAILED_REQUEST as error:
                if not may_pass(error):
                    raise
            await asyncio.sleep(seconds)
        return await self._pages(channel)

    async def _pages(self, channel: Any) -> Page:
        since = self.clock() - timedelta(hours=MISSED_HOURS)
        gapless = self._gapless.get(channel.id, 0)
        found: Page = []
        page: list[discord.Message] = []
        async for message in channel.history(limit=MOST_MESSAGES):
            page.append(message)
            if len(page) < PAGE:
                continue
            found += await self._seen(page)
            page = []
            if message.created_at < since or message.id <= gapless:
                break
        found += await self._seen(page)
        if len(found) == MOST_MESSAGES:
            log.warning("only the last %d messages of %s were read", len(found), channel.id)
        return found

    async def _seen(self, page: Sequence[discord.Message]) -> Page:
        """A page at a time, so that nothing else waits for thousands of messages."""
        await self.name(page)
        return [(message, seen_message(message, self.bot_id)) for message in page]

    async def _take_in(self, channel_id: str, oldest_first: Page) -> None:
        if not oldest_first:
            return
        shown = [seen.id for _, seen in oldest_first]
        if deleted := self.memory.missing_in(channel_id, shown):
            await self.gone(int(channel_id), map(int, deleted))
        # What was missed is answered out of what stood there before it, however far back.
        self.memory.widen(channel_id, len(oldest_first) + MESSAGES_PER_CHANNEL)
        for _, seen in oldest_first:
            self.memory.saw(seen)
        are_taken = [
            await self.missed(message, seen, _has_reaction(message, BUSY_SIGN))
            for message, seen in self._open(oldest_first)
            if self.memory.knows(channel_id, seen.id)
        ]
        if not any(are_taken):
            self.memory.narrow(channel_id)

    def _open(self, oldest_first: Page) -> Page:
        """What may wait for an answer: neither heard when it was written, nor dealt with since."""
        since = self.clock() - timedelta(hours=MISSED_HOURS)
        is_answered = _answered([seen for _, seen in oldest_first])
        return [
            (message, seen)
            for message, seen in oldest_first
            if message.created_at >= since
            and not seen.is_own
            and not self.is_known(seen.id)
            and not is_answered(seen)
            and not _has_reaction(message, HEARD_SIGN)
        ]


def _answered(page: Sequence[SeenMessage]) -> Callable[[SeenMessage], bool]:
    """Whether history shows an answer to a message, or to a later one of its author."""
    authors = {seen.id: seen.author_id for seen in page}
    answered = {seen.parsed.reply_to for seen in page if seen.is_own} - {None}
    latest: dict[str, int] = {}
    for message_id in answered:
        author = authors.get(message_id or "")
        if author is not None:
            latest[author] = max(latest.get(author, 0), int(message_id or 0))
    return lambda seen: seen.id in answered or int(seen.id) <= latest.get(seen.author_id, 0)


def _has_reaction(message: discord.Message, sign: str) -> bool:
    return any(it.me and str(it.emoji) == sign for it in message.reactions)


def _last_message_time(channel: Any) -> datetime:
    """When somebody last spoke there; now, where Discord does not say."""
    last = getattr(channel, "last_message_id", None)
    return discord.utils.snowflake_time(last) if last else discord.utils.utcnow()
