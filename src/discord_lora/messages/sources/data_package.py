"""Discord's "request my data" package in its layouts of 2021, 2024 and 2026.

It holds the owner's own messages and nothing else: no other people, no replies, no reactions.
Everything in it but the messages is private; of `user.json` only the id and the two names are
looked at, and no other file is opened.
"""

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from discord_lora.messages.csv_rows import read_named_rows
from discord_lora.messages.fields import as_id, as_mapping, as_name, as_text, kind_of
from discord_lora.messages.inputs import InputFile
from discord_lora.messages.json_stream import Broken, Found, JsonObjects
from discord_lora.messages.record import Reject
from discord_lora.messages.sources.base import (
    UNDATED_DATA_PACKAGE,
    Channel,
    Export,
    ParsedMessage,
    Person,
    SourceItems,
    Warned,
)
from discord_lora.messages.text_input import chunks_of, decode, detect_encoding
from discord_lora.messages.timestamps import parse_timestamp, snowflake_time, to_microseconds

WHAT_IT_CAN_GIVE = (
    "A data package holds only its owner's own messages, so there are no replies to learn from: "
    "use it to learn a writing style, or together with a DiscordChatExporter export of the same "
    "channels, whose messages it completes by id."
)
_CHANNEL_FOLDER = re.compile(r"c?\d{15,20}")
_ROW_START = re.compile(r"\"?\d{15,20}\"?,\"?\d{4}-\d\d-\d\d")
_ACTIVITY_FILE = re.compile(r"events-\d{4}-.*\.json")
_PRIVATE_FOLDERS = frozenset({
    "account", "activity", "activities", "activities_e", "activities_w", "ads", "programs",
    "servers", "support_tickets",
})  # fmt: skip
_SMALL_FILE_BYTES = 16 << 20
_OWNER_UNKNOWN = Person("data-package-owner", "", "me")


@dataclass
class DataPackage:
    """One package: where its messages are, what its channels are called, whose it is."""

    messages_root: tuple[str, ...]
    index: InputFile | None = None
    user: InputFile | None = None
    channels: dict[tuple[str, ...], InputFile] = field(default_factory=dict)
    _owner: Person | None = None
    _names: dict[str, str] | None = None

    @property
    def root(self) -> tuple[str, ...]:
        """The folder that holds messages/, account/ and the others."""
        return self.messages_root[:-1]

    def owner(self) -> Person:
        """The person who requested the package; a stand-in when the account file is missing."""
        if self._owner is None:
            user = _load_small(self.user) if self.user else {}
            wanted = {key: user.get(key) for key in ("id", "username", "global_name")}
            del user
            person = Person(
                as_id(wanted["id"]), as_name(wanted["username"]), as_name(wanted["global_name"])
            )
            self._owner = person if person.id else _OWNER_UNKNOWN
        return self._owner

    def channel(self, folder: tuple[str, ...]) -> Channel:
        """The channel that a folder `c<id>` stands for."""
        file = self.channels.get(folder)
        described = _load_small(file) if file else {}
        channel_id = as_id(described.get("id")) or folder[-1].removeprefix("c")
        listed_name, listed_guild = _split_listed_name(self._listed_names().get(channel_id, ""))
        guild = as_name(as_mapping(described.get("guild")).get("name")) or listed_guild
        name = as_name(described.get("name")) or listed_name or f"channel-{channel_id}"
        return Channel(guild, channel_id, name)

    def _listed_names(self) -> dict[str, str]:
        if self._names is None:
            listed = _load_small(self.index) if self.index else {}
            self._names = {key: name for key, name in listed.items() if isinstance(name, str)}
        return self._names


def _split_listed_name(text: str) -> tuple[str, str]:
    """`general in Server` → (general, Server); `Direct Message with anna#0` → (anna, …)."""
    if text.startswith("Direct Message with "):
        partner = text.removeprefix("Direct Message with ")
        return partner.partition("#")[0], "Direct Messages"
    name, separator, guild = text.rpartition(" in ")
    return (name, guild) if separator else (text, "")


