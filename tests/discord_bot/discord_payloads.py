"""Messages as Discord's gateway sends them, read by discord.py's own parsers without a connection.

The same invented messages as DiscordChatExporter writes them stand beside each other in `Said`.
"""

import copy
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import discord
from discord.state import ConnectionState

from discord_lora.discord_bot.from_discord import seen_message
from messages.example_exports import CHANNEL, GUILD, id_of, user

BOT_ID = 700_000_000_000_000_001
BOT_ROLE = 600_000_000_000_000_001
MODS_ROLE = 600_000_000_000_000_002
VOICE_CHANNEL = 900_000_000_000_000_003
THREAD = 900_000_000_000_000_004
DM = 900_000_000_000_000_005
CATEGORY = 900_000_000_000_000_006


class Gateway:
    """discord.py's state of one guild: what it makes of payloads comes back."""

    def __init__(self, members: Any = ()) -> None:
        self.dispatched: list[tuple[Any, ...]] = []
        http: Any = SimpleNamespace()
        self.state = ConnectionState(
            dispatch=lambda *event: self.dispatched.append(event),
            handlers={},
            hooks={},
            http=http,
            intents=discord.Intents(guilds=True, messages=True, message_content=True),
            chunk_guilds_at_startup=False,
        )
        self.state.user = SimpleNamespace(id=BOT_ID)  # type: ignore[assignment]
        self.state.parse_guild_create(guild_payload())
        self.dispatched.clear()

    def create(self, payload: dict[str, Any]) -> discord.Message:
        self.state.parse_message_create(copy.deepcopy(payload))
        return self.dispatched[-1][1]

    def edit(self, payload: dict[str, Any]) -> discord.Message:
        self.state.parse_message_update(copy.deepcopy(payload))
        raw = [event[1] for event in self.dispatched if event[0] == "raw_message_edit"]
        return raw[-1].message

    def from_history(self, payload: dict[str, Any]) -> discord.Message:
        """History carries no `member`, so nicknames are missing there."""
        bare = {k: v for k, v in copy.deepcopy(payload).items() if k not in {"member", "guild_id"}}
        for mention in bare["mentions"]:
            mention.pop("member", None)
        guild = self.state._get_guild(int(GUILD["id"]))
        channel = guild.get_channel(int(bare["channel_id"]))
        return discord.Message(state=self.state, channel=channel, data=bare)

    def seen(self, payload: dict[str, Any]) -> Any:
        return seen_message(self.create(payload), BOT_ID)


def guild_payload() -> dict[str, Any]:
    everyone = {"id": GUILD["id"], "name": "@everyone", "permissions": "0", "position": 0}
    roles = [
        everyone,
        {"id": str(BOT_ROLE), "name": "Heron Bot", "tags": {"bot_id": str(BOT_ID)}},
        {"id": str(MODS_ROLE), "name": "Mods"},
    ]
    channels = [
        {"id": str(CATEGORY), "type": 4, "name": "Talk", "position": 0},
        {"id": CHANNEL["id"], "type": 0, "name": "general", "position": 1,
         "parent_id": str(CATEGORY)},
        {"id": str(VOICE_CHANNEL), "type": 2, "name": "lounge", "position": 2,
         "bitrate": 64000, "user_limit": 0},
    ]  # fmt: skip
    thread = {
        "id": str(THREAD), "type": 11, "name": "tea talk", "parent_id": CHANNEL["id"],
        "owner_id": str(BOT_ID), "message_count": 1, "member_count": 1,
        "thread_metadata": {"archived": False, "auto_archive_duration": 60,
                            "archive_timestamp": "2024-05-01T12:00:00+00:00"},
    }  # fmt: skip
    return {
        "id": GUILD["id"], "name": GUILD["name"], "owner_id": "1", "member_count": 3,
        "unavailable": False, "roles": [{"permissions": "0", "position": 1, "color": 0,
        "hoist": False, "managed": False, "mentionable": True, **role} for role in roles],
        "channels": channels, "threads": [thread], "members": [], "emojis": [],
    }  # fmt: skip


