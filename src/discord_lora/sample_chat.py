"""The public chitchat dataset as DiscordChatExporter files of one person's direct messages.

Senders in the dataset are bare ids: everybody gets an invented name, and ids, names and files are
the same on every machine.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

DISCORD_EPOCH_MS = 1_420_070_400_000
AVATAR_URL = "https://cdn.discordapp.com/embed/avatars/0.png"

ADJECTIVES = """
    amber arctic brave bright calm clever coral cosmic crisp dapper dusty early electric fluffy
    frosty gentle golden hazy ivory jolly keen lofty lucky lunar mellow misty noble olive plucky
    quiet rapid rustic sandy silver sleepy snowy solar sunny swift tidy velvet windy witty zesty
"""
ANIMALS = """
    alpaca badger beetle bison crane cricket dingo dolphin falcon ferret finch gecko gopher heron
    ibis iguana jackal koala lemur llama lynx mantis marmot mole moth narwhal newt orca osprey
    otter panda pelican possum puffin quokka raccoon robin stoat tapir toucan vole walrus wombat
    yak zebra
"""

Conversations = Mapping[str, Mapping[str, Any]]


def chat_exports(
    conversations: Conversations, persona: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """File name and content of the persona's export with each partner, in DCE's JSON shape.

    `conversations` is the dataset: `{id: {"messages": [[{text, timestamp, sender}, ...], ...]}}`
    with bare ids as senders. Conversations that nobody answered are left out.
    """
    with_partner: dict[str, list[dict[str, str]]] = defaultdict(list)
    for conversation in conversations.values():
        messages = [message for turn in conversation["messages"] for message in turn]
        partners = {message["sender"] for message in messages} - {persona}
        if len(partners) == 1 and any(message["sender"] == persona for message in messages):
            with_partner[partners.pop()] += messages
    names = pseudonyms([persona, *with_partner])
    for partner in sorted(with_partner, key=names.__getitem__):
        messages = sorted(with_partner[partner], key=lambda message: message["timestamp"])
        channel = snowflake(milliseconds(messages[0]["timestamp"]), partner, persona)
        export = dm_export(channel, names[partner], dce_messages(messages, names, channel))
        yield f"Direct Messages - {names[partner]} [{channel}].json", export


def dm_export(channel: int, partner: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "guild": {"id": "0", "name": "Direct Messages", "iconUrl": AVATAR_URL},
        "channel": {
            "id": str(channel),
            "type": "DirectTextChat",
            "categoryId": None,
            "category": None,
            "name": partner,
            "topic": None,
        },
        "dateRange": {"after": None, "before": None},
        "exportedAt": messages[-1]["timestamp"],
        "messages": messages,
        "messageCount": len(messages),
    }


def dce_messages(
    messages: Iterable[Mapping[str, str]], names: Mapping[str, str], channel: int
) -> list[dict[str, Any]]:
    """The messages in DCE's shape, with ids that sort as the messages do."""
    rendered: list[dict[str, Any]] = []
    last_moment, nth = 0, 0
    for message in messages:
        moment = milliseconds(message["timestamp"])
        nth = nth + 1 if moment == last_moment else 0
        last_moment = moment
        # Discord: 42 bits of time, 10 of machine, 12 that count within the millisecond. The
        # channel stands in for the machine, so that ids of two channels do not meet.
        identity = (moment - DISCORD_EPOCH_MS) << 22 | (channel & 0x3FF) << 12 | nth & 0xFFF
        rendered.append(dce_message(identity, message, names[message["sender"]]))
    return rendered


def dce_message(identity: int, message: Mapping[str, str], name: str) -> dict[str, Any]:
    return {
        "id": str(identity),
        "type": "Default",
        "timestamp": message["timestamp"].replace("Z", "+00:00"),
        "timestampEdited": None,
        "callEndedTimestamp": None,
        "isPinned": False,
        "content": message["text"],
        "author": {
            "id": str(snowflake(DISCORD_EPOCH_MS, message["sender"])),
            "name": name,
            "discriminator": "0000",
            "nickname": name.replace(".", " ").title(),
            "color": None,
            "isBot": False,
            "roles": [],
            "avatarUrl": AVATAR_URL,
        },
        "attachments": [],
        "embeds": [],
        "stickers": [],
        "reactions": [],
        "mentions": [],
        "inlineEmojis": [],
    }


def milliseconds(timestamp: str) -> int:
    moment = datetime.strptime(timestamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return int(moment.timestamp()) * 1000


def snowflake(moment_ms: int, *words: str) -> int:
    """An id that looks like Discord's and is always the same for the same words."""
    digest = hashlib.sha256("/".join(words).encode()).digest()
    # An account's date would be invented: spread accounts over the two years before the chats.
    spread = int.from_bytes(digest[:8], "big") % (1 << 58) if moment_ms == DISCORD_EPOCH_MS else 0
    low = int.from_bytes(digest[8:12], "big") & 0x3FFFFF
    return (moment_ms - DISCORD_EPOCH_MS) << 22 | spread | low


def pseudonym(sender: str) -> str:
    """An invented user name, always the same for the same person."""
    digest = hashlib.sha256(sender.encode()).digest()
    adjectives, animals = ADJECTIVES.split(), ANIMALS.split()
    adjective = adjectives[int.from_bytes(digest[:4], "big") % len(adjectives)]
    return f"{adjective}.{animals[int.from_bytes(digest[4:8], 'big') % len(animals)]}"


def pseudonyms(senders: Iterable[str]) -> dict[str, str]:
    """One name each; whoever draws a name that is taken gets a number with it."""
    names: dict[str, str] = {}
    for sender in senders:
        name = pseudonym(sender)
        number = sum(taken.rstrip("0123456789") == name for taken in names.values()) + 1
        names[sender] = name if number == 1 else f"{name}{number}"
    return names
