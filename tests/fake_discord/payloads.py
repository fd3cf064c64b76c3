"""The state as Discord's JSON: only fields that discord.py reads, plus what makes them true.

Ids are strings, as on the wire. Where an absent value has to be left out (a null would break
the client's parser) it is left out.
"""

from __future__ import annotations

import mimetypes
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fake_discord.rights import Intents, channel_permissions, sees_content
from fake_discord.world import snowflake_time

if TYPE_CHECKING:
    from fake_discord.channels import Channel, Message
    from fake_discord.interactions import Interaction
    from fake_discord.people import Bot, Guild, Member, Role, User

Json = dict[str, Any]
GATEWAY_GUILD_MEMBERS_LIMITED = 1 << 15
GATEWAY_PRESENCE_LIMITED = 1 << 13
GATEWAY_MESSAGE_CONTENT_LIMITED = 1 << 19


def user(it: User) -> Json:
    return {
        "id": str(it.id),
        "username": it.name,
        "discriminator": "0",
        "global_name": it.global_name,
        "avatar": None,
        "bot": it.is_bot,
        "public_flags": 0,
    }


def application(bot: Bot) -> Json:
    """Its flags tell which privileged intents are switched on in the portal."""
    flags = 0
    for intent, flag in (
        (Intents.GUILD_MEMBERS, GATEWAY_GUILD_MEMBERS_LIMITED),
        (Intents.GUILD_PRESENCES, GATEWAY_PRESENCE_LIMITED),
        (Intents.MESSAGE_CONTENT, GATEWAY_MESSAGE_CONTENT_LIMITED),
    ):
        flags |= flag if bot.privileged & intent else 0
    return {
        "id": str(bot.id),
        "name": bot.name,
        "icon": None,
        "description": "",
        "bot_public": True,
        "bot_require_code_grant": False,
        "verify_key": "0" * 64,
        "owner": user(bot.owner or bot),
        "team": team(bot) if bot.team else None,
        "flags": flags,
    }


def team(bot: Bot) -> Json:
    """Its first member has founded it."""
    members = [
        {"user": user(it.user), "role": it.role, "membership_state": 2 if it.has_joined else 1}
        for it in bot.team
    ]
    return {
        "id": str(bot.id),
        "name": "Team",
        "icon": None,
        "owner_user_id": str(bot.team[0].user.id),
        "members": members,
    }


def role(it: Role) -> Json:
    return {
        "id": str(it.id),
        "name": it.name,
        "permissions": str(int(it.permissions)),
        "position": it.position,
        "colors": {"primary_color": 0},
        "hoist": False,
        "managed": False,
        "mentionable": False,
        "flags": 0,
    }


def member(it: Member, *, with_user: bool = True) -> Json:
    whole = {
        "roles": [str(role.id) for role in it.roles],
        "nick": it.nick,
        "joined_at": it.joined.isoformat(),
        "flags": 0,
        "deaf": False,
        "mute": False,
    }
    return {"user": user(it.user), **whole} if with_user else whole


def channel(it: Channel) -> Json:
    whole: Json = {"id": str(it.id), "type": it.kind, "flags": 0}
    if it.guild is None:
        return {**whole, "recipients": [user(one) for one in it.recipients if not one.is_bot]}
    whole |= {"guild_id": str(it.guild.id), "name": it.name}
    if it.parent is not None:
        assert it.owner is not None
        return {
            **whole,
            "parent_id": str(it.parent.id),
            "owner_id": str(it.owner.id),
            "message_count": len(it.history),
            "member_count": 1,
            "thread_metadata": {
                "archived": it.archived,
                "locked": it.locked,
                "auto_archive_duration": 1440,
                "archive_timestamp": datetime.now(UTC).isoformat(),
            },
        }
    overwrites = [
        {
            "id": str(target),
            "type": 0 if target in it.guild.roles else 1,
            "allow": str(int(overwrite.allow)),
            "deny": str(int(overwrite.deny)),
        }
        for target, overwrite in it.overwrites.items()
    ]
    return {
        **whole,
        "position": 0,
        "topic": it.topic,
        "nsfw": False,
        "rate_limit_per_user": 0,
        "permission_overwrites": overwrites,
    }


def guild_create(it: Guild, bot: Bot, intents: Intents, *, just_joined: bool = False) -> Json:
    """Without the members intent a bot is told of itself alone.

    One that was in the guild before hears that it is no longer unavailable.
    """
    members = it.members.values()
    known: Json = {} if just_joined else {"unavailable": False}
    threads = [one for one in it.threads if not one.archived]
    return {
        "id": str(it.id),
        "name": it.name,
        "owner_id": str(it.owner.id),
        **known,
        "large": False,
        "member_count": len(members),
        "roles": [role(one) for one in it.roles.values()],
        "channels": [channel(one) for one in it.channels.values()],
        "threads": [channel(one) for one in threads],
        "members": [
            member(one) for one in members if intents & Intents.GUILD_MEMBERS or one.user is bot
        ],
        "emojis": [],
        "stickers": [],
        "features": [],
        "voice_states": [],
        "presences": [],
    }


