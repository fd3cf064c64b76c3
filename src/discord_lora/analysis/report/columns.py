"""`training_data.jsonl` as columns: a million messages in seconds and a few hundred megabytes.

The same messages, counts and reasons as `messages.training_data.read_training_data`; a test holds
the two equal. Lines that our own script wrote go through polars, block by block, and every other
line through the careful reader.
"""

import io
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from discord_lora.analysis.report.plain_lines import are_plain, read_plain
from discord_lora.conversations.build import from_ready
from discord_lora.messages.cycle_collection import without_cycle_collection
from discord_lora.messages.opt_out import OPTED_OUT
from discord_lora.messages.record import Message, Reject
from discord_lora.messages.record_fields import RecordContext
from discord_lora.messages.record_reader import (
    HEAD_BYTES,
    Located,
    is_json_lines,
    open_records,
    read_lines,
)
from discord_lora.messages.text_input import detect_encoding
from discord_lora.messages.timestamps import from_microseconds
from discord_lora.messages.training_data import (
    DUPLICATE,
    EMPTY,
    TrainingData,
    explained,
    opener,
    refuse_nothing_readable,
    take,
)

_BLOCK_BYTES = 8 << 20
_THREADS = 2
_BATCH = 50_000
_NOT_BLANK = r"[^\s\x1c-\x1f]"
"""A character that Python's `str.strip` would leave."""

FIELDS: Final[dict[str, pl.DataType]] = {
    "id": pl.String(),
    "guild": pl.Categorical(),
    "channel_id": pl.Categorical(),
    "channel": pl.Categorical(),
    "timestamp": pl.Datetime("us", "UTC"),
    "author_id": pl.Categorical(),
    "author": pl.Categorical(),
    "content": pl.String(),
    "username": pl.Categorical(),
    "reply_to": pl.String(),
    "reactions": pl.Int64(),
    "is_bot": pl.Boolean(),
    "train": pl.Boolean(),
    "has_time": pl.Boolean(),
}
"""The columns: a Message's fields, and whether the file itself gave the time."""

_NAMES = tuple(name for name in FIELDS if name != "has_time")


@dataclass
class MessageColumns:
    """What one file held.

    `frame` has one row a message, in file order, with the columns `FIELDS`; in data that came as
    ready conversations it has one row a turn, and `ready` holds each row's conversation.
    `account` says what else there was: lines = rows + conversations + rejects + dropped.
    `records` holds for each row which of the file's messages it is, counted from 0 without the
    empty ones; those that are in none are older messages of the same id.
    """

    frame: pl.DataFrame
    account: TrainingData = field(default_factory=TrainingData)
    ready: pl.Series | None = None
    records: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


@without_cycle_collection()
def read_columns(
    path: Path,
    on_bytes: Callable[[int], None] = lambda _: None,
    opted_out: Collection[str] = (),
) -> MessageColumns:
    """Everything readable in `path`, in file order; `on_bytes` hears how far it is.

    Messages of the authors `opted_out` (ids) are dropped. Raises UserError when the file is
    missing, cannot be opened, or holds nothing readable.
    """
    with explained(path):
        context, records = open_records(opener(path), str(path), path.stem)
        reader = _Reader(str(path), context)
        with path.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
            stream.seek(0)
            encoding = detect_encoding(head)
            if encoding.startswith("utf-8") and is_json_lines(head, encoding):
                done = 0
                for block, fast in _read_ahead(_blocks(stream)):
                    reader.take_block(block, fast)
                    done += len(block)
                    on_bytes(done)
            else:
                reader.take_records(records)
    columns = reader.finish(opted_out)
    if not len(columns.frame):
        refuse_nothing_readable(columns.account, path)
    columns.account.warnings.extend(context.what_was_made_up(str(path)))
    return columns


def columns_of(messages: Iterable[Message]) -> pl.DataFrame:
    """Messages that are already objects as the same columns, all with a time of their own."""
    return _rows((message, True) for message in messages)


def _rows(messages: Iterable[tuple[Message, bool]]) -> pl.DataFrame:
    rows = [(*(getattr(message, name) for name in _NAMES), known) for message, known in messages]
    return pl.DataFrame(rows, schema=FIELDS, orient="row")


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    """The stream in pieces of whole lines."""
    begun: list[bytes] = []
    while data := stream.read(_BLOCK_BYTES):
        end = data.rfind(b"\n") + 1
        if end:
            yield b"".join([*begun, data[:end]])
            begun = []
        begun.append(data[end:])
    if rest := b"".join(begun):
        yield rest


def _count_lines(block: bytes) -> int:
    return block.count(b"\n") + (not block.endswith(b"\n"))


def _read_ahead(blocks: Iterable[bytes]) -> Iterator[tuple[bytes, pl.DataFrame]]:
    """Each block with its plain lines; the next one is read meanwhile by the other core."""
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: deque[tuple[bytes, Future[pl.DataFrame]]] = deque()
        for block in blocks:
            waiting.append((block, pool.submit(_plain_rows, block)))
            if len(waiting) > _THREADS:
                first, rows = waiting.popleft()
                yield first, rows.result()
        for first, rows in waiting:
            yield first, rows.result()


