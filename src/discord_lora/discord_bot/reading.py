"""From what was seen in a channel to the conversation that training would have made of it.

Messages are cleaned by the trainer's own steps and grouped by its rules, so that everybody goes by
one name and the model reads what it was trained on.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from discord_lora.conversations.build import Conversation, build_conversations
from discord_lora.conversations.prompt_format import Voice
from discord_lora.discord_bot.seen_message import Cleaned, SeenMessage
from discord_lora.messages.cleaning import Cleaner, CleaningContext
from discord_lora.messages.mentions import NameOf
from discord_lora.messages.people import People
from discord_lora.messages.record import Message
from discord_lora.messages.sources.base import Kind, Person
from discord_lora.messages.store import (
    REPEAT_WITHIN_SECONDS,
    SHORTEST_REPEAT_CHARACTERS,
    StoredMessage,
)
from discord_lora.messages.timestamps import from_microseconds

CHAIN_MESSAGES = 8
"""So many messages of a reply chain stand before a late reply. Training quotes only the last."""

_ASKED_ALL_THE_SAME = frozenset({"bots", "commands", "repeats"})
"""Steps that would drop a message for what it is, not for what it says: whoever is answered has
been heard, even if he says the same thing twice."""


_MEMBER = "member:"
"""Before the author id of the cloned member, who is somebody else than the clone."""


def is_of(member_id: str, message: Message) -> bool:
    """Whether a message that was read is that member's."""
    return message.author_id.removeprefix(_MEMBER) == member_id


@dataclass(frozen=True, slots=True)
class Reading:
    """How messages are read: as whose they count, and which cleaning steps are left out."""

    voice: Voice
    bot_id: str
    gap_minutes: float
    skip: frozenset[str]

    def conversation(self, read: Sequence[SeenMessage], asked: SeenMessage) -> Conversation | None:
        """The conversation that ends with the asked message, the last of `read`.

        A late reply comes with the reply chain that it answers. None if it holds nothing to read.
        """
        messages = self._cleaned(read, asked)
        if not messages or messages[-1].id != asked.id:
            return None
        found = next(
            it
            for it in build_conversations(messages, self.gap_minutes)
            if it.messages[-1].id == asked.id
        )
        own = frozenset(seen.id for seen in read if seen.is_own)
        return self._with_the_cloned_apart(_with_older_chain(found, messages), own)

    def _cleaned(self, read: Sequence[SeenMessage], asked: SeenMessage) -> list[Message]:
        """The messages that training would have kept, and the asked one if it says anything."""
        people = self._people(read)

        def name_of(person_id: str) -> str | None:
            is_voice = person_id in {self.bot_id, self.voice.speaker_id}
            return self.voice.name if is_voice else people.name_of(person_id)

        messages = []
        for seen, is_repeat in zip(read, _repeats(read), strict=True):
            stored = self._stored(seen, is_repeat)
            cleaned = self._cleaned_once(seen, stored, name_of, is_asked=seen is asked)
            if cleaned.content is not None:
                stored.content, stored.train = cleaned.content, cleaned.train
                messages.append(_finished(seen, stored, name_of(seen.author_id), people))
        return messages

    def _cleaned_once(
        self, seen: SeenMessage, stored: StoredMessage, name_of: NameOf, *, is_asked: bool
    ) -> Cleaned:
        """Cleaned anew only where somebody in it is now called otherwise.

        A long channel is read for each prompt, and a hostile text takes its time.
        """
        skip = self.skip | _ASKED_ALL_THE_SAME if is_asked else self.skip
        how = skip, stored.is_repeat
        known = seen.cleaned.get(how)
        if known and all(name_of(person) == name for person, name in known.names):
            return known
        names: dict[str, str | None] = {}

        def noted(person_id: str) -> str | None:
            return names.setdefault(person_id, name_of(person_id))

        # Mentions of channels were written out when the message came.
        context = CleaningContext(noted, lambda _: None)
        reason = Cleaner(context, skip).clean(stored)
        cleaned = Cleaned(None if reason else stored.content, stored.train, tuple(names.items()))
        seen.cleaned[how] = cleaned
        return cleaned

    def _people(self, read: Sequence[SeenMessage]) -> People:
        """One name for everybody in these messages, chosen as the trainer chooses it."""
        people = People()
        activity = Counter(self._speaker(seen) for seen in read)
        voice = Person(self.voice.speaker_id, self.voice.name, self.voice.name)
        people.saw(voice, 0)
        activity[voice.id] += len(read)  # nobody else may have the voice's name
        for seen in read:
            # Names as of the latest message; those without the nickname are older than any.
            rank = int(seen.id) if seen.knows_nickname else 0
            for person in (seen.parsed.author, *seen.parsed.mentions):
                if person.id not in {self.bot_id, voice.id}:
                    people.saw(person, rank)
        people.settle(activity)
        return people

    def _speaker(self, seen: SeenMessage) -> str:
        return self.voice.speaker_id if seen.is_own else seen.author_id

    def _stored(self, seen: SeenMessage, is_repeat: bool) -> StoredMessage:
        parsed = seen.parsed
        return StoredMessage(
            id=parsed.id,
            channel=0,
            time=parsed.time,
            author_id=self._speaker(seen),
            content=parsed.content,
            kind=parsed.kind.value,
            is_bot=seen.by_other_bot,
            reply_to=parsed.reply_to,
            reactions=0,
            has_attachments=parsed.has_attachments,
            mentions=[(person.id, person.nickname) for person in parsed.mentions],
            train=True,
            is_repeat=is_repeat,
        )

    def _with_the_cloned_apart(
        self, conversation: Conversation, own: Collection[str]
    ) -> Conversation:
        """The cloned member is the voice, as in training, but not when talking with the clone.

        Then the member is one more person in the room, or the bot would go on with his sentence
        instead of answering it.
        """
        speaker = self.voice.speaker_id
        messages = conversation.messages
        theirs = {m.id for m in messages if m.author_id == speaker} - set(own)
        if not theirs or not (messages[-1].id in theirs or any(m.id in own for m in messages)):
            return conversation
        apart = (replace(m, author_id=_MEMBER + speaker) if m.id in theirs else m for m in messages)
        return replace(conversation, messages=tuple(apart))