def account(person: dict[str, Any]) -> dict[str, Any]:
    """The gateway's user object of one of the export's; its global name is not shown there."""
    return {
        "id": person["id"], "username": person["name"], "discriminator": "0", "avatar": None,
        "global_name": f"Global {person['name']}", "bot": person["isBot"],
    }  # fmt: skip


def membership(person: dict[str, Any]) -> dict[str, Any]:
    roles = [role["id"] for role in person["roles"]]
    return {"nick": person["nickname"], "roles": roles, "flags": 0}


@dataclass
class Said:
    """One message in both shapes. `typed` has Discord's tokens, `exported` what the exporter writes
    for them."""

    number: int
    typed: str
    exported: str | None = None
    author: dict[str, Any] = field(default_factory=lambda: user(0))
    mentions: tuple[dict[str, Any], ...] = ()
    mention_roles: tuple[int, ...] = ()
    type: int = 0
    reply_to: int | None = None
    attachments: int = 0
    stickers: int = 0
    edited: str | None = None
    forwarded: str | None = None
    interaction: bool = False

    def as_exported(self) -> dict[str, Any]:
        names = {0: "Default", 19: "Reply", 7: "GuildMemberJoin"}
        raw = {
            "id": snowflake(self.number),
            "type": names.get(self.type, str(self.type)),
            "timestamp": timestamp(self.number),
            "timestampEdited": self.edited,
            "isPinned": False,
            "content": self.typed if self.exported is None else self.exported,
            "author": self.author,
            "attachments": [{"id": "1", "url": "u", "fileName": "f"}] * self.attachments,
            "embeds": [],
            "stickers": [{"id": "1", "name": "s", "format": "Png"}] * self.stickers,
            "reactions": [],
            "mentions": list(self.mentions),
        }
        if self.reply_to is not None:
            raw["reference"] = {"messageId": snowflake(self.reply_to), "channelId": CHANNEL["id"]}
        if self.forwarded is not None:
            raw["forwardedMessage"] = {"content": self.forwarded}
        if self.interaction:
            raw["interaction"] = {"id": "5", "name": "roll", "user": user(1)}
        return raw

    def payload(self, **changes: Any) -> dict[str, Any]:
        raw = {
            "id": snowflake(self.number),
            "channel_id": CHANNEL["id"],
            "guild_id": GUILD["id"],
            "type": self.type,
            "content": self.typed,
            "timestamp": timestamp(self.number),
            "edited_timestamp": self.edited,
            "author": account(self.author),
            "member": membership(self.author),
            "mentions": [
                {**account(person), "member": membership(person)} for person in self.mentions
            ],
            "mention_roles": [str(role) for role in self.mention_roles],
            "mention_everyone": False,
            "attachments": [
                {"id": "1", "filename": "f", "size": 1, "url": "u", "proxy_url": "u"}
            ] * self.attachments,
            "embeds": [],
            "sticker_items": [{"id": "1", "name": "s", "format_type": 1}] * self.stickers,
        }  # fmt: skip
        if self.reply_to is not None:
            raw["message_reference"] = {
                "message_id": snowflake(self.reply_to),
                "channel_id": CHANNEL["id"],
            }
        if self.forwarded is not None:
            raw["message_snapshots"] = [
                {"message": {"type": 0, "content": self.forwarded, "embeds": [], "attachments": [],
                             "timestamp": timestamp(0), "edited_timestamp": None}}
            ]  # fmt: skip
        if self.interaction:
            raw["interaction_metadata"] = {
                "id": "5", "type": 2, "user": account(user(1)),
                "authorizing_integration_owners": {},
            }  # fmt: skip
        return raw | changes


def snowflake(number: int) -> str:
    """Ids whose time is the message's: `number` counts seconds."""
    return str(FIRST_MS + number * 1000 << 22)


def timestamp(number: int) -> str:
    moment = discord.utils.snowflake_time(int(snowflake(number)))
    return moment.isoformat()


FIRST_MS = (int(id_of(0)) >> 22) // 1000 * 1000
