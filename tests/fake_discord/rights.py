"""Permission and intent bits as Discord numbers them, and who may do what where."""

from __future__ import annotations

from enum import IntFlag
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fake_discord.channels import Channel, Message
    from fake_discord.people import Guild, User


class Permissions(IntFlag):
    ADMINISTRATOR = 1 << 3
    MANAGE_GUILD = 1 << 5
    ADD_REACTIONS = 1 << 6
    VIEW_CHANNEL = 1 << 10
    SEND_MESSAGES = 1 << 11
    MANAGE_MESSAGES = 1 << 13
    EMBED_LINKS = 1 << 14
    ATTACH_FILES = 1 << 15
    READ_MESSAGE_HISTORY = 1 << 16
    MENTION_EVERYONE = 1 << 17
    USE_APPLICATION_COMMANDS = 1 << 31
    CREATE_PUBLIC_THREADS = 1 << 35
    SEND_MESSAGES_IN_THREADS = 1 << 38


NOTHING = Permissions(0)
EVERYTHING = Permissions((1 << 53) - 1)
# What @everyone has on a new server, as far as this server knows it.
USUAL = (
    Permissions.ADD_REACTIONS
    | Permissions.VIEW_CHANNEL
    | Permissions.SEND_MESSAGES
    | Permissions.EMBED_LINKS
    | Permissions.ATTACH_FILES
    | Permissions.READ_MESSAGE_HISTORY
    | Permissions.USE_APPLICATION_COMMANDS
    | Permissions.CREATE_PUBLIC_THREADS
    | Permissions.SEND_MESSAGES_IN_THREADS
)


class Intents(IntFlag):
    GUILDS = 1 << 0
    GUILD_MEMBERS = 1 << 1
    GUILD_PRESENCES = 1 << 8
    GUILD_MESSAGES = 1 << 9
    GUILD_MESSAGE_REACTIONS = 1 << 10
    GUILD_MESSAGE_TYPING = 1 << 11
    DIRECT_MESSAGES = 1 << 12
    DIRECT_MESSAGE_REACTIONS = 1 << 13
    DIRECT_MESSAGE_TYPING = 1 << 14
    MESSAGE_CONTENT = 1 << 15


NO_INTENT = Intents(0)
# What has to be switched on in the developer portal.
PRIVILEGED = Intents.GUILD_MEMBERS | Intents.GUILD_PRESENCES | Intents.MESSAGE_CONTENT


def guild_permissions(guild: Guild, user: User) -> Permissions:
    """What the roles of a member give, before the overwrites of a channel."""
    member = guild.members.get(user.id)
    if member is None:
        return NOTHING
    if user is guild.owner:
        return EVERYTHING
    granted = guild.everyone.permissions
    for role in member.roles:
        granted |= role.permissions
    return EVERYTHING if granted & Permissions.ADMINISTRATOR else granted


def channel_permissions(channel: Channel, user: User) -> Permissions:
    """What a member may do in a channel; a thread has the overwrites of its parent.

    The order of https://docs.discord.com/developers/topics/permissions: @everyone's overwrite,
    those of all roles together, the member's own. A direct message is open to its two.
    """
    if channel.guild is None:
        return USUAL if user in channel.recipients else NOTHING
    granted = guild_permissions(channel.guild, user)
    if granted == EVERYTHING or user.id not in channel.guild.members:
        return granted
    overwrites = (channel.parent or channel).overwrites
    of_roles = [role.id for role in channel.guild.members[user.id].roles]
    for targets in ([channel.guild.id], of_roles, [user.id]):
        found = [overwrites[target] for target in targets if target in overwrites]
        for overwrite in found:
            granted &= ~overwrite.deny
        for overwrite in found:
            granted |= overwrite.allow
    # Who does not see a channel can do nothing in it.
    return granted if granted & Permissions.VIEW_CHANNEL else NOTHING


def sees_content(message: Message, viewer: User, intents: Intents) -> bool:
    """Without the intent: the bot's own messages, direct ones, and those that mention it."""
    return bool(
        intents & Intents.MESSAGE_CONTENT
        or message.author is viewer
        or message.channel.guild is None
        or viewer in message.mentions
    )
