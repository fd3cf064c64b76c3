"""One answer into Discord: typing, sending, editing, and trying again until Discord has it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
import discord

from discord_lora.discord_bot.reply_messages import (
    EDIT_DELAY_SECONDS,
    StreamedReply,
    as_typed,
    split_reply,
)
from discord_lora.inference.backend import GenerationFailed

log = logging.getLogger(__name__)
T = TypeVar("T")

TYPING_SECONDS = 8.0
"""Discord shows the sign for ten seconds."""

RETRY_SECONDS = (0.5, 1, 2, 4, 8, *[15] * 40)
"""Ten minutes in all. discord.py itself retries some of the errors, not all."""

FAILED_REQUEST = (discord.HTTPException, aiohttp.ClientError, OSError, TimeoutError)
NO_HISTORY, UNKNOWN_MESSAGE = 160002, 10008


LOOK_AT = 100
"""Messages that are looked through for one that was sent although no answer said so."""


class Withdrawn(Exception):  # noqa: N818 - nothing went wrong
    """There is nothing to answer, or no longer: deleted, forgotten, or from somebody who is out."""


def may_pass(error: BaseException) -> bool:
    """True if the same request may succeed later."""
    if isinstance(error, discord.HTTPException):
        return error.status >= 500 or error.status == 429
    return True


async def persistently(call: Callable[[], Awaitable[T]], what: str) -> T:
    """Do it until Discord answers. Raises what does not pass, and what lasts."""
    for seconds in RETRY_SECONDS:
        try:
            return await call()
        except FAILED_REQUEST as error:
            if not may_pass(error):
                raise
            log.warning("%s: %s; trying again in %s s", what, _named(error), seconds)
        await asyncio.sleep(seconds)
    return await call()


def _named(error: BaseException) -> str:
    if isinstance(error, discord.HTTPException):
        return f"Discord answered {error.status}"
    return type(error).__name__


@asynccontextmanager
async def typing_shown(channel: discord.abc.Messageable) -> AsyncIterator[None]:
    """The typing sign for as long as it takes. That it cannot be shown stops nothing."""

    async def keep_showing() -> None:
        while True:
            with suppress(*FAILED_REQUEST):
                await channel.typing()
            await asyncio.sleep(TYPING_SECONDS)

    task = asyncio.create_task(keep_showing())
    try:
        yield
    finally:
        task.cancel()


@dataclass
class AnswerMessages:
    """The messages of one answer as the channel shows them.

    An answer whose sending was interrupted is not sent a second time: Discord recognises the
    nonce for some minutes, and before each new try the channel is looked at.
    """

    channel: Any
    """Any channel of discord.py's that can be written in."""
    question: discord.Message | None
    """Replied to by the first message; None where nobody asked."""
    after_id: int
    """The message that led to the answer: what belongs to it comes later."""
    bot_id: int
    nonce: str
    find_first: Callable[[], int | None]
    """Id of the first message if it is in the channel already."""
    is_withdrawn: Callable[[], bool]
    """Whether nobody waits for the answer any more."""
    standing: list[discord.PartialMessage] = field(default_factory=list)
    on_change: Callable[[list[int]], None] = lambda _ids: None

    async def show(self, index: int, text: str) -> None:
        """Make message number `index` read `text`; it exists, or is the next one."""
        if index < len(self.standing):
            message = self.standing[index]
            try:
                await persistently(lambda: message.edit(content=text), "editing")
                return
            except discord.NotFound:
                # Somebody deleted it meanwhile: what they took away stays away.
                log.info("message %s was deleted before it was complete", message.id)
                return
        sent = await self._send(index, text)
        self.standing.append(sent)
        self.on_change([it.id for it in self.standing])

    async def keep_only(self, count: int) -> None:
        """Delete what a shorter answer does not need."""
        while len(self.standing) > count:
            message = self.standing.pop()
            with suppress(discord.NotFound):
                await persistently(message.delete, "deleting")
        self.on_change([it.id for it in self.standing])

    async def _send(self, index: int, text: str) -> discord.PartialMessage:
        question = self.question if index == 0 else None
        tries = 0

        async def send() -> int:
            nonlocal tries
            found = self.find_first() if index == 0 else None
            if found is None and tries:
                found = await self._came_through(text, question)
            tries += 1
            if found is not None:
                return found
            if index == 0 and self.is_withdrawn():
                raise Withdrawn
            return await self._post(text, question, f"{self.nonce}:{index}")

        message_id = await persistently(send, "sending")
        standing: discord.PartialMessage = self.channel.get_partial_message(message_id)
        return standing

    async def _came_through(self, text: str, question: discord.Message | None) -> int | None:
        """Id of a message that Discord took although its answer got lost.

        The same words in reply to somebody else are another answer.
        """
        answers = {None, question.id if question else None}
        after_id = self.standing[-1].id if self.standing else self.after_id
        with suppress(discord.Forbidden):
            later = self.channel.history(limit=LOOK_AT, after=discord.Object(after_id))
            async for message in later:
                replied_to = message.reference.message_id if message.reference else None
                is_own = message.author.id == self.bot_id and replied_to in answers
                if is_own and message.content == text.strip():
                    found: int = message.id
                    return found
        return None

    async def _post(self, text: str, question: discord.Message | None, nonce: str) -> int:
        sent: discord.Message
        if question is not None:
            reference = question.to_reference(fail_if_not_exists=False)
            try:
                sent = await self.channel.send(
                    text, reference=reference, nonce=nonce, mention_author=False
                )
            except discord.HTTPException as error:
                if error.code != NO_HISTORY:
                    raise
            else:
                return sent.id
        sent = await self.channel.send(text, nonce=nonce)
        return sent.id


