"""Messages of a channel into conversations, by Discord's own signals.

What a message belongs to is decided by the first of these that applies:

    1. it replies to a message           -> that message's conversation
    2. it names somebody (`@Name`)       -> the conversation that person just spoke in
    3. its author just spoke             -> the same conversation
    4. somebody just spoke               -> that conversation
    5. the channel was silent            -> a new conversation

Interleaved talk is untangled: a message that starts a reply chain of its own while another chain
is still going on opens a new conversation instead of joining by rule 3 or 4.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Protocol

from discord_lora.messages.record import Message, ReadyConversation

REPLY_REACH = timedelta(hours=24)
"""A later reply opens a new conversation that quotes what it answers: glueing today's talk to
last month's would teach the model that the two belong together."""

READY_ASSISTANT = "assistant"
"""Author id of the trained turns of a ready conversation."""

_MENTION = re.compile(r"@(\S+(?: \S+){0,4})")
"""A name after `@` has no end of its own: up to five words are tried, the longest first."""

_MOST_MENTIONS = 10
"""Looked at in one message. Whoever calls more people speaks to none of them, and a bot that reads
the channel for each answer has no time for hundreds."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages of one channel or thread that belong together, oldest first."""

    id: str
    channel_id: str
    messages: tuple[Message, ...]
    system_prompt: str | None = None
    """What a ready conversation brings as its own system prompt."""
    quoted: int = 0
    """How many messages at the front are quoted from an older conversation."""

    @property
    def start(self) -> datetime:
        return self.messages[self.quoted].timestamp


class Spoken(Protocol):
    """What grouping looks at in a message."""

    @property
    def id(self) -> str: ...
    @property
    def timestamp(self) -> datetime: ...
    @property
    def author_id(self) -> str: ...
    @property
    def author(self) -> str: ...
    @property
    def content(self) -> str: ...
    @property
    def reply_to(self) -> str | None: ...


def build_conversations(messages: Iterable[Message], gap_minutes: float) -> list[Conversation]:
    """Group messages into conversations, ordered by channel and start.

    Each message is in exactly one conversation; a message quoted by a late reply stands there
    once more with `train=False`.
    """
    channels: dict[str, list[Message]] = defaultdict(list)
    for message in messages:
        channels[message.channel_id].append(message)
    gap = timedelta(minutes=gap_minutes)
    conversations = []
    for members in channels.values():
        members.sort(key=lambda message: (message.timestamp, message.id))
        conversations += _conversations(members, _Channel(members, gap))
    return conversations


def conversation_numbers(messages: Sequence[Spoken], gap_minutes: float) -> list[int]:
    """For each message of one channel, sorted by time and id, the number of its conversation.

    The same grouping as `build_conversations`, for statistics over more messages than one would
    want as objects: number n is the conversation with the id `<channel id>/n`.
    """
    return _Channel(messages, timedelta(minutes=gap_minutes)).strands()


def _conversations(messages: Sequence[Message], channel: "_Channel") -> list[Conversation]:
    """The channel's conversations in the order in which they start."""
    strands: list[list[Message]] = []
    quoted: list[int] = []
    for index, strand in enumerate(channel.strands()):
        if strand == len(strands):
            parent = channel.parents[index]
            quote = [] if parent is None else [replace(messages[parent], train=False)]
            strands.append(quote)
            quoted.append(len(quote))
        strands[strand].append(messages[index])
    channel_id = messages[0].channel_id
    return [
        Conversation(f"{channel_id}/{number}", channel_id, tuple(strand), quoted=quote)
        for number, (strand, quote) in enumerate(zip(strands, quoted, strict=True))
    ]


