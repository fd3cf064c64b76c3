"""DiscordChatExporter's HTML: ids, replies and reactions are in its attributes.

The file is cut at its message groups and parsed group by group, so memory stays bounded.
"""

import re
from collections.abc import Iterator

from selectolax.lexbor import LexborHTMLParser, LexborNode

from discord_lora.messages.inputs import InputFile
from discord_lora.messages.record import Reject
from discord_lora.messages.sources.base import (
    UNDATED_HTML,
    Channel,
    Export,
    Kind,
    ParsedMessage,
    Person,
    SourceItem,
    SourceItems,
    Warned,
    channel_from_file_name,
)
from discord_lora.messages.sources.html_text import markdown_of
from discord_lora.messages.text_input import chunks_of, detect_encoding
from discord_lora.messages.timestamps import parse_timestamp, snowflake_time, to_microseconds

_GROUP = re.compile(r'<div class="?chatlog__message-group\b')
_TAIL = re.compile(r'<div class="?postamble\b|</body>|</html>')
_LARGEST_GROUP_CHARACTERS = 64 << 20
_REPLY_TARGET = re.compile(r"scrollToMessage\(event,\s*'(\d+)'\)")
_DISCRIMINATOR = re.compile(r"#\d{4}$")
_HEADER_ENTRY = ".preamble__entry, .info__guild-name, .info__channel-name"
_AUTHOR = ".chatlog__author, .chatlog__author-name, .chatlog__system-notification-author"
_BOT_TAG = ".chatlog__author-tag, .chatlog__bot-tag"
_ATTACHMENTS = ".chatlog__attachment, .chatlog__embed, .chatlog__sticker"


def read_discordchatexporter_html(file: InputFile) -> SourceItems:
    """The messages of one HTML export."""
    pieces = _pieces(file)
    head = next(pieces, "")
    channel = _channel_from(head, file.stem)
    yield Export(channel, UNDATED_HTML)
    closed = _TAIL.search(head) is not None
    for number, piece in enumerate(pieces, 1):
        closed = _TAIL.search(piece) is not None
        if len(piece) > _LARGEST_GROUP_CHARACTERS:
            yield Reject(file.name, f"message group {number}", "too large to be one")
        else:
            yield from _read_group(piece, channel, f"message group {number}", file.name)
    if not closed:
        yield Warned(f"{file.name} is truncated: its end is missing. What it holds was read.")


def _pieces(file: InputFile) -> Iterator[str]:
    """What stands before the first message group, then group by group."""
    with file.open() as stream:
        encoding = detect_encoding(stream.peek(400)[:400])
        buffer, searched = "", 0
        for chunk in chunks_of(stream, encoding):
            buffer += chunk
            while match := _GROUP.search(buffer, searched):
                yield buffer[: match.start()]
                buffer, searched = buffer[match.start() :], 1
            # The mark of a group may be cut by the end of the chunk.
            searched = max(searched, len(buffer) - 100)
        yield buffer


def _channel_from(head: str, stem: str) -> Channel:
    named = channel_from_file_name(stem)
    entries = [node.text(strip=True) for node in LexborHTMLParser(head).css(_HEADER_ENTRY)]
    if len(entries) < 2:
        return named
    # "Category / channel"; a channel's own name cannot hold a slash with spaces.
    return Channel(entries[0], named.id, entries[1].rpartition(" / ")[2])


def _read_group(piece: str, channel: Channel, place: str, file: str) -> Iterator[SourceItem]:
    """A group is one author's consecutive messages; only the first names the author."""
    tree = LexborHTMLParser(piece)
    author = _author_from(tree.css_first(_AUTHOR))
    is_bot = tree.css_first(_BOT_TAG) is not None
    shared_time = tree.css_first(".chatlog__timestamp")
    nodes = tree.css("[data-message-id]")
    for node in nodes:
        if own_author := node.css_first(_AUTHOR):
            author, is_bot = _author_from(own_author), node.css_first(_BOT_TAG) is not None
        message = _read_message(node, author, shared_time, channel)
        message.is_bot = is_bot
        yield message
    if not nodes:
        yield Reject(file, place, "a message group without a message")


def _read_message(
    node: LexborNode, author: Person, shared_time: LexborNode | None, channel: Channel
) -> ParsedMessage:
    message_id = (node.attributes.get("data-message-id") or "").strip()
    content = node.css_first(".chatlog__content, .chatlog__system-notification-content")
    forwarded = node.css_first(".chatlog__forwarded")
    text = markdown_of(content) if content else ""
    reply = node.css_first(
        ".chatlog__reply-link, .chatlog__reply-unknown, .chatlog__reference-link"
    )
    return ParsedMessage(
        id=message_id,
        channel=channel,
        time=_time_of(message_id, node.css_first(".chatlog__timestamp") or shared_time),
        author=author,
        content=text,
        kind=_kind_of(node, forwarded is not None),
        is_reply=reply is not None,
        reply_to=_reply_target(reply),
        reactions=_reactions_of(node),
        has_attachments=node.css_first(_ATTACHMENTS) is not None,
    )


def _author_from(node: LexborNode | None) -> Person:
    if node is None:
        return Person("unknown", "", "")
    username = _DISCRIMINATOR.sub("", node.attributes.get("title") or "")
    return Person(node.attributes.get("data-user-id") or username, username, node.text(strip=True))


def _kind_of(node: LexborNode, is_forward: bool) -> Kind:
    if node.css_first(".chatlog__system-notification-content"):
        return Kind.SYSTEM
    return Kind.FORWARD if is_forward else Kind.TALK


def _reply_target(node: LexborNode | None) -> str | None:
    if node is None:
        return None
    match = _REPLY_TARGET.search(node.attributes.get("onclick") or "")
    return match[1] if match else None


def _reactions_of(node: LexborNode) -> int:
    counts = (count.text(strip=True) for count in node.css(".chatlog__reaction-count"))
    return sum(int(count) for count in counts if count.isdecimal())


def _time_of(message_id: str, node: LexborNode | None) -> int:
    """µs since 1970: exact to the ms from the id, else the minute that is shown."""
    moment = snowflake_time(message_id)
    if moment is None and node is not None:
        shown = node.attributes.get("title") or node.text(strip=True)
        moment = parse_timestamp(shown)
    return to_microseconds(moment) if moment else 0
