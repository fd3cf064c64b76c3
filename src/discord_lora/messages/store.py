"""A temporary database in which overlapping exports become one, in bounded memory."""

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from discord_lora.messages.people import NameChoice, People
from discord_lora.messages.record import ReadyConversation
from discord_lora.messages.sources.base import Channel, Export, ParsedMessage
from discord_lora.messages.training_data import conversation_as_json

_BATCH = 2_000
_KEYS = 1 << 63
_DIGITS_OF_A_KEY = 20
REPEAT_WITHIN_SECONDS = 600
SHORTEST_REPEAT_CHARACTERS = 6

# One number for six small facts: binding a column costs more than storing it.
_KIND_BITS = 0b11
_IS_BOT = 1 << 2
_IS_REPLY = 1 << 3
_HAS_ATTACHMENTS = 1 << 4
_TRAIN = 1 << 5
_MADE_UP_ID = 1 << 6

_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -65536;
PRAGMA temp_store = FILE;
CREATE TABLE messages (
    key INTEGER PRIMARY KEY, id TEXT, rank INTEGER, number INTEGER, channel INTEGER, time INTEGER,
    author TEXT, content TEXT, flags INTEGER, reply_to TEXT, reactions INTEGER, mentions BLOB,
    text_key INTEGER
);
CREATE TABLE conversations (line BLOB);
CREATE TABLE repeats (key INTEGER PRIMARY KEY);
"""
# `>=`: of two undated exports, or two copies in one file, the one read later wins.
_INSERT = """
INSERT INTO messages VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)
ON CONFLICT (key) DO UPDATE SET
    rank = excluded.rank, channel = excluded.channel, time = excluded.time,
    author = excluded.author, content = excluded.content, flags = excluded.flags,
    reply_to = excluded.reply_to, reactions = excluded.reactions,
    mentions = excluded.mentions, text_key = excluded.text_key
WHERE excluded.rank >= messages.rank
"""
# A CSV has no ids: its copy of a message that another export has with its id is recognised by
# author, time and text.
_INDEX_MOMENTS = "CREATE INDEX by_author_and_time ON messages (author, time)"
_DROP_COPIES_WITHOUT_ID = """
DELETE FROM messages WHERE flags & :made_up AND EXISTS (
    SELECT 1 FROM messages AS other WHERE other.author = messages.author
    AND other.time = messages.time AND other.content = messages.content
    AND NOT other.flags & :made_up
)
"""
# Only what people say can be spam of theirs: no bot, no notice, no forward.
_FIND_REPEATS = """
INSERT INTO repeats SELECT key FROM (
    SELECT key, time - lag(time) OVER (PARTITION BY author, text_key ORDER BY time, key) AS since
    FROM messages WHERE text_key IS NOT NULL AND flags & :no_talk = 0
) WHERE since <= :within
"""
_READ = """
SELECT coalesce(id, key), channel, time, author, content, flags, reply_to, reactions, mentions,
    key IN (SELECT key FROM repeats) FROM messages ORDER BY channel, time, number
