"""One generic record (a JSON line, a CSV row) → a Message or a ready conversation.

Other tools call the same thing by other names; the aliases are all here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from discord_lora.messages.fields import (
    UnreadableValue,
    as_count,
    as_flag,
    as_id,
    as_mapping,
    as_name,
    as_text,
    kind_of,
)
from discord_lora.messages.record import Message, ReadyConversation, Turn
from discord_lora.messages.timestamps import (
    DateOrder,
    parse_timestamp,
    snowflake_time,
    undecided_dates,
)

# In each row the first name wins when a record has several.
_ALIASES: Final[dict[str, tuple[str, ...]]] = {
    "id": ("id", "messageid", "msgid"),
    "guild": ("guild", "guildname", "server", "servername"),
    "channel_id": ("channelid", "chatid", "roomid"),
    "channel": ("channel", "channelname", "room", "chat"),
    "timestamp": ("timestamp", "date", "time", "datetime", "createdat", "sentat", "ts", "created"),
    "author_id": ("authorid", "userid", "senderid", "fromid"),
    "author": ("author", "authorname", "nickname", "displayname", "user", "name", "sender", "from"),
    "username": ("username", "login"),
    "content": ("content", "contents", "text", "body", "message", "msg"),
    "reply_to": ("replyto", "replytoid", "replytomessageid", "inreplyto", "reference",
                 "messagereference", "referencedmessage"),
    "reactions": ("reactions", "reactioncount", "likes"),
    "is_bot": ("isbot", "bot"),
    "train": ("train",),
}  # fmt: skip
_FIELD_OF_ALIAS: Final = {
    alias: (name, priority)
    for name, aliases in _ALIASES.items()
    for priority, alias in enumerate(aliases)
}
_OWN_FIELDS: Final = frozenset(_ALIASES)
_ROLES: Final[dict[str, Literal["system", "user", "assistant"]]] = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant",
}  # fmt: skip
_TOOL_ROLES: Final = frozenset({"tool", "function", "function_call", "observation"})
_SYNTHETIC_START = datetime(2015, 1, 1, tzinfo=UTC)
_SYNTHETIC_STEP = timedelta(seconds=1)


@dataclass
class RecordContext:
    """What the records of one file share: its name, its date order, what had to be made up."""

    file_stem: str
    date_order: DateOrder = DateOrder.MONTH_FIRST
    date_order_decided: bool = True
    made_up_times: int = 0
    made_up_ids: int = 0
    _latest: datetime = field(default=_SYNTHETIC_START)

    def next_time(self) -> datetime:
        """A time for a record that has none: the order of the file is kept."""
        self.made_up_times += 1
        self._latest += _SYNTHETIC_STEP
        return self._latest

    def saw(self, moment: datetime) -> None:
        """Remember the latest real time, so that made-up ones come after it."""
        self._latest = moment

    def next_id(self) -> str:
        """An id for a record that has none, unique within its file."""
        self.made_up_ids += 1
        return f"{self.file_stem}-{self.made_up_ids}"

    def what_was_made_up(self, file: str) -> Iterator[str]:
        """One sentence for each thing that the file did not say and that was filled in."""
        if not self.date_order_decided:
            yield undecided_dates(file, self.date_order)
        if self.made_up_times:
            yield (
                f"{file}: records without a readable time: {self.made_up_times:,}. They keep "
                "their order in the file, one second apart."
            )


def normalised_key(key: object) -> str:
    """`Author ID`, `author_id` and `authorId` are one key."""
    return str(key).strip().lower().replace("_", "").replace("-", "").replace(" ", "")


def field_of_key(key: object) -> str:
    """The field that a foreign key or column name stands for, "" when it means nothing here."""
    return _FIELD_OF_ALIAS.get(normalised_key(key), ("", 0))[0]


def canonical_fields(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """`record` under our own field names; keys that mean nothing here are left out."""
    if record.keys() <= _OWN_FIELDS and not isinstance(record.get("author"), Mapping):
        return record
    found: dict[str, tuple[int, Any]] = {}
    for key, value in record.items():
        hit = _FIELD_OF_ALIAS.get(normalised_key(key))
        if hit is None:
            continue
        name, priority = hit
        present = found.get(name)
        if present is None or present[1] is None or (value is not None and priority < present[0]):
            found[name] = (priority, value)
    return _flatten({name: value for name, (_, value) in found.items()})


def _flatten(fields: dict[str, Any]) -> dict[str, Any]:
    """Take the parts out of an author, channel or guild that is an object of its own."""
    author = fields.get("author")
    if isinstance(author, Mapping):
        names = {normalised_key(key): value for key, value in author.items()}
        shown = names.get("nickname") or names.get("globalname") or names.get("displayname")
        account = names.get("username") or names.get("name")
        fields["author"] = shown or account
        fields.setdefault("username", account)
        fields["author_id"] = fields.get("author_id") or names.get("id")
        fields.setdefault("is_bot", names.get("isbot", names.get("bot")))
    for name, id_name in (("channel", "channel_id"), ("guild", "")):
        if isinstance(fields.get(name), Mapping):
            inner = fields[name]
            fields[name] = inner.get("name")
            if id_name and not fields.get(id_name):
                fields[id_name] = inner.get("id")
    return fields


def is_conversation(record: Mapping[str, Any]) -> bool:
    """True for the OpenAI `messages` and the ShareGPT `conversations` shape."""
    return isinstance(record.get("messages"), list) or isinstance(record.get("conversations"), list)


def is_generic_record(value: object) -> bool:
    """True for an object that reads as a message or a conversation of its own."""
    if not isinstance(value, Mapping):
        return False
    if is_conversation(value):
        return True
    fields = {field_of_key(key) for key in value}
    return "content" in fields and bool(fields & {"author", "author_id", "timestamp", "username"})


def message_from_record(record: Mapping[str, Any], context: RecordContext) -> Message:
    """The message in `record`. Raises UnreadableValue, whose text is the reason."""
    fields = canonical_fields(record)
    if "content" not in fields:
        raise UnreadableValue("no text: none of the keys content, text, body, message is there")
    get = fields.get
    message_id = as_id(get("id"))
    username = as_name(get("username"))
    author_id = as_id(get("author_id"))
    author = as_name(get("author")) or username or author_id or "someone"
    channel = as_name(get("channel")) or as_id(get("channel_id")) or context.file_stem
    return Message(
        id=message_id or context.next_id(),
        guild=as_name(get("guild")),
        channel_id=as_id(get("channel_id")) or channel,
        channel=channel,
        timestamp=_time_of(get("timestamp"), message_id, context),
        author_id=author_id or author,
        author=author,
        content=as_text(get("content")),
        username=username,
        reply_to=_reply_target(get("reply_to")),
        reactions=as_count(get("reactions")),
        is_bot=as_flag(get("is_bot"), False),
        train=as_flag(get("train"), True),
    )


def _time_of(value: object, message_id: str, context: RecordContext) -> datetime:
    moment = parse_timestamp(value, context.date_order) or snowflake_time(message_id)
    if moment is None:
        return context.next_time()
    context.saw(moment)
    return moment


def _reply_target(value: object) -> str | None:
    if isinstance(value, Mapping):
        names = {normalised_key(key): inner for key, inner in value.items()}
        value = names.get("messageid") or names.get("id")
    return as_id(value) or None


def conversation_from_record(record: Mapping[str, Any], fallback_id: str) -> ReadyConversation:
    """The conversation in `record`. Raises UnreadableValue, whose text is the reason."""
    entries = record.get("messages")
    if not isinstance(entries, list):
        entries = record["conversations"]
    turns = [turn for entry in entries if (turn := _turn_from(entry)) is not None]
    system = record.get("system")
    if isinstance(system, str) and system.strip() and not (turns and turns[0].role == "system"):
        turns.insert(0, Turn("system", as_text(system)))
    if not any(turn.role != "system" for turn in turns):
        raise UnreadableValue("a conversation without a turn that has text")
    return ReadyConversation(as_id(record.get("id")) or fallback_id, tuple(turns))


def _turn_from(entry: object) -> Turn | None:
    """One turn; None when it has no text. An assistant's turn is learned unless switched off."""
    fields = as_mapping(entry)
    raw_role = fields.get("role", fields.get("from"))
    if not isinstance(raw_role, str):
        raise UnreadableValue(f"a turn without a role: it is {kind_of(entry)}")
    name = raw_role.strip().lower()
    text = as_text(fields.get("content", fields.get("value"))).strip()
    if name in _TOOL_ROLES or not text:
        return None  # tool calls are not talk
    if name not in _ROLES:
        raise UnreadableValue("a turn with a role other than system, user or assistant")
    role = _ROLES[name]
    learned = as_flag(fields.get("train", fields.get("weight")), default=True)
    return Turn(role, text, train=learned and role == "assistant")
