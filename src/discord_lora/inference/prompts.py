"""From a conversation to the tokens of its prompt, and from generated tokens to text."""

import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from discord_lora.conversations.build import Conversation
from discord_lora.conversations.prompt_format import PromptFormat, Voice
from discord_lora.messages.record import Message

_FORGET_AFTER = 1000
"""Prompts until the tokens of texts are forgotten: a bot runs for weeks and reads everything."""


class Prompts:
    """Renders conversations for one voice, within the length that training saw at once.

    May be used from several threads: the tokenizer, which keeps state while it works, is locked.
    """

    def __init__(self, tokenizer: Any, voice: Voice, max_tokens: int) -> None:
        self.voice = voice
        self.max_tokens = max_tokens
        self._format = PromptFormat(tokenizer, voice)
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._rendered = 0
        self.end_ids = frozenset({self._format.end_of_turn_id, tokenizer.eos_token_id} - {None})
        """Tokens that end a reply."""

    def encode(self, conversation: Conversation) -> list[int]:
        """Tokens of as much of the conversation's end as fits."""
        with self._lock:
            self._rendered += 1
            if self._rendered % _FORGET_AFTER == 0:
                self._format.forget_texts()
            return self._fitting(conversation)[-self.max_tokens :]

    def _fitting(self, conversation: Conversation) -> list[int]:
        messages = conversation.messages

        def encoded(first: int) -> list[int]:
            some = replace(conversation, messages=messages[first:])
            return self._format.encode_prompt(some)

        whole = encoded(0)
        if len(whole) <= self.max_tokens or len(messages) <= 1:
            return whole
        too_early, first = 0, len(messages) - 1
        while first - too_early > 1:
            middle = (too_early + first) // 2
            if len(encoded(middle)) <= self.max_tokens:
                first = middle
            else:
                too_early = middle
        return encoded(_cut_point(messages, first))

    def text(self, conversation: Conversation) -> str:
        """The prompt with its special tokens visible."""
        token_ids = self.encode(conversation)
        return self.decode(token_ids, skip_special_tokens=False)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        with self._lock:
            text: str = self._tokenizer.decode(
                list(token_ids),
                skip_special_tokens=skip_special_tokens,
                clean_up_tokenization_spaces=False,
            )
        return text

    def defused_text(self, token_ids: Sequence[int]) -> str:
        """The prompt for a server that takes text only and would obey control tokens in it.

        What members wrote that looks like a control token is split by a zero-width space.
        """
        added = self._tokenizer.added_tokens_decoder
        special = {number: token.content for number, token in added.items() if token.special}
        parts: list[str] = []
        for is_special, run in groupby(token_ids, key=special.__contains__):
            if is_special:
                parts += (special[number] for number in run)
                continue
            text = self.decode(list(run), skip_special_tokens=False)
            for content in special.values():
                text = text.replace(content, f"{content[0]}\u200b{content[1:]}")
            parts.append(text)
        return "".join(parts)

    def names_of_others(self, conversation: Conversation) -> set[str]:
        """Names of everybody but the voice, as the prompt shows them."""
        return self._format.names_of_others(conversation)


def _cut_point(messages: Sequence[Message], first: int) -> int:
    """Where the prompt begins, given the first message from which on everything fits.

    In a channel that goes on, the first that fits moves with every message, and with it everything
    that could have been reused of the last turn. So the prompt begins at the message of the next
    few whose id has the lowest hash: it stays the lowest for several turns. At most a quarter is
    given up for it, an eighth on average.
    """
    latest = first + (len(messages) - first) // 4
    return min(range(first, latest + 1), key=lambda at: zlib.crc32(messages[at].id.encode()))


class TextStream:
    """Tokens in, text out, never half a character.

    Text is what the tokens so far decode to beyond what the tokens before decoded to, so that a
    tokenizer may join them as it likes. Only the last few are decoded anew each time.
    """

    def __init__(self, prompts: Prompts) -> None:
        self._prompts = prompts
        self._told: list[int] = []
        self._new: list[int] = []

    def feed(self, token_id: int) -> str:
        """Text that this token completes."""
        self._new.append(token_id)
        before = self._prompts.decode(self._told)
        text = self._prompts.decode(self._told + self._new)
        # U+FFFD stands for bytes that are no character yet.
        if text.endswith("\ufffd") or len(text) <= len(before):
            return ""
        self._told, self._new = self._new, []
        return text[len(before) :]

    def feed_all(self, token_ids: Sequence[int]) -> Iterator[str]:
        for token_id in token_ids:
            yield self.feed(token_id)
