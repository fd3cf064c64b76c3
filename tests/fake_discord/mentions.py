"""Whom a text mentions: what was typed, what the sender allows, what the sender may."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fake_discord.rights import Permissions

if TYPE_CHECKING:
    from fake_discord.channels import Channel, Message
    from fake_discord.people import Role, User


@dataclass
class Mentions:
    users: list[User] = field(default_factory=list)
    roles: list[Role] = field(default_factory=list)
    everyone: bool = False


def as_typed(content: str, mentions: Sequence[User | Role]) -> str:
    """ "@name" as Discord's own client sends it, <@id>.

    Raises ValueError for somebody whom the text does not name: no client could send that.
    """
    for it in mentions:
        if it.mention not in content:
            if f"@{it.name}" not in content:
                raise ValueError(f"{content!r} does not mention @{it.name}")
            content = content.replace(f"@{it.name}", it.mention)
    return content


def mentions_of(
    channel: Channel,
    author: User,
    content: str,
    allowed: dict[str, Any] | None,
    reply_to: Message | None = None,
) -> Mentions:
    """What really pings, by Discord's rules for allowed_mentions.

    Without the object, all that is written and the author who is replied to; with it, only what
    its `parse`, `users`, `roles` and `replied_user` name. @everyone and @here, and roles, ping
    only if the author has the permission to mention them.
    """
    world = channel.world
    users = [int(it) for it in re.findall(r"<@!?(\d+)>", content)]
    roles = [int(it) for it in re.findall(r"<@&(\d+)>", content)]
    everyone = re.search(r"@(everyone|here)\b", content) is not None
    pings_author = True
    if allowed is not None:
        parse = allowed.get("parse", [])
        if "users" not in parse:
            users = [it for it in users if str(it) in map(str, allowed.get("users", []))]
        if "roles" not in parse:
            roles = [it for it in roles if str(it) in map(str, allowed.get("roles", []))]
        everyone = everyone and "everyone" in parse
        pings_author = bool(allowed.get("replied_user", False))
    if channel.guild is None or not channel.can(author, Permissions.MENTION_EVERYONE):
        roles, everyone = [], False
    found = Mentions(
        [world.users[it] for it in dict.fromkeys(users) if it in world.users],
        [channel.guild.roles[it] for it in dict.fromkeys(roles) if it in channel.guild.roles]
        if channel.guild
        else [],
        everyone,
    )
    if reply_to is not None and pings_author and reply_to.author not in found.users:
        found.users.append(reply_to.author)
    return found
