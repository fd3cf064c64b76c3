"""JSON and CSV records of any tool, and ready conversations; by the trainer's own reader."""

from collections.abc import Iterator

from discord_lora.messages.csv_rows import read_named_rows
from discord_lora.messages.fields import UnreadableValue, as_list, as_mapping
from discord_lora.messages.inputs import InputFile
from discord_lora.messages.record import Message, ReadyConversation, Reject
from discord_lora.messages.record_fields import (
    RecordContext,
    canonical_fields,
)
from discord_lora.messages.record_reader import open_records, parse_record
from discord_lora.messages.sources.base import (
    UNDATED_CSV,
    UNDATED_JSON,
    Channel,
    Export,
    ParsedMessage,
    Person,
    SourceItem,
    SourceItems,
    Warned,
)
from discord_lora.messages.sources.discordchatexporter_json import (
    KnownPeople,
    looks_like_a_message,
    parse_message,
    read_export_document,
)
from discord_lora.messages.timestamps import decide_date_order, to_microseconds


def read_generic_json(file: InputFile) -> SourceItems:
    """Messages and ready conversations from JSON lines or a JSON array.

    Whole exports, or messages as DiscordChatExporter writes them, may stand in it too.
    """
    own = Export(Channel("", file.stem, file.stem), UNDATED_JSON)
    yield own
    context, records = open_records(file.open, file.name, file.stem)
    people: KnownPeople = {}
    for entry in records:
        if isinstance(entry, Reject):
            yield entry
            continue
        place, record = entry
        try:
            if looks_like_a_message(record) and "isBot" in as_mapping(record["author"]):
                yield parse_message(record, own.channel, people)
            elif isinstance(record, dict) and _is_export(record):
                yield from read_export_document(record, file)
                yield own
            else:
                yield _parse(record, context, place)
        except UnreadableValue as problem:
            yield Reject(file.name, place, str(problem))
    yield from (Warned(text) for text in context.what_was_made_up(file.name))


def read_generic_csv(file: InputFile) -> SourceItems:
    """Messages from a CSV whose columns have any of the known names."""
    yield Export(Channel("", file.stem, file.stem), UNDATED_CSV)
    order, decided = decide_date_order(_times(file))
    context = RecordContext(file.stem, order, decided)
    for row in read_named_rows(file.open):
        place = f"line {row.line}"
        try:
            if not row.complete:
                raise UnreadableValue("a row with missing cells or an open quote")
            yield _parse(row.cells, context, place)
        except UnreadableValue as problem:
            yield Reject(file.name, place, str(problem))
    yield from (Warned(text) for text in context.what_was_made_up(file.name))


def _is_export(record: dict[str, object]) -> bool:
    # A conversation may have a "channel" too, but its turns have roles, not authors.
    return any(looks_like_a_message(entry) for entry in as_list(record.get("messages")))


def _times(file: InputFile) -> Iterator[object]:
    for row in read_named_rows(file.open):
        yield canonical_fields(row.cells).get("timestamp")


def _parse(record: object, context: RecordContext, place: str) -> SourceItem:
    ids_made_up = context.made_up_ids
    parsed = parse_record(record, context, place)
    if isinstance(parsed, ReadyConversation):
        return parsed
    return _parsed(parsed, has_id=context.made_up_ids == ids_made_up)


def _parsed(message: Message, *, has_id: bool) -> ParsedMessage:
    """A Message as a parsed one. A made-up id is dropped: the store makes a stable one."""
    return ParsedMessage(
        id=message.id if has_id else "",
        channel=Channel(message.guild, message.channel_id, message.channel),
        time=to_microseconds(message.timestamp),
        author=Person(message.author_id, message.username, message.author),
        content=message.content,
        is_bot=message.is_bot,
        is_reply=message.reply_to is not None,
        reply_to=message.reply_to,
        reactions=message.reactions,
        train=message.train,
    )
