"""discord.py's message → `SeenMessage`, by way of the exporter's shape.

A message is first written down as DiscordChatExporter would have written it into the JSON that
training began with, and then read by the trainer's own reader. So names, replies, forwards,
notices and mentions mean here what they meant there. One thing cannot be the same: the exporter
writes `<t:…>` in the language of the computer it ran on, and the bot as training's cleaning does.
"""

import re
from typing import Any

import discord

from discord_lora.discord_bot.reply_messages import without_guards
from discord_lora.discord_bot.seen_message import SeenMessage
from discord_lora.messages.sources.base import Channel
from discord_lora.messages.sources.discordchatexporter_json import parse_message
from discord_lora.messages.timestamps import to_microseconds

_REPLY = discord.MessageType.reply
_TOKEN = re.compile(r"<(?:@!?(?P<user>\d+)|@&(?P<role>\d+)|#(?P<channel>\d+))>")
_UNKNOWN_USER = "@Unknown"
_DELETED_ROLE = "@deleted-role"
_DELETED_CHANNEL = "#deleted-channel"
_DIRECT_MESSAGES = "Direct Messages"


def seen_message(message: discord.Message, bot_id: int) -> SeenMessage:
    """One message of the gateway or of history.

    Args:
        message: of any kind; also the `message` of a raw edit event.
        bot_id: the bot's own user id.
    """
    author, channel = message.author, message.channel
    parsed = parse_message(_as_exported(message, bot_id), _channel_of(message), {})
    edited = message.edited_at
    mentioned = {user.id for user in message.mentions}
    answered = _answered_author(message)
    return SeenMessage(
        parsed,
        typed=message.content,
        edited=to_microseconds(edited) if edited else 0,
        is_own=author.id == bot_id,
        knows_nickname=_knows_nickname(message),
        role_ids=_role_ids(message),
        place_ids=places_of(channel),
        is_dm=message.guild is None,
        in_own_thread=isinstance(channel, discord.Thread) and channel.owner_id == bot_id,
        mentions_bot=bot_id in mentioned or _mentions_role_of(message, bot_id),
        replies_to_bot=answered == bot_id,
        speaks_to_others=bool(mentioned - {bot_id}) or answered not in {None, bot_id},
    )


def _as_exported(message: discord.Message, bot_id: int) -> dict[str, Any]:
    """The message as an object of DiscordChatExporter's JSON: the keys that the reader looks at."""
    content = without_guards(message.content) if message.author.id == bot_id else message.content
    raw: dict[str, Any] = {
        "id": str(message.id),
        "type": str(message.type.value),
        "timestamp": message.created_at.isoformat(),
        "content": _as_exporter_writes(content, message),
        "author": {
            **_user(message.author),
            "isBot": message.author.bot or message.webhook_id is not None,
        },
        "attachments": list(message.attachments),
        "embeds": list(message.embeds),
        "stickers": list(message.stickers),
        "mentions": [_user(user) for user in message.mentions],
    }
    if message.reference is not None and message.reference.message_id is not None:
        raw["reference"] = {"messageId": str(message.reference.message_id)}
    if message.interaction_metadata is not None:
        raw["interaction"] = {"id": str(message.interaction_metadata.id)}
    if message.message_snapshots:
        forwarded = message.message_snapshots[0].content
        raw["forwardedMessage"] = {"content": _as_exporter_writes(forwarded, message)}
    return raw


def _user(user: discord.abc.User) -> dict[str, str]:
    """The exporter's nickname is discord.py's display name: in the server, else global, else the
    account's."""
    return {"id": str(user.id), "name": user.name, "nickname": user.display_name}


def _as_exporter_writes(text: str, message: discord.Message) -> str:
    """Mentions by name, as the exporter's `--markdown` does; everything else as it was typed."""
    if "<" not in text:
        return text
    names = {user.id: user.display_name for user in message.mentions}
    guild = message.guild

    def written(match: re.Match[str]) -> str:
        if match["user"]:
            user_id = int(match["user"])
            member = guild.get_member(user_id) if guild else None
            name = names.get(user_id) or (member.display_name if member else "")
            return f"@{name}" if name else _UNKNOWN_USER
        if match["role"]:
            role = guild.get_role(int(match["role"])) if guild else None
            return f"@{role.name}" if role else _DELETED_ROLE
        channel = guild.get_channel_or_thread(int(match["channel"])) if guild else None
        if channel is None:
            return _DELETED_CHANNEL
        voice = isinstance(channel, discord.VoiceChannel | discord.StageChannel)
        return f"#{channel.name}" + (" [voice]" if voice else "")

    return _TOKEN.sub(written, text)


def _channel_of(message: discord.Message) -> Channel:
    channel = message.channel
    guild = message.guild.name if message.guild else _DIRECT_MESSAGES
    recipient = getattr(channel, "recipient", None)
    name = getattr(channel, "name", None) or (recipient.name if recipient else "")
    return Channel(guild, str(channel.id), name or str(channel.id))


def _knows_nickname(message: discord.Message) -> bool:
    if message.guild is None or message.webhook_id is not None:
        return True
    return isinstance(message.author, discord.Member)


def _role_ids(message: discord.Message) -> frozenset[str] | None:
    if isinstance(message.author, discord.Member):
        return frozenset(str(role.id) for role in message.author.roles)
    return frozenset() if message.webhook_id is not None else None


def places_of(channel: Any) -> tuple[str, ...]:
    """The channel, its parent if it is a thread, and the category: what lists may name."""
    found = (channel.id, getattr(channel, "parent_id", None), getattr(channel, "category_id", None))
    return tuple(str(place) for place in found if place)


def _mentions_role_of(message: discord.Message, bot_id: int) -> bool:
    """People often pick the role that Discord made for the bot, which has the same name."""
    return any(
        role.tags is not None and role.tags.bot_id == bot_id for role in message.role_mentions
    )


def _answered_author(message: discord.Message) -> int | None:
    """Who wrote the message that this one replies to; None where Discord does not tell."""
    reference = message.reference
    if message.type is not _REPLY or reference is None:
        return None
    found = reference.resolved
    return found.author.id if isinstance(found, discord.Message) else None
