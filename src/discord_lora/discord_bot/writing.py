"""One answer: what the channel shows → backend → delivery, and into the journal."""

import logging
import secrets
from contextlib import aclosing
from typing import Any

import discord

from discord_lora.discord_bot.channel_memory import ChannelMemory
from discord_lora.discord_bot.delivery import (
    AnswerMessages,
    Style,
    Withdrawn,
    deliver,
    typing_shown,
)
from discord_lora.discord_bot.journal import AnswerRecord, Journal
from discord_lora.discord_bot.manner import Manner
from discord_lora.discord_bot.reply_messages import without_pings
from discord_lora.discord_bot.when_to_speak import Answer, Decision
from discord_lora.inference.backend import Backend, Request

log = logging.getLogger(__name__)

TRIES_TO_SAY_SOMETHING = 3
"""An answer may end before its first word; the next one is drawn anew."""


class Writer:
    """Writes answers and writes them anew. Whose turn it is, is not its matter."""

    def __init__(
        self,
        *,
        backend: Backend,
        memory: ChannelMemory,
        journal: Journal,
        manner: Manner,
        bot_id: int,
    ) -> None:
        self.backend = backend
        self.memory = memory
        self.journal = journal
        self.manner = manner
        self.bot_id = bot_id

    async def write(
        self, record: AnswerRecord, channel: Any, question: discord.Message | None
    ) -> str:
        """Answer, with a reply to the question if there is one; "" if there was nothing to say.

        Raises:
            Withdrawn: there is nothing to answer.
            Busy, TooSlow, GenerationFailed: nothing was shown.
            discord.HTTPException, aiohttp.ClientError, OSError: Discord does not take it.
        """
        messages = self._messages(record, channel, question)
        return await self._say(record, messages, addressed=question is not None)

    async def write_anew(self, record: AnswerRecord, channel: Any) -> str:
        """Into the messages that the answer has. Raises as `write` does: they stay as they were."""
        messages = self._messages(record, channel, None)
        # What somebody deleted stays away, and the new text goes into what is left.
        messages.standing = [
            channel.get_partial_message(it)
            for it in record.message_ids
            if not self.memory.was_deleted(record.channel_id, str(it))
        ]
        messages.nonce = secrets.token_hex(8)
        return await self._say(record, messages, addressed=True)

    def record_of(self, message: discord.Message) -> AnswerRecord | None:
        """What is known of an answer from before the start: this message and what it replied to."""
        reference = message.reference
        if reference is None or reference.message_id is None:
            return None
        channel_id, question_id = str(message.channel.id), str(reference.message_id)
        conversation = self.memory.conversation(channel_id, question_id)
        author_id = self.memory.author_of(channel_id, question_id)
        if conversation is None or author_id is None:
            return None
        decision = Decision(Answer.ADDRESSED, "before the last start")
        return AnswerRecord(
            question_id, channel_id, author_id, conversation, decision, [message.id]
        )

    async def _say(self, record: AnswerRecord, messages: AnswerMessages, *, addressed: bool) -> str:
        manner = self.manner
        style = Style(manner.reply_style, _presentable, manner.edit_seconds)
        request = self._request(record, addressed)
        async with typing_shown(messages.channel):
            for attempt in range(TRIES_TO_SAY_SOMETHING):
                if attempt:
                    request = self._request(record, addressed)
                pieces: Any = self.backend.reply(request)
                async with aclosing(pieces):
                    text = await deliver(pieces, messages, style)
                if text:
                    log.info("answered %s in channel %s", record.question_id, record.channel_id)
                    return text
        return ""

    def _request(self, record: AnswerRecord, addressed: bool) -> Request:
        """Out of the channel as it stands now. What fell out of memory counts as it was read."""
        place = record.channel_id, record.question_id
        found = self.memory.conversation(*place)
        if found is None and not (self.memory.knows(*place) or self._is_withdrawn(record)):
            found = record.conversation
        if found is None:
            raise Withdrawn
        record.conversation = found
        self.journal.answered(record)
        return Request(
            found,
            self.manner.sampling,
            channel=record.channel_id,
            addressed=addressed,
            seconds=self.manner.reply_seconds,
        )

    def _is_withdrawn(self, record: AnswerRecord) -> bool:
        """Deleted, forgotten by `/reset`, or from somebody who opted out meanwhile."""
        memory, place = self.memory, (record.channel_id, record.question_id)
        is_gone = memory.was_deleted(*place) or memory.was_forgotten(*place)
        return is_gone or record.author_id in memory.opted_out

    def _messages(
        self, record: AnswerRecord, channel: Any, question: discord.Message | None
    ) -> AnswerMessages:
        def find_first() -> int | None:
            found = self.memory.answers_to(record.channel_id, record.question_id)
            return int(found[0]) if found and question is not None else None

        def changed(message_ids: list[int]) -> None:
            record.message_ids = message_ids
            self.journal.answered(record)

        return AnswerMessages(
            channel,
            question,
            after_id=int(record.question_id),
            bot_id=self.bot_id,
            nonce=record.question_id,
            find_first=find_first,
            is_withdrawn=lambda: self._is_withdrawn(record),
            on_change=changed,
        )


def _presentable(text: str) -> str:
    return without_pings(text, lambda _: None, lambda _: None)
