"""The same messages for every contender, rendered by the project's own prompt format."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from comparison.job import Job
from discord_lora.base_model import load_tokenizer
from discord_lora.console import UserError
from discord_lora.conversations.build import Conversation
from discord_lora.conversations.dataset import group
from discord_lora.conversations.examples import Limits, TokenizedExample, make_examples
from discord_lora.conversations.prompt_format import PromptFormat
from discord_lora.conversations.split import IsTarget
from discord_lora.messages.training_data import read_training_data
from discord_lora.settings import Settings


@dataclass(frozen=True, slots=True)
class Selection:
    """The conversations of one comparison, and how to render them."""

    prompt_format: PromptFormat
    settings: Settings
    training: list[Conversation]
    held_out: list[Conversation]

    def examples(self) -> list[TokenizedExample]:
        """As the project trains: cut at silences, at most one step's messages an example."""
        return self._make(
            self.training, self.settings.context_tokens, self.settings.messages_per_step
        )

    def single_messages(self) -> list[TokenizedExample]:
        """The classic recipe: each target message alone, without what it answers."""
        is_target = self.prompt_format.voice.is_target
        alone = [
            replace(conversation, messages=(message,), quoted=0)
            for conversation in self.training
            for message in conversation.messages
            if is_target(message)
        ]
        return self._make(alone, context_tokens=0)

    def whole_conversations(self, most_tokens: int) -> list[TokenizedExample]:
        """For TRL: conversations as they are; only one longer than a row is cut, between messages.

        (TRL itself would throw away what does not fit into a row, and train on fewer messages.)
        """
        return self._make(self.training, context_tokens=0, most_tokens=most_tokens)

    def held_out_examples(self) -> list[TokenizedExample]:
        return self._make(self.held_out, self.settings.context_tokens)

    def _make(
        self,
        conversations: Sequence[Conversation],
        context_tokens: int,
        max_targets: int | None = None,
        most_tokens: int | None = None,
    ) -> list[TokenizedExample]:
        length = most_tokens or self.settings.max_seq_length
        return make_examples(
            conversations, self.prompt_format, Limits(length, context_tokens, max_targets)
        )


def load_selection(job: Job, settings: Settings) -> Selection:
    """The conversations of a job: a pure function of the data, the settings and the seed.

    Raises:
        UserError: the data does not hold as many messages.
    """
    data = read_training_data(Path(settings.training_data_path))
    if data.conversations:
        raise UserError("--data: holds ready conversations; give the messages of a server.")
    grouped = group(data, settings)
    is_target = grouped.voice.is_target
    return Selection(
        PromptFormat(load_tokenizer(job.location), grouped.voice),
        settings,
        choose(grouped.training, is_target, job.messages, settings.seed),
        choose(grouped.held_out, is_target, job.held_out_messages, settings.seed),
    )


def choose(
    conversations: Sequence[Conversation], is_target: IsTarget, messages: int, seed: int
) -> list[Conversation]:
    """Whole conversations in a seeded order until `messages` targets are there; the last is cut.

    Raises:
        UserError: there are fewer.
    """
    chosen = []
    missing = messages
    for index in np.random.default_rng(seed).permutation(len(conversations)):
        if missing == 0:
            break
        conversation = _first_targets(conversations[index], is_target, missing)
        targets = sum(map(is_target, conversation.messages))
        if targets:
            chosen.append(conversation)
            missing -= targets
    if missing:
        raise UserError(
            f"--messages: there are {messages - missing:,} to choose from and {messages:,} are "
            "wanted; ask for fewer, or give more --data."
        )
    return chosen


def _first_targets(conversation: Conversation, is_target: IsTarget, most: int) -> Conversation:
    """The conversation up to its target number `most`."""
    seen = 0
    for end, message in enumerate(conversation.messages, start=1):
        seen += is_target(message)
        if seen == most:
            return replace(conversation, messages=conversation.messages[:end])
    return conversation


def messages_hash(examples: Iterable[TokenizedExample]) -> str:
    """The same for the same set of target messages, in whatever order and pieces."""
    ids = sorted(message_id for example in examples for message_id in example.message_ids)
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def count_tokens(examples: Iterable[TokenizedExample]) -> int:
    return sum(map(len, examples))


def count_messages(examples: Iterable[TokenizedExample]) -> int:
    return sum(example.targets for example in examples)


def labels_of(example: TokenizedExample) -> list[int]:
    """Labels as transformers wants them: -100 where there is no loss."""
    labels: list[int] = np.where(example.trained, example.input_ids, -100).tolist()
    return labels


def full_rows(
    examples: Sequence[TokenizedExample], row_tokens: int, least_full: float = 0.95
) -> list[list[TokenizedExample]]:
    """Rows of whole examples that together come close to `row_tokens`; the rest is left out."""
    rows = []
    waiting = sorted(examples, key=len, reverse=True)
    while waiting:
        row: list[TokenizedExample] = []
        left: list[TokenizedExample] = []
        used = 0
        for example in waiting:
            fits = used + len(example) <= row_tokens
            used += len(example) if fits else 0
            (row if fits else left).append(example)
        if used >= least_full * row_tokens:
            rows.append(row)
        if not row:
            break
        waiting = left
    return rows
