"""DiscordChatExporter's JSON, of every age.

A file of ordinary size is parsed whole by orjson. A large one, and any that orjson refuses
(truncated, damaged, another encoding), is walked message by message in bounded memory.
"""

import io
import json
import re
from collections.abc import Mapping
from typing import Any

import orjson

from discord_lora.messages.fields import (
    UnreadableValue,
    as_count,
    as_flag,
    as_id,
    as_list,
    as_mapping,
    as_name,
    as_text,
    kind_of,
    without_surrogates,
)
from discord_lora.messages.inputs import InputFile
from discord_lora.messages.json_stream import Broken, JsonObjects
from discord_lora.messages.record import Reject
from discord_lora.messages.sources.base import (
    UNDATED_JSON,
    Channel,
    Export,
    Kind,
    ParsedMessage,
    Person,
    SourceItems,
    Warned,
    channel_from_file_name,
)
from discord_lora.messages.text_input import chunks_of, decode, detect_encoding
from discord_lora.messages.timestamps import parse_timestamp, snowflake_time, to_microseconds

WHOLE_FILE_BYTES = 16 << 20
"""Up to this size a file is parsed whole: some 150 MB of objects at the worst."""

KnownPeople = dict[tuple[Any, Any, Any], Person]

_HEADER_CHARACTERS = 4 << 20
_MESSAGES = re.compile(r'"messages"\s*:\s*\[')
_HEADER_FIELD = r'"{}"\s*:\s*\{{[^{{}}]*?"{}"\s*:\s*"((?:[^"\\]|\\.)*)"'
_UNKNOWN_PERSON = "unknown"

_TALK_TYPES = frozenset({"Default", "0", "", "Reply", "19"})
_REPLY_TYPES = frozenset({"Reply", "19"})
_INTERACTION_TYPES = frozenset({"20", "23", "ChatInputCommand", "ContextMenuCommand"})


def read_discordchatexporter_json(file: InputFile) -> SourceItems:
    """The header, the messages and the rejects of one export."""
    with file.open() as stream:
        data = stream.read(WHOLE_FILE_BYTES + 1)
    if len(data) <= WHOLE_FILE_BYTES:
        document = _parse_whole(data)
        if document is not None:
            return read_export_document(document, file)
    del data
    return _read_piece_by_piece(file)


def _parse_whole(data: bytes) -> dict[str, Any] | None:
    """The document, None when the careful reader has to look at it."""
    encoding = detect_encoding(data[:400])
    try:
        document = orjson.loads(data if encoding == "utf-8" else decode(data))
    except ValueError:
        return None
    fits = isinstance(document, dict) and isinstance(document.get("messages"), list)
    return document if fits else None


def read_export_document(document: Mapping[str, Any], file: InputFile) -> SourceItems:
    """The header, the messages and the rejects of a parsed export."""
    export = _export_from(document, file)
    yield export
    people: KnownPeople = {}
    for number, raw in enumerate(document["messages"], 1):
        try:
            yield parse_message(raw, export.channel, people)
        except UnreadableValue as problem:
            yield Reject(file.name, f"message {number}", str(problem))


def _read_piece_by_piece(file: InputFile) -> SourceItems:
    with file.open() as stream:
        yield from _read_stream(stream, file)


def _read_stream(stream: io.BufferedReader, file: InputFile) -> SourceItems:
    encoding = detect_encoding(stream.peek(400)[:400])
    objects = JsonObjects(chunks_of(stream, encoding), looks_like_a_message)
    before = objects.read_until(_MESSAGES, _HEADER_CHARACTERS)
    if before is None:
        yield Reject(file.name, "start of file", 'no "messages": [ … ] list could be found')
        yield from _read_list(objects, _export_from({}, file), file)
        return
    while before is not None:
        yield from _read_list(objects, _export_from(_header_from(before), file), file)
        # Two exports glued together have a second list after the first one's tail.
        before = objects.read_until(_MESSAGES, _HEADER_CHARACTERS) if objects.closed else None
    if not objects.closed:
        yield Warned(
            f"{file.name} is truncated: its end is missing, so the exporter was probably stopped. "
            "What it holds was read; export it again to get the rest."
        )


def _read_list(objects: JsonObjects, export: Export, file: InputFile) -> SourceItems:
    yield export
    people: KnownPeople = {}
    for piece in objects:
        if isinstance(piece, Broken):
            yield Reject(file.name, f"line {piece.line}", piece.reason)
            continue
        try:
            yield parse_message(piece.value, export.channel, people)
        except UnreadableValue as problem:
            yield Reject(file.name, f"line {objects.line}", str(problem))


def looks_like_a_message(value: object) -> bool:
    """True for a message, False for the users, emojis and embeds that stand inside one."""
    if not isinstance(value, dict) or "content" not in value:
        return False
    return "author" in value and ("timestamp" in value or "type" in value)


