"""Channels and messages, and everything that can happen to them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from fake_discord import payloads
from fake_discord.mentions import Mentions, as_typed, mentions_of
from fake_discord.rights import NOTHING, Intents, Permissions, channel_permissions
from fake_discord.world import SECONDS_TO_WAIT, Event, World, same_for_all

if TYPE_CHECKING:
    from fake_discord.interactions import Interaction
    from fake_discord.people import Guild, Role, User

Json = dict[str, Any]
TEXT, DIRECT, PUBLIC_THREAD = 0, 1, 11
DEFAULT, THREAD_CREATED, REPLY, COMMAND_ANSWER, THREAD_STARTER, MENU_ANSWER = 0, 18, 19, 20, 21, 23
HAS_THREAD, EPHEMERAL, LOADING = 1 << 5, 1 << 6, 1 << 7


@dataclass
class Overwrite:
    allow: Permissions = NOTHING
    deny: Permissions = NOTHING


@dataclass
class Edit:
    """`at` in time.monotonic() seconds; the text as it was from then on."""

    at: float
    content: str


@dataclass(eq=False)
class Message:
    id: int
    channel: Channel = field(repr=False)
    author: User
    content: str
    kind: int = DEFAULT
    mentions: list[User] = field(default_factory=list)
    role_mentions: list[Role] = field(default_factory=list)
    mention_everyone: bool = False
    reply_to: Message | None = None
    attachments: list[Json] = field(default_factory=list)
    embeds: list[Json] = field(default_factory=list)
    components: list[Json] = field(default_factory=list)
    flags: int = 0
    nonce: str | None = None
    # As the bot sent it; None if it left Discord's defaults.
    allowed_mentions: Json | None = None
    interaction: Interaction | None = None
    thread: Channel | None = None
    # Users by emoji, in the order in which they came.
    reactions: dict[str, list[User]] = field(default_factory=dict)
    at: float = field(default_factory=time.monotonic)
    edits: list[Edit] = field(default_factory=list)
    edited: datetime | None = None
    deleted_at: float | None = None

    @property
    def is_ephemeral(self) -> bool:
        return bool(self.flags & EPHEMERAL)

    @property
    def url(self) -> str:
        guild = self.channel.guild.id if self.channel.guild else "@me"
        return f"https://discord.com/channels/{guild}/{self.channel.id}/{self.id}"

    def edit(self, content: str | None = None, **fields: Any) -> None:
        """Change text or any other field, as author or REST do; the history keeps each text."""
        with self.channel.world.changed:
            if content is not None:
                self.content = content
                self.edits.append(Edit(time.monotonic(), content))
            for name, value in fields.items():
                setattr(self, name, value)
            self.edited = datetime.now(UTC)
            if self.is_ephemeral:
                self.channel.world.tell()
            else:
                self.channel.tell_message("MESSAGE_UPDATE", self)

    def delete(self) -> None:
        with self.channel.world.changed:
            self.deleted_at = time.monotonic()
            self.channel.history.pop(self.id, None)
            self.channel.tell("MESSAGE_DELETE", {"id": str(self.id)})

    def react(self, user: User, emoji: str) -> None:
        with self.channel.world.changed:
            users = self.reactions.setdefault(emoji, [])
            if user not in users:
                users.append(user)
                self._tell_reaction("MESSAGE_REACTION_ADD", user, emoji)

    def unreact(self, user: User, emoji: str) -> None:
        with self.channel.world.changed:
            if user in (users := self.reactions.get(emoji, [])):
                users.remove(user)
                if not users:
                    del self.reactions[emoji]
                self._tell_reaction("MESSAGE_REACTION_REMOVE", user, emoji)

    def start_thread(self, user: User, name: str) -> Channel:
        """A thread below this message has the message's id."""
        with self.channel.world.changed:
            self.thread = self.channel.new_thread(user, name, self.id)
            self.flags |= HAS_THREAD
            self.channel.tell_message("MESSAGE_UPDATE", self)
            self.thread.post(self.author, "", deliver=False, kind=THREAD_STARTER, reply_to=self)
            return self.thread

    def wait_until(
        self, condition: Callable[[Message], object], timeout: float = SECONDS_TO_WAIT
    ) -> Message:
        """This message, once it fulfils the condition (an edit, a reaction, its deletion)."""
        what = f"what was awaited of {self!r}"
        self.channel.world.wait_until(lambda: bool(condition(self)), timeout, what)
        return self

    def _tell_reaction(self, name: str, user: User, emoji: str) -> None:
        payload = payloads.reaction_event(self, user, emoji)
        guild, direct = Intents.GUILD_MESSAGE_REACTIONS, Intents.DIRECT_MESSAGE_REACTIONS
        self.channel.tell(name, payload, guild, direct)