"""
_COUNT_REPLIES = """
SELECT count(*), count(CASE WHEN reply_to IN (
    SELECT coalesce(id, CAST(key AS TEXT)) FROM messages
) THEN 1 END) FROM messages WHERE flags & :is_reply
"""


@dataclass(slots=True)
class StoredMessage:
    """One merged message, ready to be cleaned.

    `time` is in µs since 1970, `kind` the value of a Kind, `mentions` are [id, shown name].
    """

    id: str
    channel: int
    time: int
    author_id: str
    content: str
    kind: int
    is_bot: bool
    reply_to: str | None
    reactions: int
    has_attachments: bool
    mentions: list[tuple[str, str]]
    train: bool
    is_repeat: bool


class MessageStore:
    """Takes messages in any order and gives them back merged, by channel and time.

    `people` and `channels` are filled on the way; `read` counts what came in per channel.
    """

    def __init__(self, path: Path, names: NameChoice = "nickname") -> None:
        self.people = People(names)
        self.channels: list[Channel] = []
        self.authors = 0
        self.read: Counter[int] = Counter()
        self._channel_numbers: dict[tuple[str, str], int] = {}
        self._channel_ranks: list[int] = []
        self._rows: list[tuple[Any, ...]] = []
        self._number = 0
        self._moment: tuple[Export | None, int] = (None, 0)
        self._at_this_moment: Counter[str] = Counter()
        self._made_up_ids = False
        self._database = sqlite3.connect(path)
        self._database.executescript(_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._database.close()

    def add(self, message: ParsedMessage, export: Export) -> None:
        """Store one message; of two with the same id the one of the later export stays."""
        rank = export.exported_at
        channel = self._number_of(message.channel, rank)
        self.read[channel] += 1
        author = message.author
        self.people.saw(author, rank)
        for person in message.mentions:
            self.people.saw(person, rank)
        content = message.content
        mentions = [(person.id, person.nickname) for person in message.mentions]
        key, text_id = self._identify(message, export)
        self._number += 1
        self._rows.append((
            key, text_id, rank, self._number, channel, message.time, author.id, content,
            _flags_of(message), message.reply_to, message.reactions,
            orjson.dumps(mentions) if mentions else None,
            hash(content) if len(content) >= SHORTEST_REPEAT_CHARACTERS else None,
        ))  # fmt: skip
        if len(self._rows) >= _BATCH:
            self._write_rows()

    def add_conversation(self, conversation: ReadyConversation) -> None:
        """Store one ready conversation, in the order in which they come."""
        line = orjson.dumps(conversation_as_json(conversation))
        self._database.execute("INSERT INTO conversations VALUES (?)", (line,))

    def finish(self) -> None:
        """Settle what only all messages together can tell. Call once, after the last `add`."""
        self._write_rows()
        if self._made_up_ids:
            self._database.execute(_INDEX_MOMENTS)
            self._database.execute(_DROP_COPIES_WITHOUT_ID, {"made_up": _MADE_UP_ID})
        within = REPEAT_WITHIN_SECONDS * 1_000_000
        no_talk = _KIND_BITS | _IS_BOT
        self._database.execute(_FIND_REPEATS, {"no_talk": no_talk, "within": within})
        counts = self._database.execute("SELECT author, count(*) FROM messages GROUP BY author")
        by_author = dict(counts)
        self.authors = len(by_author)
        self.people.settle(by_author)

    def messages(self) -> Iterator[StoredMessage]:
        """All messages, channel by channel, oldest first."""
        for row in self._database.execute(_READ):
            (message_id, channel, time, author_id, content, flags, reply_to, reactions, mentions,
             is_repeat) = row  # fmt: skip
            yield StoredMessage(
                str(message_id), channel, time, author_id, content, flags & _KIND_BITS,
                flags & _IS_BOT != 0, reply_to, reactions, flags & _HAS_ATTACHMENTS != 0,
                orjson.loads(mentions) if mentions else [], flags & _TRAIN != 0, is_repeat == 1,
            )  # fmt: skip

    def conversations(self) -> Iterator[bytes]:
        """The ready conversations as JSON lines without their line ends."""
        for (line,) in self._database.execute("SELECT line FROM conversations ORDER BY rowid"):
            yield line

    def count_replies(self) -> tuple[int, int]:
        """How many messages are replies, and how many of those answer a message that is here."""
        found = self._database.execute(_COUNT_REPLIES, {"is_reply": _IS_REPLY}).fetchone()
        return found[0], found[1]

    def _write_rows(self) -> None:
        self._database.executemany(_INSERT, self._rows)
        self._rows.clear()

    def _number_of(self, channel: Channel, rank: int) -> int:
        """A channel is its id, or its name within its guild; the latest export names it."""
        key = ("", channel.id) if channel.id.isdecimal() else (channel.guild, channel.id)
        number = self._channel_numbers.get(key)
        if number is None:
            number = self._channel_numbers[key] = len(self.channels)
            self.channels.append(channel)
            self._channel_ranks.append(rank)
        elif rank > self._channel_ranks[number]:
            self.channels[number] = channel
            self._channel_ranks[number] = rank
        return number

    def _identify(self, message: ParsedMessage, export: Export) -> tuple[int, str | None]:
        """The 64-bit key of a message, and its id where that is not simply the key.

        Discord's ids are such numbers; any other id is digested into a negative key.
        """
        given = message.id
        is_number = given.isdecimal() and given[0] != "0" and len(given) < _DIGITS_OF_A_KEY
        if is_number and given.isascii() and (key := int(given)) < _KEYS:
            return key, None
        text_id = given or self._stable_id(message, export)
        digest = hashlib.blake2b(text_id.encode(), digest_size=8).digest()
        return -(int.from_bytes(digest) >> 1) - 1, text_id

    def _stable_id(self, message: ParsedMessage, export: Export) -> str:
        """The same for the same message in two overlapping exports that have no ids.

        Several identical messages of one moment are numbered, or all but one would be lost.
        """
        self._made_up_ids = True
        # Two files of one channel have equal headers: they are told apart by identity.
        if export is not self._moment[0] or message.time != self._moment[1]:
            self._moment = (export, message.time)
            self._at_this_moment.clear()
        facts = (message.channel.id, message.author.id, str(message.time), message.content)
        digest = hashlib.blake2b("\x1f".join(facts).encode(), digest_size=9).hexdigest()
        self._at_this_moment[digest] += 1
        again = self._at_this_moment[digest]
        return f"x{digest}" if again == 1 else f"x{digest}-{again}"


def _flags_of(message: ParsedMessage) -> int:
    flags: int = message.kind.value
    if message.is_bot:
        flags |= _IS_BOT
    if message.is_reply:
        flags |= _IS_REPLY
    if message.has_attachments:
        flags |= _HAS_ATTACHMENTS
    if message.train:
        flags |= _TRAIN
    return flags if message.id else flags | _MADE_UP_ID
