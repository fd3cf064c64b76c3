"""What the bot knows of its channels: the conversation as the channel shows it.

Created, edited, deleted and fetched messages are merged by id, in whatever order they come. They
are kept as they were seen, and read anew for each prompt.
"""

from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Collection, Container, Iterable
from dataclasses import dataclass, field

from discord_lora.conversations.build import Conversation
from discord_lora.conversations.prompt_format import Voice
from discord_lora.discord_bot.reading import Reading
from discord_lora.discord_bot.seen_message import SeenMessage
from discord_lora.messages.sources.base import Kind

RESET_NOTICE = "Forgotten. I start afresh from here."
"""What `/reset` answers, for all to see: found in the history after a restart, it draws the line
again. Only an answer of this bot's to a slash command counts, so that nobody can fake it."""

MESSAGES_PER_CHANNEL = 400
"""Several times what MAX_SEQ_LENGTH holds of ordinary chat; about 0.5 MB a channel."""

CHANNELS = 1000
"""Channels that are remembered; the one that was silent longest is the first to go."""

_DELETED_IDS = 1000


@dataclass(slots=True)
class _Channel:
    """`ids` are the keys of `messages`, ascending: Discord's ids grow with time."""

    messages: dict[int, SeenMessage] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)
    deleted: OrderedDict[int, None] = field(default_factory=OrderedDict)
    room: int = 0
    """Messages kept, where that is more than usual."""