def attachment(new_id: int, name: str) -> Json:
    """A file that nobody can fetch: its address leads nowhere."""
    address = f"https://cdn.discordapp.invalid/attachments/{new_id}/{name}"
    kind = mimetypes.guess_type(name)[0]
    whole: Json = {"id": str(new_id), "filename": name, "size": 1, "url": address}
    whole["proxy_url"] = address
    return whole | ({"content_type": kind} if kind else {})


def message(it: Message, viewer: Bot, intents: Intents, *, nested: bool = False) -> Json:
    """A message as one bot sees it: without the content intent most texts are empty."""
    open_to_viewer = sees_content(it, viewer, intents)
    guild = it.channel.guild
    whole: Json = {
        "id": str(it.id),
        "channel_id": str(it.channel.id),
        "type": it.kind,
        "content": it.content if open_to_viewer else "",
        "author": user(it.author),
        "timestamp": snowflake_time(it.id).isoformat(),
        "edited_timestamp": it.edited.isoformat() if it.edited else None,
        "tts": False,
        "pinned": False,
        "flags": it.flags,
        "mentions": [user(one) for one in it.mentions],
        "mention_roles": [str(one.id) for one in it.role_mentions],
        "mention_everyone": it.mention_everyone,
        "attachments": it.attachments if open_to_viewer else [],
        "embeds": it.embeds if open_to_viewer else [],
        "components": it.components if open_to_viewer else [],
        "reactions": [reaction(emoji, users, viewer) for emoji, users in it.reactions.items()],
    }
    if guild is not None:
        whole["guild_id"] = str(guild.id)
    if it.nonce is not None:
        whole["nonce"] = it.nonce
    if it.thread is not None:
        whole["thread"] = channel(it.thread)
    if it.interaction is not None:
        whole["application_id"] = whole["webhook_id"] = str(it.interaction.bot.id)
        whole["interaction_metadata"] = interaction_metadata(it.interaction)
    if it.reply_to is not None and not nested:
        whole |= reference(it.reply_to, viewer, intents)
    return whole


def message_event(it: Message, viewer: Bot, intents: Intents) -> Json:
    """Only the gateway tells who the author is in the guild."""
    whole, guild = message(it, viewer, intents), it.channel.guild
    if guild is not None and it.author.id in guild.members:
        whole["member"] = member(guild.members[it.author.id], with_user=False)
    return whole


def reference(it: Message, viewer: Bot, intents: Intents) -> Json:
    """What a reply hangs on; a deleted message is null there."""
    pointer: Json = {"type": 0, "message_id": str(it.id), "channel_id": str(it.channel.id)}
    if it.channel.guild:
        pointer["guild_id"] = str(it.channel.guild.id)
    gone = it.deleted_at is not None
    shown = None if gone else message(it, viewer, intents, nested=True)
    return {"message_reference": pointer, "referenced_message": shown}


def reaction(emoji: str, users: list[User], viewer: Bot) -> Json:
    return {
        "emoji": {"id": None, "name": emoji},
        "count": len(users),
        "count_details": {"normal": len(users), "burst": 0},
        "me": viewer in users,
        "me_burst": False,
        "burst_colors": [],
    }


def reaction_event(it: Message, who: User, emoji: str) -> Json:
    whole: Json = {
        "user_id": str(who.id),
        "message_id": str(it.id),
        "message_author_id": str(it.author.id),
        "emoji": {"id": None, "name": emoji},
        "type": 0,
        "burst": False,
    }
    guild = it.channel.guild
    if guild is not None and who.id in guild.members:
        whole["member"] = member(guild.members[who.id])
    return whole


def typing_event(it: Channel, who: User) -> Json:
    whole: Json = {"user_id": str(who.id), "timestamp": int(time.time())}
    if it.guild is not None and who.id in it.guild.members:
        whole["member"] = member(it.guild.members[who.id])
    return whole


def interaction_metadata(it: Interaction) -> Json:
    return {
        "id": str(it.id),
        "type": it.kind,
        "user": user(it.user),
        "authorizing_integration_owners": {},
    }


def interaction(it: Interaction, bot: Bot, intents: Intents) -> Json:
    whole: Json = {
        "id": str(it.id),
        "application_id": str(it.bot.id),
        "type": it.kind,
        "token": it.token,
        "version": 1,
        "channel": channel(it.channel),
        "channel_id": str(it.channel.id),
        "data": it.data,
        "locale": "en-US",
        "entitlements": [],
        "attachment_size_limit": 10 * 1024 * 1024,
        "app_permissions": str(int(channel_permissions(it.channel, it.bot))),
        "authorizing_integration_owners": {},
        "context": 0 if it.channel.guild else 1,
    }
    if it.message is not None:
        # The message that is acted on comes with its content, intent or not.
        whole["message"] = message(it.message, bot, intents | Intents.MESSAGE_CONTENT)
    guild = it.channel.guild
    if guild is None:
        return {**whole, "user": user(it.user)}
    permissions = str(int(channel_permissions(it.channel, it.user)))
    whole["member"] = {**member(guild.members[it.user.id]), "permissions": permissions}
    return {**whole, "guild_id": str(guild.id), "guild_locale": "en-US"}
