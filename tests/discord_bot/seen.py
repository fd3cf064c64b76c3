"""Messages as the bot sees them, without Discord."""

from dataclasses import replace
from typing import Any

from discord_lora.discord_bot.seen_message import SeenMessage
from discord_lora.messages.sources.base import Channel, Kind, ParsedMessage, Person
from discord_lora.messages.timestamps import to_microseconds
from fakes import MONDAY

BOT_ID = "999"
CHANNEL = Channel("Guild", "77", "general")
SECOND = 1_000_000


def seen(number: int, content: str = "", *, author: str = "Ada", **changes: Any) -> SeenMessage:
    """Message `number`, said so many seconds after a Monday evening began; ids grow with it."""
    own = changes.pop("is_own", author == "bot")
    parsed = ParsedMessage(
        id=str(number),
        channel=replace(CHANNEL, id=changes.pop("channel", CHANNEL.id)),
        time=to_microseconds(MONDAY) + number * SECOND,
        author=Person(BOT_ID if own else f"id-{author}", author.lower(), author),
        content=content or f"text {number}",
        kind=changes.pop("kind", Kind.TALK),
        is_bot=changes.pop("is_bot", own),
        reply_to=changes.pop("reply_to", None),
        mentions=changes.pop("mentions", ()),
    )
    defaults = {"typed": parsed.content, "is_own": own, "place_ids": (parsed.channel.id,)}
    return SeenMessage(parsed, **(defaults | changes))
