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

from discord_lora.discord_bot.channel_memory import ChannelMemory
from discord_lora.discord_bot.delivery import FAILED_REQUEST, may_pass
from discord_lora.discord_bot.from_discord import seen_message
from discord_lora.discord_bot.seen_message import SeenMessage
from discord_lora.discord_bot.signs import BUSY_SIGN, HEARD_SIGN

log = logging.getLogger(__name__)

MISSED_HOURS = 6
"""Older mentions stay unanswered: by then the talk has moved on."""

PAGE = 100
MOST_MESSAGES = 400
"""Fetched of a channel, as many as are remembered."""

AT_ONCE = 4
"""Channels looked through at the same time; Discord allows fifty requests a second in all."""

RETRY_SECONDS = (0.5, 1, 2, 4)

Missed = Callable[[discord.Message, SeenMessage, bool], Awaitable[None]]
"""Gets a message that was not answered, and whether it has the hourglass."""

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
        name: Name,
        clock: Callable[[], datetime],
    ) -> None:
        """
        Args:
            is_known: whether a message, by id, was heard when it was written.
            missed: called in order for what was not.
            name: called for what was fetched, before anything is made of it.
        """
        self.memory = memory
        self.bot_id = bot_id
        self.is_known = is_known
        self.missed = missed
        self.name = name
        self.clock = clock
        self._round = 0
        self._read: dict[int, int] = {}
        self._reading: dict[int, asyncio.Lock] = {}

    def begin_anew(self) -> None:
        """Something may have been missed everywhere."""
        self._round += 1

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
        async with lock:
            if self._read.get(channel.id) == self._round:
                return
            this_round = self._round
            try:
                page = await self._fetch(channel)
            except FAILED_REQUEST as error:
                log.warning("the history of channel %s cannot be read: %s", channel.id, error)
                if may_pass(error):
                    return
                page = []
            await self.name(page)
            self._read[channel.id] = this_round
            await self._take_in(channel, page)
        self._reading.pop(channel.id, None)

    async def _fetch(self, channel: Any) -> list[discord.Message]:
        """Newest first."""
        for seconds in RETRY_SECONDS:
            try:
                return await self._pages(channel)
            except FAILED_REQUEST as error:
                if not may_pass(error):
                    raise
            await asyncio.sleep(seconds)
        return await self._pages(channel)

    async def _pages(self, channel: Any) -> list[discord.Message]:
        since = self.clock() - timedelta(hours=MISSED_HOURS)
        known = int(self.memory.newest_id(str(channel.id)) or 0)
        found: list[discord.Message] = []
        async for message in channel.history(limit=MOST_MESSAGES):
            found.append(message)
            is_old = message.created_at < since or message.id <= known
            if len(found) % PAGE == 0 and is_old:
                break
        return found

    async def _take_in(self, channel: Any, page: Sequence[discord.Message]) -> None:
        oldest_first = [(it, seen_message(it, self.bot_id)) for it in reversed(page)]
        if not oldest_first:
            return
        channel_id = str(channel.id)
        shown = [seen.id for _, seen in oldest_first]
        self.memory.deleted(channel_id, self.memory.missing_in(channel_id, shown))
        for _, seen in oldest_first:
            self.memory.saw(seen)
        since = self.clock() - timedelta(hours=MISSED_HOURS)
        is_answered = _answered([seen for _, seen in oldest_first])
        for message, seen in oldest_first:
            if message.created_at < since or seen.is_own or self.is_known(seen.id):
                continue
            if is_answered(seen) or _has_reaction(message, HEARD_SIGN):
                continue
            if self.memory.knows(channel_id, seen.id):
                await self.missed(message, seen, _has_reaction(message, BUSY_SIGN))


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