@dataclass(eq=False)
class Channel:
    """A text channel, a direct one or a thread."""

    id: int
    kind: int
    world: World = field(repr=False)
    guild: Guild | None = None
    name: str = ""
    topic: str | None = None
    parent: Channel | None = field(default=None, repr=False)
    owner: User | None = None
    archived: bool = False
    locked: bool = False
    recipients: list[User] = field(default_factory=list)
    overwrites: dict[int, Overwrite] = field(default_factory=dict, repr=False)
    # By id, deleted ones taken out.
    history: dict[int, Message] = field(default_factory=dict, repr=False)
    # Everything that was ever posted here, deleted and ephemeral ones too.
    posted: list[Message] = field(default_factory=list, repr=False)
    # Who typed when (time.monotonic()).
    typing: list[tuple[User, float]] = field(default_factory=list, repr=False)

    @property
    def messages(self) -> list[Message]:
        """What stands in the channel now, oldest first."""
        with self.world.changed:
            return [self.history[key] for key in sorted(self.history)]

    def by(self, author: User) -> list[Message]:
        return [message for message in self.messages if message.author is author]

    # --- what people do ---------------------------------------------------------------------

    def say(
        self,
        author: User,
        content: str = "",
        *,
        mentions: Sequence[User | Role] = (),
        reply_to: Message | None = None,
        ping: bool = True,
        attachments: Sequence[str] = (),
        at: datetime | None = None,
        deliver: bool = True,
        **fields: Any,
    ) -> Message:
        """Somebody writes. "@name" of those in `mentions` becomes a mention, as on typing it.

        `ping` is the switch beside a reply. `at` back-dates the id; `deliver=False` puts the
        message into the history only, as if the gateway had never heard of it.
        """
        with self.world.changed:
            content = as_typed(content, mentions)
            found = mentions_of(self, author, content, None)
            if reply_to is not None:
                fields.setdefault("kind", REPLY)
                if ping and reply_to.author not in found.users:
                    found.users.append(reply_to.author)
            files = [payloads.attachment(self.world.new_id(), name) for name in attachments]
            return self.post(
                author,
                content,
                found,
                at=at,
                deliver=deliver,
                reply_to=reply_to,
                attachments=files,
                **fields,
            )

    def type(self, user: User) -> None:
        with self.world.changed:
            self.typing.append((user, time.monotonic()))
            payload = payloads.typing_event(self, user)
            guild, direct = Intents.GUILD_MESSAGE_TYPING, Intents.DIRECT_MESSAGE_TYPING
            self.tell("TYPING_START", payload, guild, direct)

    def start_thread(self, user: User, name: str) -> Channel:
        """A thread that hangs below no message; the channel says that it was started."""
        with self.world.changed:
            thread = self.new_thread(user, name, self.world.new_id())
            self.post(user, name, kind=THREAD_CREATED, thread=thread)
            return thread

    def deny(self, target: User | Role, what: Permissions) -> None:
        self._overwrite(target, NOTHING, what)

    def allow(self, target: User | Role, what: Permissions) -> None:
        self._overwrite(target, what, NOTHING)

    def change_thread(self, **fields: Any) -> None:
        """Set archived, locked or name of a thread."""
        with self.world.changed:
            for name, value in fields.items():
                setattr(self, name, value)
            self.tell("THREAD_UPDATE", payloads.channel(self), Intents.GUILDS)

    # --- what a test waits for --------------------------------------------------------------

    def wait_for_message(
        self,
        author: User | None = None,
        *,
        reply_to: Message | None = None,
        after: Message | None = None,
        where: Callable[[Message], bool] | None = None,
        timeout: float = SECONDS_TO_WAIT,
    ) -> Message:
        """The first message that stands here by `author`, answering or later than another.

        Raises TimeoutError with what does stand in the channel.
        """

        def found() -> Message | None:
            for message in self.messages:
                if (
                    (author is None or message.author is author)
                    and (reply_to is None or message.reply_to is reply_to)
                    and (after is None or message.id > after.id)
                    and (where is None or where(message))
                ):
                    return message
            return None

        try:
            message = self.world.wait_until(found, timeout, "the awaited message")
        except TimeoutError as error:
            standing = [f"{it.author.name}: {it.content!r}" for it in self.messages[-10:]]
            raise TimeoutError(f"{error}; #{self.name} holds {standing}") from None
        assert message is not None
        return message

    def wait_for_typing(self, user: User, timeout: float = SECONDS_TO_WAIT) -> float:
        """When (time.monotonic()) the user first typed here."""
        what = f"typing by {user.name}"
        return self.world.wait_until(
            lambda: next((at for who, at in self.typing if who is user), 0.0), timeout, what
        )

    # --- what the methods above and the routes share ----------------------------------------

    def post(
        self,
        author: User,
        content: str,
        found: Mentions | None = None,
        *,
        at: datetime | None = None,
        deliver: bool = True,
        **fields: Any,
    ) -> Message:
        if found is not None:
            fields.update(
                mentions=found.users,
                role_mentions=found.roles,
                mention_everyone=found.everyone,
            )
        message = Message(self.world.new_id(at), self, author, content, **fields)
        self.posted.append(message)
        if message.is_ephemeral:
            self.world.tell()
            return message
        self.history[message.id] = message
        if self.archived:
            self.change_thread(archived=False)
        if deliver:
            self.tell_message("MESSAGE_CREATE", message)
        return message

    def new_thread(self, user: User, name: str, thread_id: int) -> Channel:
        assert self.guild is not None and self.parent is None
        thread = Channel(
            thread_id, PUBLIC_THREAD, self.world, self.guild, name, parent=self, owner=user
        )
        self.world.channels[thread.id] = thread
        payload = {**payloads.channel(thread), "newly_created": True}
        thread.tell("THREAD_CREATE", payload, Intents.GUILDS)
        return thread

    def can(self, user: User, what: Permissions) -> bool:
        return channel_permissions(self, user) & what == what

    def tell(
        self,
        name: str,
        payload: Json,
        in_guild: Intents = Intents.GUILD_MESSAGES,
        direct: Intents = Intents.DIRECT_MESSAGES,
    ) -> None:
        """An event of this channel for all bots that see it."""
        place: Json = {"guild_id": str(self.guild.id)} if self.guild else {}
        if in_guild is not Intents.GUILDS:
            place["channel_id"] = str(self.id)
        intent = in_guild if self.guild else direct
        whole = {**place, **payload}
        self.world.tell(Event(name, same_for_all(whole), intent, channel=self))

    def tell_message(self, name: str, message: Message) -> None:
        intent = Intents.GUILD_MESSAGES if self.guild else Intents.DIRECT_MESSAGES
        payload = partial(payloads.message_event, message)
        self.world.tell(Event(name, payload, intent, channel=self))

    def _overwrite(self, target: User | Role, allow: Permissions, deny: Permissions) -> None:
        with self.world.changed:
            it = self.overwrites.setdefault(target.id, Overwrite())
            it.allow = it.allow & ~deny | allow
            it.deny = it.deny & ~allow | deny
            self.tell("CHANNEL_UPDATE", payloads.channel(self), Intents.GUILDS)