class ChannelMemory:
    """The last messages of each channel, and the conversation that an answer belongs to."""

    def __init__(
        self,
        voice: Voice,
        bot_id: str,
        *,
        gap_minutes: float,
        opted_out: Container[str] = frozenset(),
        read_bots: bool = False,
        notices: Collection[str] = (),
        messages_per_channel: int = MESSAGES_PER_CHANNEL,
        channels: int = CHANNELS,
    ) -> None:
        """
        Args:
            voice: whom the bot speaks as; its own messages are recorded under that speaker.
            bot_id: the bot's user id.
            gap_minutes: the trainer's CONVERSATION_GAP_MINUTES.
            opted_out: ids of members who are not read, such as an OptOutLedger.
            read_bots: other bots are context; training drops them.
            notices: texts of the bot's own that are no talk, such as its apology.
        """
        self.voice = voice
        self.bot_id = bot_id
        self.gap_minutes = gap_minutes
        self.opted_out = opted_out
        self.notices = frozenset(notices)
        self._skip = frozenset({"bots"}) if read_bots else frozenset[str]()
        self._most_messages = messages_per_channel
        self._most_channels = channels
        self._channels: OrderedDict[str, _Channel] = OrderedDict()
        self._forgotten: dict[str, int] = {}

    # What happens in Discord ----------------------------------------------------------------

    def saw(self, seen: SeenMessage) -> None:
        """A message was created, edited or found in the history; the latest edit stays."""
        key = int(seen.id)
        if seen.is_own and seen.parsed.kind is Kind.INTERACTION:
            if seen.parsed.content == RESET_NOTICE:
                self.forget(seen.channel_id, seen.id)
            return
        if seen.is_own and seen.parsed.content in self.notices:
            return
        if key <= self._forgotten.get(seen.channel_id, 0) or seen.author_id in self.opted_out:
            return
        channel = self._channel(seen.channel_id)
        if key in channel.deleted:
            return
        known = channel.messages.get(key)
        if known is None:
            insort(channel.ids, key)
        elif (known.edited, known.knows_nickname) > (seen.edited, seen.knows_nickname):
            return
        channel.messages[key] = seen
        self._trim(channel)

    def deleted(self, channel_id: str, message_ids: Iterable[str]) -> None:
        """Messages are gone, one or many; history fetched before must not bring them back."""
        channel = self._channel(channel_id)
        for key in map(int, message_ids):
            channel.deleted[key] = None
            if channel.messages.pop(key, None) is not None:
                channel.ids.remove(key)
        while len(channel.deleted) > _DELETED_IDS:
            channel.deleted.popitem(last=False)

    def forget(self, channel_id: str, up_to_id: str) -> None:
        """`/reset`: whatever the channel shows up to this message was never read."""
        line = max(int(up_to_id), self._forgotten.get(channel_id, 0))
        self._forgotten[channel_id] = line
        self._keep(channel_id, lambda key, _: key > line)

    def forget_author(self, author_id: str) -> None:
        """`/optout`: what this member said is dropped at once."""
        for channel_id in self._channels:
            self._keep(channel_id, lambda _, seen: seen.author_id != author_id)

    def forget_channel(self, channel_id: str) -> None:
        """The channel was deleted, or the bot may not see it any more."""
        self._channels.pop(channel_id, None)

    def widen(self, channel_id: str, messages: int) -> None:
        """Keep so many there, until `narrow`: what stood before a question of hours ago."""
        self._channel(channel_id).room = messages

    def narrow(self, channel_id: str) -> None:
        """Keep what is usual."""
        channel = self._channels.get(channel_id)
        if channel is not None:
            channel.room = 0
            self._trim(channel)

    # What it is asked -----------------------------------------------------------------------

    def newest_id(self, channel_id: str) -> str | None:
        """The latest message known of a channel: history after it is what was missed."""
        channel = self._channels.get(channel_id)
        return str(channel.ids[-1]) if channel and channel.ids else None

    def knows(self, channel_id: str, message_id: str) -> bool:
        """True for a message that stands in the channel, as far as it is remembered."""
        channel = self._channels.get(channel_id)
        return channel is not None and int(message_id) in channel.messages

    def was_deleted(self, channel_id: str, message_id: str) -> bool:
        channel = self._channels.get(channel_id)
        return channel is not None and int(message_id) in channel.deleted

    def was_forgotten(self, channel_id: str, message_id: str) -> bool:
        """True for what stands before a `/reset`."""
        return int(message_id) <= self._forgotten.get(channel_id, 0)

    def missing_in(self, channel_id: str, shown: Collection[str]) -> list[str]:
        """What is remembered and was deleted unseen: all that history shows around it is `shown`.

        `shown` is a stretch of history without gaps.
        """
        channel = self._channels.get(channel_id)
        if channel is None or not shown:
            return []
        there = set(map(int, shown))
        first, last = min(there), max(there)
        return [str(key) for key in channel.ids if first < key < last and key not in there]

    def author_of(self, channel_id: str, message_id: str) -> str | None:
        channel = self._channels.get(channel_id)
        seen = channel.messages.get(int(message_id)) if channel else None
        return None if seen is None else seen.author_id

    def replied_to(self, channel_id: str, message_id: str) -> str | None:
        """What a message of the bot's own answered; None for what is none."""
        channel = self._channels.get(channel_id)
        seen = channel.messages.get(int(message_id)) if channel else None
        return seen.parsed.reply_to if seen is not None and seen.is_own else None

    def answers_to(self, channel_id: str, message_id: str) -> list[str]:
        """Ids of the bot's own replies to a message, oldest first: is it answered already?"""
        channel = self._channels.get(channel_id)
        found = [] if channel is None else [channel.messages[key] for key in channel.ids]
        return [seen.id for seen in found if seen.is_own and seen.parsed.reply_to == message_id]

    def conversation(self, channel_id: str, message_id: str) -> Conversation | None:
        """The conversation up to the message that is to be answered, as training would see it.

        From what stood in the channel until then, as much as is usually kept. None if the message
        is unknown, deleted, or holds nothing to read.
        """
        channel = self._channels.get(channel_id)
        asked = channel.messages.get(int(message_id)) if channel else None
        if channel is None or asked is None:
            return None
        end = bisect_right(channel.ids, int(message_id))
        until_then = channel.ids[max(0, end - self._most_messages) : end]
        read = [
            channel.messages[key]
            for key in until_then
            if channel.messages[key].author_id not in self.opted_out
        ]
        reading = Reading(self.voice, self.bot_id, self.gap_minutes, self._skip)
        return reading.conversation(read, asked)

    # Inside ---------------------------------------------------------------------------------

    def _channel(self, channel_id: str) -> _Channel:
        channel = self._channels.setdefault(channel_id, _Channel())
        self._channels.move_to_end(channel_id)
        while len(self._channels) > self._most_channels:
            self._channels.popitem(last=False)
        return channel

    def _trim(self, channel: _Channel) -> None:
        while len(channel.ids) > max(self._most_messages, channel.room):
            del channel.messages[channel.ids.pop(0)]

    def _keep(self, channel_id: str, wanted: Callable[[int, SeenMessage], bool]) -> None:
        channel = self._channels.get(channel_id)
        if channel is not None:
            channel.messages = {k: seen for k, seen in channel.messages.items() if wanted(k, seen)}
            channel.ids = sorted(channel.messages)
