"""Users, bots, roles, and the guilds that they are members of."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from fake_discord import payloads
from fake_discord.channels import TEXT, Channel, Message
from fake_discord.rights import NOTHING, PRIVILEGED, USUAL, Intents, Permissions
from fake_discord.world import Event, World, same_for_all

Json = dict[str, Any]


@dataclass(eq=False)
class User:
    id: int
    name: str
    world: World = field(repr=False)
    global_name: str | None = None
    is_bot: bool = False
    # Whoever is in here cannot send this user a direct message.
    blocked: set[int] = field(default_factory=set)

    @property
    def mention(self) -> str:
        return f"<@{self.id}>"

    def block(self, other: User) -> None:
        with self.world.changed:
            self.blocked.add(other.id)


@dataclass(frozen=True)
class TeamMember:
    """One of those who made a bot together; roles are admin, developer and read_only."""

    user: User
    role: str = "admin"
    has_joined: bool = True


@dataclass(eq=False)
class Bot(User):
    """A user with a token; its application has the same id."""

    token: str = field(default="", repr=False)
    owner: User | None = None
    # If a team has made it; the first of them has founded it.
    team: list[TeamMember] = field(default_factory=list)
    # The privileged intents that are switched on in its developer portal.
    privileged: Intents = PRIVILEGED
    # By guild id; None holds the global ones. As sent, with an id.
    commands: dict[int | None, list[Json]] = field(default_factory=dict)
    nonces: dict[str, tuple[float, Message]] = field(default_factory=dict)
    presence: Json | None = None


def new_token(bot_id: int) -> str:
    """In the shape of a real one, so that what looks for tokens in logs finds it."""
    first = base64.b64encode(str(bot_id).encode()).decode().rstrip("=")
    return f"{first}.{secrets.token_urlsafe(5)[:6]}.{secrets.token_urlsafe(29)[:38]}"


@dataclass(eq=False)
class Role:
    id: int
    name: str
    permissions: Permissions
    position: int = 0

    @property
    def mention(self) -> str:
        return f"<@&{self.id}>"


@dataclass(eq=False)
class Member:
    user: User
    joined: datetime
    roles: list[Role] = field(default_factory=list)
    nick: str | None = None


@dataclass(eq=False)
class Guild:
    id: int
    name: str
    owner: User
    world: World = field(repr=False)
    roles: dict[int, Role] = field(default_factory=dict, repr=False)
    members: dict[int, Member] = field(default_factory=dict, repr=False)
    channels: dict[int, Channel] = field(default_factory=dict, repr=False)

    @property
    def everyone(self) -> Role:
        return self.roles[self.id]

    @property
    def threads(self) -> list[Channel]:
        return [it for it in self.world.channels.values() if it.guild is self and it.parent]

    def add_role(self, name: str, permissions: Permissions = NOTHING) -> Role:
        with self.world.changed:
            role = Role(self.world.new_id(), name, permissions, len(self.roles))
            self.roles[role.id] = role
            payload = {"guild_id": str(self.id), "role": payloads.role(role)}
            self._tell("GUILD_ROLE_CREATE", payload)
            return role

    def add_member(self, user: User, roles: Iterable[Role] = (), nick: str | None = None) -> Member:
        """A bot that joins hears of the whole guild; the others hear of the newcomer."""
        with self.world.changed:
            member = Member(user, datetime.now(UTC), list(roles), nick)
            payload = {"guild_id": str(self.id), **payloads.member(member)}
            self._tell("GUILD_MEMBER_ADD", payload, Intents.GUILD_MEMBERS)
            self.members[user.id] = member
            if isinstance(user, Bot):
                whole = partial(payloads.guild_create, self, just_joined=True)
                self.world.tell(Event("GUILD_CREATE", whole, Intents.GUILDS, bot=user))
            return member

    def remove_member(self, user: User) -> None:
        with self.world.changed:
            del self.members[user.id]
            payload = {"guild_id": str(self.id), "user": payloads.user(user)}
            self._tell("GUILD_MEMBER_REMOVE", payload, Intents.GUILD_MEMBERS)

    def change_member(
        self, user: User, *, roles: Iterable[Role] | None = None, nick: str | None = None
    ) -> None:
        with self.world.changed:
            member = self.members[user.id]
            member.roles = member.roles if roles is None else list(roles)
            member.nick = nick or member.nick
            payload = {"guild_id": str(self.id), **payloads.member(member)}
            self._tell("GUILD_MEMBER_UPDATE", payload, Intents.GUILD_MEMBERS)
            if isinstance(user, Bot):  # hears of itself whatever its intents
                self.world.tell(Event("GUILD_MEMBER_UPDATE", same_for_all(payload), bot=user))

    def add_channel(self, name: str, topic: str | None = None) -> Channel:
        with self.world.changed:
            channel = Channel(self.world.new_id(), TEXT, self.world, self, name, topic=topic)
            self.channels[channel.id] = self.world.channels[channel.id] = channel
            self._tell("CHANNEL_CREATE", payloads.channel(channel))
            return channel

    def _tell(self, name: str, payload: Json, intent: Intents = Intents.GUILDS) -> None:
        self.world.tell(Event(name, same_for_all(payload), intent, guild=self))


def everyone_role(guild_id: int) -> Role:
    return Role(guild_id, "@everyone", USUAL)