def _header_from(text: str) -> dict[str, Any]:
    """The header in the text before the messages; what can be found of it when it is broken."""
    text = text[text.find("{") :] if text.startswith(",") else text
    try:
        header = json.loads(text.lstrip("\ufeff") + '"messages":[]}', strict=False)
        if isinstance(header, dict):
            return dict(without_surrogates(header))
    except (ValueError, RecursionError):
        pass
    found: dict[str, Any] = {"guild": {}, "channel": {}}
    for part, key in (("guild", "name"), ("channel", "id"), ("channel", "name")):
        if match := re.search(_HEADER_FIELD.format(part, key), text):
            found[part][key] = match[1]
    if match := re.search(r'"exportedAt"\s*:\s*"([^"]*)"', text):
        found["exportedAt"] = match[1]
    return found


def _export_from(header: Mapping[str, Any], file: InputFile) -> Export:
    guild, channel = as_mapping(header.get("guild")), as_mapping(header.get("channel"))
    named = channel_from_file_name(file.stem)
    channel_id = as_id(channel.get("id")) or named.id
    exported_at = parse_timestamp(header.get("exportedAt"))
    return Export(
        Channel(
            as_name(guild.get("name")) or named.guild,
            channel_id,
            as_name(channel.get("name")) or named.name,
        ),
        to_microseconds(exported_at) if exported_at else UNDATED_JSON,
    )


def parse_message(raw: object, channel: Channel, people: KnownPeople) -> ParsedMessage:
    """One message. Only what leaves nothing to learn from raises UnreadableValue.

    `people` remembers the users of this export, which repeats each with every message.
    """
    if not isinstance(raw, dict):
        raise UnreadableValue(f"{kind_of(raw)} where a message was expected")
    if not ("content" in raw or "author" in raw):
        raise UnreadableValue("an object without content and author")
    get = raw.get
    message_type = as_id(get("type"))
    message_id = as_id(get("id"))
    author = get("author")
    content, kind = _content_of(raw, message_type)
    is_reply = message_type in _REPLY_TYPES
    mentions = get("mentions")
    reactions = get("reactions")
    return ParsedMessage(
        id=message_id,
        channel=channel,
        time=_time_of(get("timestamp"), message_id),
        author=_known_person(author, people),
        content=content,
        kind=kind,
        is_bot=isinstance(author, dict) and as_flag(author.get("isBot", author.get("bot")), False),
        is_reply=is_reply,
        reply_to=_reply_target(raw) if is_reply else None,
        reactions=as_count(reactions) if reactions else 0,
        has_attachments=bool(get("attachments") or get("embeds") or get("stickers")),
        mentions=_mentions_in(content, mentions) if mentions else (),
    )


def _content_of(raw: Mapping[str, Any], message_type: str) -> tuple[str, Kind]:
    content = as_text(raw.get("content"))
    if message_type in _INTERACTION_TYPES or as_mapping(raw.get("interaction")):
        return content, Kind.INTERACTION
    if message_type not in _TALK_TYPES:
        return content, Kind.SYSTEM
    forwarded = raw.get("forwardedMessage")
    if isinstance(forwarded, dict) and not content.strip():
        return as_text(forwarded.get("content")), Kind.FORWARD
    return content, Kind.TALK


def _known_person(raw: object, people: KnownPeople) -> Person:
    if not isinstance(raw, dict):
        return parse_person(raw)
    key = (raw.get("id"), raw.get("name"), raw.get("nickname"))
    try:
        return people[key]
    except KeyError:
        return people.setdefault(key, parse_person(raw))
    except TypeError:  # a list where a name is due
        return parse_person(raw)


def parse_person(raw: object) -> Person:
    """A user object; somebody unknown when it is none."""
    if not isinstance(raw, dict):
        name = as_name(raw)
        return Person(name or _UNKNOWN_PERSON, name, name)
    username = as_name(raw.get("name", raw.get("username")))
    nickname = as_name(raw.get("nickname", raw.get("global_name")))
    return Person(as_id(raw.get("id")) or username or _UNKNOWN_PERSON, username, nickname)


def _time_of(value: object, message_id: str) -> int:
    """µs since 1970; from the id where the date is unreadable, 0 where both are."""
    moment = parse_timestamp(value) or snowflake_time(message_id)
    return to_microseconds(moment) if moment else 0


def _reply_target(raw: Mapping[str, Any]) -> str | None:
    reference = as_mapping(raw.get("reference"))
    return as_id(reference.get("messageId")) or None


def _mentions_in(content: str, mentions: object) -> tuple[Person, ...]:
    # A reply that pings lists its target here although no @ stands in the content.
    if "@" not in content:
        return ()
    return tuple(parse_person(raw) for raw in as_list(mentions) if isinstance(raw, dict))
