"""A copy of training data in which chosen messages are context only, or gone.

What is kept stands there as it stood in the file, byte for byte where it was a line of its own.
Of a message that becomes context, `train` is all that changes.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from discord_lora.console import UserError
from discord_lora.messages.cycle_collection import without_cycle_collection
from discord_lora.messages.record import Message, Reject
from discord_lora.messages.record_fields import field_of_key
from discord_lora.messages.record_reader import (
    HEAD_BYTES,
    Located,
    is_json_lines,
    open_records,
    read_lines,
    read_records,
)
from discord_lora.messages.text_input import detect_encoding
from discord_lora.messages.timestamps import DateOrder, parse_timestamp
from discord_lora.messages.training_data import TrainingData, explained, opener, take


class Fate(IntEnum):
    """What becomes of a message."""

    KEPT = 0
    CONTEXT = 1
    REMOVED = 2


Entry = Located | Reject


@without_cycle_collection()
def rewrite(
    path: Path, fates: bytes, out: BinaryIO, on_bytes: Callable[[int], None] = lambda _: None
) -> None:
    """Copy the messages of `path` to `out`, in their order; what is no message is left out.

    `fates` holds one `Fate` for each message in the file that has text, as
    `analysis.columns.MessageColumns.records` counts them.

    Raises:
        UserError: the file cannot be opened, or it is not the one that `fates` was made for.
    """
    removes = Fate.REMOVED in fates
    found = TrainingData()
    number = 0
    with explained(path):
        # Only for what the records share: the order of their dates, and the ids that are made up.
        context, _ = open_records(opener(path), str(path), path.stem)
        for line, entries in _pieces(path, on_bytes):
            for entry in entries:
                take(found, entry, context, str(path))
                if not found.messages or isinstance(entry, Reject):
                    continue
                message, record = found.messages.pop(), entry[1]
                fate = fates[number] if number < len(fates) else Fate.REMOVED
                number += 1
                if fate == Fate.REMOVED:
                    continue
                written = _with_clear_time(record, message) if removes else record
                if fate == Fate.CONTEXT and message.train:
                    written = as_context(written)
                if line is not None and written is record and len(entries) == 1:
                    out.write(line if line.endswith(b"\n") else line + b"\n")
                else:
                    out.write(_as_line(written))
    if number != len(fates):
        raise UserError(f"{path} was changed meanwhile; run the same command again.")


def as_context(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with `train` false, under whatever spelling it has that key."""
    spellings = [key for key in record if field_of_key(key) == "train"]
    return {**record, **dict.fromkeys(spellings or ["train"], False)}


def _pieces(
    path: Path, on_bytes: Callable[[int], None]
) -> Iterator[tuple[bytes | None, list[Entry]]]:
    """The values of the file, line by line where it has lines, else one by one without a line."""
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
        encoding = detect_encoding(head)
        if not (encoding.startswith("utf-8") and is_json_lines(head, encoding)):
            for entry in read_records(opener(path), str(path)):
                yield None, [entry]
            return
        stream.seek(0)
        done = 0
        for number, line in enumerate(stream, 1):
            yield line, list(read_lines([line], str(path), number))
            done += len(line)
            on_bytes(done)


def _with_clear_time(record: Mapping[str, Any], message: Message) -> Mapping[str, Any]:
    """Once other lines are gone, nothing may be left that shows how to read a date like 3/4/19."""
    if _is_iso(record.get("timestamp")):
        return record
    unclear = [
        key
        for key, value in record.items()
        if field_of_key(key) == "timestamp"
        and isinstance(value, str)
        and parse_timestamp(value, DateOrder.DAY_FIRST)
        != parse_timestamp(value, DateOrder.MONTH_FIRST)
    ]
    if not unclear:
        return record
    return {**record, **dict.fromkeys(unclear, message.timestamp.isoformat())}


def _is_iso(value: object) -> bool:
    return isinstance(value, str) and value[4:5] == "-"


def _as_line(record: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a number of more than 64 bits
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
