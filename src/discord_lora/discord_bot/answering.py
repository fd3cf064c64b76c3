"""Who is answered when: one answer at a time in a channel, many channels at once.

    take(question) -> waits in its channel, one question a member -> the channel's turn
                   -> the answer is written

Whoever speaks to the bot again while waiting is answered once, to the later message; the earlier
one is in what the model reads. Unasked contributions wait for nothing.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import discord

from discord_lora.discord_bot.catching_up import History
from discord_lora.discord_bot.channel_memory import ChannelMemory
from discord_lora.discord_bot.delivery import FAILED_REQUEST, Withdrawn, may_pass, persistently
from discord_lora.discord_bot.journal import AnswerRecord, Journal
from discord_lora.discord_bot.question import Question, react
from discord_lora.discord_bot.seen_message import SeenMessage
from discord_lora.discord_bot.signs import APOLOGY, HEARD_SIGN
from discord_lora.discord_bot.writing import Writer
from discord_lora.inference.backend import Busy, GenerationFailed, TooSlow

log = logging.getLogger(__name__)

MOST_WAITING = 50
"""Members who wait in one channel; whoever comes after them only learns that he was heard."""

BUSY_SECONDS = (2, 3, 5, 8, *[13] * 45)
"""From one try to the next while the backend has no room; after ten minutes it waits anew."""

SECONDS_TO_LET_GO = 2.0
"""For what is cut off: it may have a sign to take off, and the network may be gone."""


@dataclass(eq=False, slots=True)
class _Channel:
    waiting: dict[str, Question] = field(default_factory=dict)
    unasked: Question | None = None
    task: "asyncio.Task[None] | None" = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    is_busy: bool = False
    """True while the backend has no room for this channel."""

    @property
    def is_idle(self) -> bool:
        return not (self.waiting or self.unasked or self.task or self.turn.locked())


class Answering:
    """Answers questions, each once."""

    def __init__(
        self,
        *,
        writer: Writer,
        memory: ChannelMemory,
        journal: Journal,
        history: History,
        is_quiet: Callable[[SeenMessage], bool],
        user: discord.ClientUser,
    ) -> None:
        """
        Args:
            is_quiet: whether the bot was told to be silent where a message stands.
        """
        self.writer = writer
        self.memory = memory
        self.journal = journal
        self.history = history
        self.is_quiet = is_quiet
        self.user = user
        self._channels: dict[int, _Channel] = {}
        self._apologised: set[int] = set()
        self._aside: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Questions that wait for the turn of their channel."""
        return sum(len(channel.waiting) for channel in self._channels.values())

    def take(self, question: Question) -> None:
        """Answer it when its channel is free."""
        if self._closing.is_set():
            return
        channel = self._channels.setdefault(question.message.channel.id, _Channel())
        if question.addressed:
            self._queue(channel, question)
        elif channel.is_idle:
            channel.unasked = question
        if channel.task is None and not channel.is_idle:
            channel.task = asyncio.create_task(self._work(question.message.channel, channel))

    def forget_author(self, author_id: str) -> None:
        """They opted out: what waits for an answer does no longer."""
        for channel in self._channels.values():
            question = channel.waiting.pop(author_id, None)
            if question is not None:
                self._do_aside(question.take_hourglass_off(self.user))

    def acknowledge(self, message: discord.Message) -> None:
        """Show that it was heard, and leave it at that."""
        self._do_aside(react(message, HEARD_SIGN))

    async def finish(self, seconds: float) -> None:
        """Take nothing new and let what is being answered come to its end, for so long."""
        self._closing.set()
        for channel in self._channels.values():
            channel.waiting.clear()
        tasks = [it.task for it in self._channels.values() if it.task] + [*self._aside]
        await let_end(tasks, seconds)

    async def regenerate(self, record: AnswerRecord, channel: discord.abc.Messageable) -> bool:
        """Write an answer anew, into the messages it has; False if nothing came of it.

        Raises:
            Withdrawn, Busy, TooSlow, GenerationFailed, discord.HTTPException: it stays as it was.
        """
        target: Any = channel
        async with self._channels.setdefault(target.id, _Channel()).turn:
            return bool(await self.writer.write_anew(record, target))

    # A channel's turn -----------------------------------------------------------------------

    def _queue(self, channel: _Channel, question: Question) -> None:
        author_id = question.seen.author_id
        earlier = channel.waiting.pop(author_id, None)
        if earlier is not None:
            question, earlier = sorted((question, earlier), key=_by_id, reverse=True)
            self._do_aside(earlier.take_hourglass_off(self.user))
        if len(channel.waiting) >= MOST_WAITING:
            log.warning("too many wait in channel %s", question.seen.channel_id)
            self._do_aside(question.take_hourglass_off(self.user))
            self.acknowledge(question.message)
            return
        channel.waiting[author_id] = question
        channel.unasked = None
        if channel.is_busy:
            self._do_aside(question.put_hourglass_on())

    async def _work(self, target: Any, channel: _Channel) -> None:
        try:
            async with channel.turn:
                # What was missed may be older than what came in just now.
                await self.history.restore(target)
                while (question := self._next(channel)) is not None:
                    try:
                        await self._answer(question, channel)
                    except Withdrawn:
                        log.info("%s gets no answer", question.seen.id)
                        self._say_that_it_stays_open(question)
                    except FAILED_REQUEST as error:
                        log.warning("%s was not answered: %s", question.seen.id, error)
                        self._leave_to_later(question, error)
                    except Exception:
                        log.exception("answering %s failed", question.seen.id)
                self.memory.narrow(str(target.id))
        finally:
            channel.task = None
            if channel.is_idle:
                self._channels.pop(target.id, None)

    def _leave_to_later(self, question: Question, error: BaseException) -> None:
        """Discord took nothing for minutes: history shows the question when it does again.

        What it refuses for good stays open.
        """
        seen = question.seen
        if may_pass(error):
            self.journal.forget_decision(seen.id)
            self.history.forget(question.message.channel.id)
        elif not self.memory.answers_to(seen.channel_id, seen.id):
            self._say_that_it_stays_open(question)

    def _next(self, channel: _Channel) -> Question | None:
        if channel.waiting:
            question = min(channel.waiting.values(), key=_by_id)
            return channel.waiting.pop(question.seen.author_id)
        unasked, channel.unasked = channel.unasked, None
        return unasked

    async def _answer(self, question: Question, channel: _Channel) -> None:
        seen = question.seen
        keeps_waiting = False
        try:
            if not self.memory.answers_to(seen.channel_id, seen.id):
                keeps_waiting = await self._keeps_waiting(question, channel)
        finally:
            if not keeps_waiting:
                await question.take_hourglass_off(self.user)

    async def _keeps_waiting(self, question: Question, channel: _Channel) -> bool:
        """Answer as soon as there is room; True if there was none.

        Raises:
            Withdrawn: there is nothing to answer, or not here.
        """
        seen = question.seen
        record = AnswerRecord(seen.id, seen.channel_id, seen.author_id, None, question.decision)
        replied_to = question.message if question.addressed else None
        try:
            for seconds in BUSY_SECONDS:
                if self.is_quiet(seen):
                    raise Withdrawn
                if seen.author_id in channel.waiting:
                    return False  # asked again meanwhile, and answered for both
                try:
                    text = await self.writer.write(record, question.message.channel, replied_to)
                    break
                except Busy:
                    if self._closing.is_set() or not question.addressed:
                        return question.addressed
                    await self._show_busy(question, channel)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), seconds)
            else:
                log.warning("no room for %s in a long time", seen.id)
                self._queue(channel, question)
                return True
        except (TooSlow, GenerationFailed) as error:
            await self._apologise(question, error)
            return False
        finally:
            channel.is_busy = False
        self._apologised.discard(question.message.channel.id)
        if not text and question.addressed:
            self.acknowledge(question.message)
        return False

    # Signs ----------------------------------------------------------------------------------

    async def _show_busy(self, question: Question, channel: _Channel) -> None:
        channel.is_busy = True
        for waiting in (question, *channel.waiting.values()):
            if waiting is question or waiting in channel.waiting.values():
                await waiting.put_hourglass_on()

    def _say_that_it_stays_open(self, question: Question) -> None:
        """Unless nobody waits for an answer any more."""
        seen = question.seen
        is_deleted = self.memory.was_deleted(seen.channel_id, seen.id)
        if question.addressed and not is_deleted and seen.author_id not in self.memory.opted_out:
            self.acknowledge(question.message)

    async def _apologise(self, question: Question, error: Exception) -> None:
        """Once until an answer works again; the others would only read the same."""
        log.error("no answer to %s: %s", question.seen.id, type(error).__name__)
        channel = question.message.channel
        if not question.addressed:
            return
        if channel.id in self._apologised:
            self.acknowledge(question.message)
            return
        self._apologised.add(channel.id)
        reference = question.message.to_reference(fail_if_not_exists=False)
        nonce = f"{question.seen.id}:s"
        await persistently(
            lambda: channel.send(APOLOGY, reference=reference, nonce=nonce, mention_author=False),
            "apologising",
        )

    def _do_aside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)


def _by_id(question: Question) -> int:
    return int(question.seen.id)


async def let_end(tasks: Collection["asyncio.Task[None]"], seconds: float) -> None:
    """Let them come to their end for so long; what is late is cut off."""
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=seconds)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=SECONDS_TO_LET_GO)