def _repeats(read: Iterable[SeenMessage]) -> list[bool]:
    """Which messages say what their author said within ten minutes: the store's rule."""
    last: dict[tuple[str, str], int] = {}
    repeats = []
    for seen in read:
        parsed = seen.parsed
        can_repeat = (
            parsed.kind is Kind.TALK
            and not seen.by_other_bot
            and len(parsed.content) >= SHORTEST_REPEAT_CHARACTERS
        )
        key = (seen.author_id, parsed.content)
        before = last.get(key) if can_repeat else None
        within = REPEAT_WITHIN_SECONDS * 1_000_000
        repeats.append(before is not None and parsed.time - before <= within)
        if can_repeat:
            last[key] = parsed.time
    return repeats


def _finished(
    seen: SeenMessage, stored: StoredMessage, name: str | None, people: People
) -> Message:
    channel = seen.parsed.channel
    return Message(
        id=stored.id,
        guild=channel.guild,
        channel_id=channel.id,
        channel=channel.name,
        timestamp=from_microseconds(stored.time),
        author_id=stored.author_id,
        author=name or stored.author_id,
        content=stored.content,
        username=people.username_of(stored.author_id),
        reply_to=stored.reply_to,
        is_bot=stored.is_bot,
        train=stored.train,
    )


def _with_older_chain(conversation: Conversation, messages: Iterable[Message]) -> Conversation:
    """A late reply quotes what it answers; that may be an answer to something older still."""
    if not conversation.quoted:
        return conversation
    by_id = {message.id: message for message in messages}
    chain: list[Message] = []
    oldest = conversation.messages[0]
    while len(chain) < CHAIN_MESSAGES - 1 and oldest.reply_to in by_id:
        older = by_id[oldest.reply_to or ""]
        if older.timestamp >= oldest.timestamp:
            break
        chain.insert(0, replace(older, train=False))
        oldest = older
    return replace(
        conversation,
        messages=(*chain, *conversation.messages),
        quoted=conversation.quoted + len(chain),
    )