def _plain_rows(block: bytes) -> pl.DataFrame:
    """The plain lines as rows with their `line` in the block; none if polars balks."""
    nothing = _rows(()).with_columns(line=pl.lit(0, pl.UInt32))
    try:
        lines = pl.read_lines(io.BytesIO(block)).to_series()
    except pl.exceptions.ComputeError:
        return nothing  # some byte in it is no UTF-8
    if len(lines) != _count_lines(block):
        return nothing
    plain = are_plain(lines)
    if not plain.all():
        block = "\n".join(lines.filter(plain)).encode()
    frame = read_plain(block)
    if len(frame) != plain.sum():
        return nothing
    return frame.select(
        *(pl.col(name).cast(kind) for name, kind in FIELDS.items() if name != "has_time"),
        has_time=pl.lit(True),
        line=plain.arg_true(),
    ).filter(pl.col("timestamp").is_not_null())


class _Reader:
    """Collects a file's messages in order, plain lines and others."""

    def __init__(self, file: str, context: RecordContext) -> None:
        self.file = file
        self.context = context
        self.data = TrainingData()
        self.frames: list[pl.DataFrame] = []
        self.lines_before = 0

    def take_records(self, records: Iterable[Located | Reject]) -> None:
        """Everything by the careful reader, a batch at a time."""
        records = iter(records)
        while batch := list(islice(records, _BATCH)):
            self.frames.append(_rows(self._carefully(batch)))

    def take_block(self, block: bytes, fast: pl.DataFrame) -> None:
        """Whole lines, of which `fast` holds those that are read already."""
        count = _count_lines(block)
        if len(fast) < count:
            self._take_with_odd_lines(block, fast, count)
        else:
            self.context.saw(from_microseconds(fast["timestamp"].dt.epoch("us")[-1]))
            self.frames.append(self._without_empty(fast).drop("line"))
        self.lines_before += count

    def finish(self, opted_out: Collection[str] = ()) -> MessageColumns:
        """The whole file's columns, each id once: its latest message, where it first stood."""
        frame = pl.concat(self.frames) if self.frames else _rows(())
        records = np.arange(len(frame))
        distinct = frame["id"].n_unique()
        if distinct < len(frame):
            self.data.dropped[DUPLICATE] = len(frame) - distinct
            rows = frame.lazy().select("id").with_row_index("row").collect()
            latest = rows.group_by("id", maintain_order=True).agg(pl.col("row").last())
            frame = frame[latest["row"]]
            records = latest["row"].to_numpy().astype(np.int64)
        if opted_out:
            kept = ~frame["author_id"].cast(pl.String).is_in(list(opted_out))
            if dropped := len(frame) - int(kept.sum()):
                frame, records = frame.filter(kept), records[kept.to_numpy()]
                self.data.dropped[OPTED_OUT] = dropped
        if len(frame) or not self.data.conversations:
            return MessageColumns(frame, self.data, records=records)
        conversations = [from_ready(it, n) for n, it in enumerate(self.data.conversations)]
        turns = [(message, False) for it in conversations for message in it.messages]
        ready = [it.id for it in conversations for _ in it.messages]
        return MessageColumns(_rows(turns), self.data, pl.Series("conversation", ready))

    def _without_empty(self, fast: pl.DataFrame) -> pl.DataFrame:
        kept = fast.filter(pl.col("content").str.contains(_NOT_BLANK))
        self.data.lines += len(fast)
        if empty := len(fast) - len(kept):
            self.data.dropped[EMPTY] += empty
        return kept

    def _take_with_odd_lines(self, block: bytes, fast: pl.DataFrame, count: int) -> None:
        """A block in which the careful reader has to read some lines, in their order."""
        moments = fast["timestamp"].dt.epoch("us")
        places = fast["line"].to_numpy()
        lines = block.split(b"\n")
        odd_lines = np.setdiff1d(np.arange(count), places)
        rows: list[tuple[Message, bool]] = []
        numbers: list[int] = []
        seen = 0
        for number, before in zip(
            odd_lines.tolist(), np.searchsorted(places, odd_lines).tolist(), strict=True
        ):
            if before > seen:
                # A line without a time of its own is put right after the line before it.
                self.context.saw(from_microseconds(moments[before - 1]))
                seen = before
            found = self._carefully(
                read_lines([lines[number]], self.file, self.lines_before + number + 1)
            )
            rows += found
            numbers += [number] * len(found)
        if len(fast) > seen:
            self.context.saw(from_microseconds(moments[-1]))
        odd = _rows(rows).with_columns(line=pl.Series(numbers, dtype=pl.UInt32))
        both = pl.concat([self._without_empty(fast), odd]).sort("line", maintain_order=True)
        self.frames.append(both.drop("line"))

    def _carefully(self, records: Iterable[Located | Reject]) -> list[tuple[Message, bool]]:
        """The messages among `records`, each with whether it says its time itself."""
        rows = []
        messages = self.data.messages
        for entry in records:
            made_up = self.context.made_up_times
            take(self.data, entry, self.context, self.file)
            if messages:
                rows.append((messages.pop(), self.context.made_up_times == made_up))
        return rows