class _Channel:
    """One channel, read once from oldest to newest."""

    def __init__(self, messages: Sequence[Spoken], gap: timedelta) -> None:
        self.messages = messages
        self.gap = gap
        self.position = {message.id: index for index, message in enumerate(messages)}
        self.last_by_author: dict[str, int] = {}
        self.last_by_name: dict[str, int] = {}
        self.parents = [self._parent(index) for index in range(len(messages))]
        self.chain_of, self.chain_end = _chains(self.parents)

    def _parent(self, index: int) -> int | None:
        """What a message explicitly answers: the replied-to message, or the person it names."""
        message = self.messages[index]
        target = self.position.get(message.reply_to or "")
        if target is None or target >= index:
            target = self._mentioned(message)
        self.last_by_name[message.author.casefold()] = index
        return target

    def _mentioned(self, message: Spoken) -> int | None:
        if "@" not in message.content:
            return None
        found = islice(_MENTION.finditer(message.content), _MOST_MENTIONS)
        named = [self._last_of(match[1]) for match in found]
        recent = [
            index
            for index in named
            if index is not None and message.timestamp - self.messages[index].timestamp <= self.gap
        ]
        return max(recent, default=None)

    def _last_of(self, words: str) -> int | None:
        """The last message of the person whose name `words` begin with."""
        parts = words.casefold().split(" ")
        for count in range(len(parts), 0, -1):
            name = " ".join(parts[:count])
            index = self.last_by_name.get(name, self.last_by_name.get(name.rstrip(".,:;!?")))
            if index is not None:
                return index
        return None

    def strands(self) -> list[int]:
        """The strand of each message; strands are numbered in the order in which they start."""
        strand_of: list[int] = []
        last_of: list[int] = []
        newest_chain: dict[int, int] = {}
        for index, message in enumerate(self.messages):
            strand = self._strand_to_join(index, last_of, strand_of, newest_chain)
            if strand is None:
                strand = len(last_of)
                last_of.append(index)
            last_of[strand] = index
            strand_of.append(strand)
            chain = self.chain_of[index]
            if chain is not None:
                newest_chain[strand] = chain
            self.last_by_author[message.author_id] = index
        return strand_of

    def _strand_to_join(
        self,
        index: int,
        last_of: Sequence[int],
        strand_of: Sequence[int],
        newest_chain: dict[int, int],
    ) -> int | None:
        message = self.messages[index]
        parent = self.parents[index]
        if parent is not None:
            strand = strand_of[parent]
            reach = message.timestamp - self.messages[last_of[strand]].timestamp
            return strand if reach <= REPLY_REACH else None
        for earlier in (self.last_by_author.get(message.author_id), index - 1):
            if earlier is None or earlier < 0:
                continue
            if message.timestamp - self.messages[earlier].timestamp <= self.gap:
                strand = strand_of[earlier]
                return (
                    None if self._heads_a_rival_chain(index, newest_chain.get(strand)) else strand
                )
        return None

    def _heads_a_rival_chain(self, index: int, other: int | None) -> bool:
        """True if a reply chain starts here while another one in the same strand goes on."""
        own = self.chain_of[index]
        return (
            own is not None and other is not None and own != other and self.chain_end[other] > index
        )


def _chains(parents: Sequence[int | None]) -> tuple[list[int | None], dict[int, int]]:
    """Number the trees that the parent links form.

    Returns the root index of each message's tree (None if nothing links to or from it) and the
    index of each tree's last message.
    """
    root = list(range(len(parents)))
    for index, parent in enumerate(parents):
        if parent is not None:
            root[index] = root[parent]
    last = {root[index]: index for index in range(len(parents))}
    linked = {root[i] for i, parent in enumerate(parents) if parent is not None}
    return [r if r in linked else None for r in root], last


def from_ready(ready: ReadyConversation, order: int) -> Conversation:
    """A ready conversation in the same shape: nameless authors, one message a turn.

    `order` stands in for the time that such data does not have.
    """
    system = [turn.content for turn in ready.turns if turn.role == "system"]
    start = datetime.fromtimestamp(order * 3600, UTC)
    messages = tuple(
        Message(
            id=f"{ready.id}.{number}",
            guild="",
            channel_id="ready",
            channel="ready",
            timestamp=start + timedelta(seconds=number),
            author_id=turn.role,
            author="",
            content=turn.content,
            train=turn.train,
        )
        for number, turn in enumerate(ready.turns)
        if turn.role != "system"
    )
    # Ids in such files need not be unique.
    own_prompt = "\n".join(system) if system else None
    return Conversation(f"{order}/{ready.id}", "ready", messages, own_prompt)