class DataPackages:
    """The packages among the inputs, found by their `c<id>/channel.json` files."""

    def __init__(self, files: Iterable[InputFile]) -> None:
        self._by_root: dict[tuple[str, ...], DataPackage] = {}
        files = list(files)
        for file in files:
            if file.parts[-1].lower() == "channel.json" and self.is_channel_folder(file):
                package = self._package_of(file.parts[:-2])
                package.channels[file.parts[:-1]] = file
        for file in files:
            self._attach(file)

    def __bool__(self) -> bool:
        return bool(self._by_root)

    @staticmethod
    def is_channel_folder(file: InputFile) -> bool:
        """True when the file lies in a folder named after a channel id."""
        return len(file.parts) > 2 and _CHANNEL_FOLDER.fullmatch(file.parts[-2]) is not None

    def of(self, file: InputFile) -> DataPackage:
        """The package that a messages file belongs to; a new one when nothing else is known."""
        return self._package_of(file.parts[:-2])

    def is_private_or_index(self, file: InputFile) -> bool:
        """True for the files of a package that hold no messages: they are never opened here."""
        parts = file.parts
        for root, package in self._by_root.items():
            if parts[: len(root)] == root:
                return parts[-1].lower() in {"channel.json", "index.json"}
            if parts[: len(package.root)] == package.root:
                return self._is_private(parts[len(package.root) :], package)
        return False

    @staticmethod
    def _is_private(below: tuple[str, ...], package: DataPackage) -> bool:
        if len(below) == 1:
            return below[0].lower().startswith("readme")
        account = package.user.parts[-2] if package.user else ""
        in_private_folder = below[0].lower() in _PRIVATE_FOLDERS or below[0] == account
        return in_private_folder or _ACTIVITY_FILE.fullmatch(below[-1]) is not None

    def _package_of(self, messages_root: tuple[str, ...]) -> DataPackage:
        return self._by_root.setdefault(messages_root, DataPackage(messages_root))

    def _attach(self, file: InputFile) -> None:
        name = file.parts[-1].lower()
        for root, package in self._by_root.items():
            if name == "index.json" and file.parts[:-1] == root:
                package.index = file
            # The account folder has a localised name (Compte, Konto …).
            if name == "user.json" and file.parts[:-2] == package.root:
                package.user = file


def read_data_package_json(file: InputFile, package: DataPackage) -> SourceItems:
    """The owner's messages in one channel, from `messages.json`."""
    channel, owner = package.channel(file.parts[:-1]), package.owner()
    yield Export(channel, UNDATED_DATA_PACKAGE)
    for place, entry in _json_entries(file):
        if isinstance(entry, Mapping):
            yield _read_entry({str(key).lower(): entry[key] for key in entry}, channel, owner,
                              file.name, place)  # fmt: skip
        elif isinstance(entry, Reject | Warned):
            yield entry
        else:
            yield Reject(file.name, place, f"{kind_of(entry)} where a message was expected")


def read_data_package_csv(file: InputFile, package: DataPackage) -> SourceItems:
    """The owner's messages in one channel, from `messages.csv` (before March 2024)."""
    channel, owner = package.channel(file.parts[:-1]), package.owner()
    yield Export(channel, UNDATED_DATA_PACKAGE)
    for row in read_named_rows(file.open, _ROW_START):
        place = f"line {row.line}"
        if row.complete:
            yield _read_entry(row.cells, channel, owner, file.name, place)
        else:
            yield Reject(file.name, place, "a row with missing cells or an open quote")


def _json_entries(file: InputFile) -> Iterator[tuple[str, Any]]:
    with file.open() as stream:
        data = stream.read(_SMALL_FILE_BYTES + 1)
    try:
        entries = orjson.loads(data) if len(data) <= _SMALL_FILE_BYTES else None
    except ValueError:
        entries = None
    del data
    if isinstance(entries, list):
        yield from ((f"message {number}", entry) for number, entry in enumerate(entries, 1))
    else:
        with file.open() as stream:
            yield from _streamed_entries(stream, file.name)


def _streamed_entries(stream: io.BufferedReader, name: str) -> Iterator[tuple[str, Any]]:
    encoding = detect_encoding(stream.peek(400)[:400])
    objects = JsonObjects(chunks_of(stream, encoding), _looks_like_an_entry)
    objects.read_until(re.compile(r"\["), 1000)
    for piece in objects:
        place = f"line {objects.line}"
        if isinstance(piece, Found):
            yield place, piece.value
        elif isinstance(piece, Broken):
            yield place, Reject(name, f"line {piece.line}", piece.reason)
    if not objects.closed:
        yield "end", Warned(f"{name} is truncated: its end is missing. What it holds was read.")


def _looks_like_an_entry(value: object) -> bool:
    return isinstance(value, dict) and "Contents" in value


def _read_entry(
    entry: Mapping[str, Any], channel: Channel, owner: Person, file: str, place: str
) -> ParsedMessage | Reject:
    message_id = as_id(entry.get("id"))
    # The id knows the millisecond, the Timestamp of 2024 only the second.
    moment = snowflake_time(message_id) or parse_timestamp(entry.get("timestamp"))
    if moment is None:
        return Reject(file, place, "neither a readable ID nor a readable Timestamp")
    try:
        content = as_text(entry.get("contents"))
    except ValueError as problem:
        return Reject(file, place, str(problem))
    return ParsedMessage(
        id=message_id,
        channel=channel,
        time=to_microseconds(moment),
        author=owner,
        content=content,
        has_attachments=bool(entry.get("attachments")),
    )


def _load_small(file: InputFile) -> dict[str, Any]:
    """A small JSON object; empty when it cannot be read, since it only gives names."""
    try:
        with file.open() as stream:
            loaded = json.loads(decode(stream.read(_SMALL_FILE_BYTES)))
    except (OSError, ValueError, RecursionError):
        return {}
    return loaded if isinstance(loaded, dict) else {}
