"""Conversations into tokenized examples that fit: cut at silences, context repeated.

conversation   m0 m1 m2 m3 | m4 m5 m6 m7 m8 | m9 m10      cut at the longest silences
example 1      m0 m1 m2 m3
example 2            (m2 m3) m4 m5 m6 m7 m8               (context: read, not trained)
example 3                            (m7 m8) m9 m10
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from discord_lora.conversations.build import Conversation
from discord_lora.conversations.prompt_format import PromptFormat
from discord_lora.conversations.split import longest_silence

_MESSAGES_AT_ONCE = 8192
"""Messages whose tokens are kept as Python lists until their examples are made: at nine times the
size of an array, those of all messages would be most of the memory."""


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """A rendered stretch of one conversation.

    `input_ids`: int32 of shape (tokens,). `trained`: bool of the same shape, true where the loss
    is on that token; never at position 0, which nothing predicts.
    """

    conversation_id: str
    message_ids: tuple[str, ...]
    """The messages that are targets here."""
    input_ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    characters: int
    """Characters of the target messages, for figures that compare across tokenizers."""

    @property
    def targets(self) -> int:
        """Target messages: what an optimizer step counts."""
        return len(self.message_ids)

    @property
    def trained_tokens(self) -> int:
        """Tokens that the loss is on; nothing predicts the first one."""
        return int(np.count_nonzero(self.trained[1:]))

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one example may hold."""

    max_seq_length: int
    context_tokens: int
    max_targets: int | None = None
    """At most this many target messages, so that a step can hold its exact share; None: any."""


def make_examples(
    conversations: Sequence[Conversation], prompt_format: PromptFormat, limits: Limits
) -> list[TokenizedExample]:
    """Every target message of the conversations, in exactly one example each.

    Left out are messages that have no room beside a system prompt of their own conversation.
    """
    examples: list[TokenizedExample] = []
    for batch in _batches(conversations):
        prompt_format.warm_up(message for c in batch for message in c.messages)
        for conversation in batch:
            cut = _Cutter(conversation, prompt_format, limits).examples()
            examples += (example for example in cut if example.trained.any())
        prompt_format.forget_texts()
    return examples


def _batches(conversations: Sequence[Conversation]) -> Iterator[list[Conversation]]:
    batch: list[Conversation] = []
    messages = 0
    for conversation in conversations:
        batch.append(conversation)
        messages += len(conversation.messages)
        if messages >= _MESSAGES_AT_ONCE:
            yield batch
            batch, messages = [], 0
    if batch:
        yield batch


class _Cutter:
    """Cuts one conversation into examples."""

    def __init__(
        self, conversation: Conversation, prompt_format: PromptFormat, limits: Limits
    ) -> None:
        self.conversation = conversation
        self.messages = conversation.messages
        self.format = prompt_format
        self.limits = limits
        turn = prompt_format.turn_overhead
        lengths = (prompt_format.message_length(message) + turn for message in self.messages)
        self.tokens_before = [0, *accumulate(lengths)]
        own_prompt = conversation.system_prompt
        own_tokens = prompt_format.text_length(own_prompt) if own_prompt else 0
        self.room = limits.max_seq_length - prompt_format.overhead - own_tokens
        is_target = prompt_format.voice.is_target
        self.targets = [i for i, message in enumerate(self.messages) if is_target(message)]

    def examples(self) -> Iterator[TokenizedExample]:
        run: list[int] = []
        for target in self.targets:
            # A long stretch that nobody learns from is not worth reading in full. The message
            # right before a target is: it is what the target answers.
            if run and self._tokens(run[-1] + 1, target - 1) > self.limits.context_tokens:
                yield from self._cut(run)
                run = []
            run.append(target)
        if run:
            yield from self._cut(run)

    def _tokens(self, start: int, end: int) -> int:
        return self.tokens_before[end] - self.tokens_before[start]

    def _cut(self, targets: Sequence[int]) -> Iterator[TokenizedExample]:
        """Cut at the longest silence until each stretch fits."""
        most = self.limits.max_targets or len(targets)
        first, last = targets[0], targets[-1]
        fits = self._tokens(first, last + 1) <= self.room and len(targets) <= most
        if fits or len(targets) == 1:
            yield self._example(first, last + 1)
            return
        # Only the middle half: a cut near an end would leave crumbs that are mostly context.
        quarter = len(targets) // 4
        middle = targets[max(1, quarter) : len(targets) - quarter + 1]
        cut = longest_silence(self.messages, middle)
        yield from self._cut([t for t in targets if t < cut])
        yield from self._cut([t for t in targets if t >= cut])

    def _start_of_context(self, first: int, end: int) -> int:
        """Index from which on earlier messages are read before the target at `first`.

        What the target answers is read whenever there is room at all: a model that learns to
        answer what it cannot see learns to recite. Turns of a ready conversation all belong.
        """
        room = self.room - self._tokens(first, end)
        is_ready = self.format.voice.kind == "ready"
        spare = room if is_ready else min(self.limits.context_tokens, room)
        start = first
        if start > 0 and self._tokens(start - 1, first) <= room:
            start -= 1
        while start > 0 and self._tokens(start - 1, first) <= spare:
            start -= 1
        return start

    def _example(self, first: int, end: int) -> TokenizedExample:
        start = self._start_of_context(first, end)
        stretch = replace(self.conversation, messages=self.messages[start:end], quoted=0)
        encoded = self.format.encode(stretch, first_target=first - start)
        # Only a single message that is longer than all the room there is gets cut short here.
        keep = self.limits.max_seq_length
        targets = self.targets[bisect_left(self.targets, first) : bisect_left(self.targets, end)]
        learned = [self.messages[i] for i in targets]
        return TokenizedExample(
            conversation_id=self.conversation.id,
            message_ids=tuple(message.id for message in learned),
            input_ids=np.asarray(encoded.input_ids[:keep], dtype=np.int32),
            trained=np.asarray(encoded.trained[:keep], dtype=np.bool_),
            characters=sum(len(message.content) for message in learned),
        )
