"""DiscordChatExporter's CSV: today's (commas, ISO dates) and that of 2019 (semicolons)."""

import re
from collections.abc import Iterator

from discord_lora.messages.csv_rows import NamedRow, read_named_rows
from discord_lora.messages.inputs import InputFile
from discord_lora.messages.record import Reject
from discord_lora.messages.sources.base import (
    UNDATED_CSV,
    Channel,
    Export,
    ParsedMessage,
    Person,
    SourceItems,
    Warned,
    channel_from_file_name,
)
from discord_lora.messages.timestamps import (
    DateOrder,
    decide_date_order,
    parse_timestamp,
    to_microseconds,
    undecided_dates,
)

# Every field is quoted and an inner quote is doubled, so no text can look like this.
_ROW_START = re.compile(r'"[^",;\n]{1,40}"[,;]"')
_REACTION_COUNT = re.compile(r"\((\d{1,9})\)(?=,|$)")
_OLD_DISCRIMINATOR = re.compile(r"#\d{4}$")


def read_discordchatexporter_csv(file: InputFile) -> SourceItems:
    """One channel: the file name tells which, because the CSV does not."""
    channel = channel_from_file_name(file.stem)
    yield Export(channel, UNDATED_CSV)
    order, decided = decide_date_order(row.cells.get("date") for row in _rows(file))
    if not decided:
        yield Warned(undecided_dates(file.name, order))
    for row in _rows(file):
        yield _read_row(row, channel, order, file.name)


def _rows(file: InputFile) -> Iterator[NamedRow]:
    with file.open() as stream:
        first_cell = stream.readline().lstrip(b"\xef\xbb\xbf").strip(b'"').lower()
    by_id = first_cell.startswith(b"authorid")
    return read_named_rows(file.open, _ROW_START if by_id else None)


def _read_row(
    row: NamedRow, channel: Channel, order: DateOrder, file: str
) -> ParsedMessage | Reject:
    place = f"line {row.line}"
    moment = parse_timestamp(row.cells.get("date"), order)
    if not row.complete:
        return Reject(file, place, "a row with missing cells or an open quote")
    if moment is None:
        return Reject(file, place, "a row without a readable date")
    account = row.cells.get("author", "").strip()
    username = _OLD_DISCRIMINATOR.sub("", account)
    reactions = _REACTION_COUNT.findall(row.cells.get("reactions", ""))
    return ParsedMessage(
        id="",
        channel=channel,
        time=to_microseconds(moment),
        author=Person(row.cells.get("authorid", "").strip() or account, username, ""),
        content=row.cells.get("content", ""),
        reactions=sum(map(int, reactions)),
        has_attachments=bool(row.cells.get("attachments")),
    )
