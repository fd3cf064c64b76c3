"""One message as the bot sees it: plain data, so that memory and manners need no connection."""

from dataclasses import dataclass, field

from discord_lora.messages.sources.base import Kind, ParsedMessage


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A message's text as the model reads it, and the names that were put into it."""

    content: str | None
    """None if cleaning dropped the message."""
    train: bool
    names: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class SeenMessage:
    """What DiscordChatExporter would have written of a message, and what only the bot asks.

    Ids are Discord's, as strings. `parsed` is never changed.
    """

    parsed: ParsedMessage
    typed: str = ""
    """The content as it was typed, with raw `<@id>` tokens."""
    edited: int = 0
    """When it was last edited, in µs since 1970; 0: never."""
    is_own: bool = False
    """True if this bot wrote it."""
    knows_nickname: bool = True
    """False where Discord sent the account without its name in the server, as history does."""
    role_ids: frozenset[str] | None = frozenset()
    """The author's roles in the server; None where Discord did not say."""
    place_ids: tuple[str, ...] = ()
    """The channel, its parent if it is a thread, and the category: what lists may name."""
    is_dm: bool = False
    in_own_thread: bool = False
    """True in a thread that this bot started, or that hangs below a message of its own."""
    mentions_bot: bool = False
    """By `@`: the bot itself or the role that Discord made for it."""
    replies_to_bot: bool = False
    speaks_to_others: bool = False
    """True if it mentions or answers somebody who is not the bot."""
    cleaned: dict[tuple[frozenset[str], bool], Cleaned] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """What cleaning made of it without these steps, and as a repeat or not; reading.py keeps it."""

    @property
    def id(self) -> str:
        return self.parsed.id

    @property
    def channel_id(self) -> str:
        return self.parsed.channel.id

    @property
    def author_id(self) -> str:
        return self.parsed.author.id

    @property
    def by_other_bot(self) -> bool:
        """True for bots, webhooks and apps, but not for this bot."""
        return self.parsed.is_bot and not self.is_own

    @property
    def is_talk(self) -> bool:
        """False for Discord's own notices and for answers to slash commands."""
        return self.parsed.kind in {Kind.TALK, Kind.FORWARD}