@dataclass(frozen=True)
class Style:
    """How an answer appears; `presentable` is the text as it may stand in the channel."""

    name: str
    presentable: Callable[[str], str]
    edit_seconds: float = EDIT_DELAY_SECONDS
    clock: Callable[[], float] = time.monotonic


async def deliver(pieces: AsyncIterator[str], messages: AnswerMessages, style: Style) -> str:
    """Let an answer appear; returns its text, "" if there was none.

    Raises:
        Busy, TooSlow, GenerationFailed: from `pieces`, before anything was shown.
        Withdrawn: nobody waits for it any more; nothing was shown yet.
        discord.HTTPException, aiohttp.ClientError, OSError: Discord does not take it.
    """
    if style.name == "stream":
        return await _streamed(pieces, messages, style)
    began = style.clock()
    text = style.presentable("".join([piece async for piece in pieces])).strip()
    if style.name == "person" and not messages.standing:
        await _typed(text, messages, style, began)
    else:
        await _at_once(split_reply(text), messages)
    return text


async def _at_once(parts: Sequence[str], messages: AnswerMessages) -> None:
    for index, part in enumerate(parts):
        await messages.show(index, part)
    if parts:
        await messages.keep_only(len(parts))


async def _typed(text: str, messages: AnswerMessages, style: Style, began: float) -> None:
    for index, part in enumerate(as_typed(text)):
        if index:
            with suppress(*FAILED_REQUEST):
                await messages.channel.typing()
        await asyncio.sleep(max(0.0, part.delay_seconds - (style.clock() - began)))
        await messages.show(index, part.text)
        began = style.clock()


async def _streamed(pieces: AsyncIterator[str], messages: AnswerMessages, style: Style) -> str:
    text = ""
    reply = StreamedReply(delay_seconds=style.edit_seconds)
    last_shown = float("-inf")
    try:
        async for piece in pieces:
            text += piece
            if style.clock() - last_shown < style.edit_seconds:
                continue
            for change in reply.show(style.presentable(text), style.clock()):
                await messages.show(change.index, change.text)
                last_shown = style.clock()
    except GenerationFailed:
        if not reply.shown:
            raise
        # The cause is in the log; what was said stays.
    text = style.presentable(text).strip()
    for change in reply.finish(text):
        await asyncio.sleep(max(0.0, last_shown + style.edit_seconds - style.clock()))
        await messages.show(change.index, change.text)
        last_shown = style.clock()
    if text:
        await messages.keep_only(len(reply.shown))
    return text
