"""Files of generic records, JSON lines or a JSON array: the reader of `training_data.jsonl`."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import orjson

from discord_lora.messages.fields import UnreadableValue, kind_of
from discord_lora.messages.json_stream import Broken, Found, JsonObjects
from discord_lora.messages.record import Message, ReadyConversation, Reject
from discord_lora.messages.record_fields import (
    RecordContext,
    canonical_fields,
    conversation_from_record,
    is_conversation,
    is_generic_record,
    message_from_record,
)
from discord_lora.messages.text_input import chunks_of, decode_utf8, detect_encoding, lines_of
from discord_lora.messages.timestamps import decide_date_order

HEAD_BYTES = 1 << 16
_ARRAY_START = re.compile(r"\[")
OpenFile = Callable[[], BinaryIO]
"""Opens the file anew at its start; called more than once."""

Located = tuple[str, Any]
"""A value and its place in the file, such as "line 7"."""


def read_records(open_file: OpenFile, file: str) -> Iterator[Located | Reject]:
    """Every value of the file with its place ("line 7"), and what is no JSON as rejects."""
    with open_file() as stream:
        head = stream.read(HEAD_BYTES)
    encoding = detect_encoding(head)
    with open_file() as stream:
        if is_json_lines(head, encoding):
            # UTF-8 goes to orjson as bytes: decoding first would double the time.
            is_utf8 = encoding.startswith("utf-8")
            yield from read_lines(stream if is_utf8 else lines_of(stream, encoding), file)
        else:
            yield from _read_document(stream, encoding, head, file)


def is_json_lines(head: bytes, encoding: str) -> bool:
    """True when any line of the head is a complete object; else it is one document."""
    text = head.decode(encoding, errors="ignore").lstrip("\ufeff\x00")
    if text.lstrip().startswith("["):
        return False
    lines = [line for line in text.splitlines() if line.strip()]
    return any(_is_object(line) for line in lines) or len(lines) <= 1


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line, strict=False), dict)
    except (ValueError, RecursionError):
        return False


def read_lines(
    lines: Iterable[bytes | str], file: str, first_number: int = 1
) -> Iterator[Located | Reject]:
    """The values on `lines`, of which the first is line `first_number` of the file."""
    loads = orjson.loads
    for number, line in enumerate(lines, first_number):
        try:
            yield f"line {number}", loads(line)
        except ValueError:
            text = line if isinstance(line, str) else decode_utf8(line)
            if text.strip("\ufeff\x00 \t\r\n"):
                yield from _read_odd_line(text, number, file)


def _read_odd_line(text: str, number: int, file: str) -> Iterator[Located | Reject]:
    """A line orjson refuses: lone surrogates, NaN, two objects at once, or a broken one."""
    for piece in JsonObjects(iter([text]), is_generic_record, in_array=False):
        if isinstance(piece, Found):
            yield f"line {number}", piece.value
        else:
            yield Reject(file, f"line {number}", piece.reason)


def _read_document(
    stream: BinaryIO, encoding: str, head: bytes, file: str
) -> Iterator[Located | Reject]:
    text = head.decode(encoding, errors="ignore").lstrip("\ufeff\x00").lstrip()
    in_array = text.startswith("[")
    objects = JsonObjects(chunks_of(stream, encoding), is_generic_record, in_array=in_array)
    if in_array:
        objects.read_until(_ARRAY_START, HEAD_BYTES)
    for piece in objects:
        if isinstance(piece, Broken):
            yield Reject(file, f"line {piece.line}", piece.reason)
        else:
            yield f"line {objects.line}", piece.value
    if not objects.closed:
        yield Reject(file, "end of file", "the closing ] is missing: the file is truncated")


def open_records(
    open_file: OpenFile, file: str, stem: str
) -> tuple[RecordContext, Iterator[Located | Reject]]:
    """What a file's records share, and the records themselves.

    One reader for the trainer (`training_data.jsonl`) and the prepare script (anybody's JSON).
    """
    order, decided = decide_date_order(_timestamps(open_file, file))
    return RecordContext(stem, order, decided), read_records(open_file, file)


def parse_record(record: object, context: RecordContext, place: str) -> Message | ReadyConversation:
    """One record. Raises UnreadableValue, whose text is the reason."""
    if not isinstance(record, Mapping):
        raise UnreadableValue(f"{kind_of(record)} where a message was expected")
    if is_conversation(record):
        number = place.removeprefix("line ")
        return conversation_from_record(record, f"{context.file_stem}-{number}")
    return message_from_record(record, context)


def _timestamps(open_file: OpenFile, file: str) -> Iterator[object]:
    for entry in read_records(open_file, file):
        if not isinstance(entry, Reject) and isinstance(entry[1], Mapping):
            yield canonical_fields(entry[1]).get("timestamp")
