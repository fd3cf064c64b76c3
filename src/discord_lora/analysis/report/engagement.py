"""Who answers whom: conversations, replies received, the time to an answer."""

from dataclasses import dataclass
from datetime import datetime
from itertools import starmap
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from discord_lora.analysis.report.columns import MessageColumns
from discord_lora.conversations.build import conversation_numbers
from discord_lora.messages.cycle_collection import without_cycle_collection

Whole = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Engagement:
    """Per message in the order of the frame, except where it says otherwise.

    `conversation` numbers the conversations of all channels from 0. `replies` counts Discord's
    own replies to the message. The seconds are one entry a case: `first_reply_seconds` from a
    message to the first reply by somebody else, `answer_seconds` from the end of somebody's turn
    to the next message of the conversation by somebody else.
    """

    conversation: Whole
    replies: Whole
    first_reply_seconds: Whole
    answer_seconds: Whole


class _Row(NamedTuple):
    """A message with what grouping looks at."""

    id: str
    timestamp: datetime
    author_id: str
    author: str
    content: str
    reply_to: str | None


def measure_engagement(columns: MessageColumns, gap_minutes: float) -> Engagement:
    """Group the messages and see who answered whom."""
    frame = columns.frame
    if columns.ready is not None:
        conversation = columns.ready.rle_id().to_numpy().astype(np.int64)
    else:
        conversation = number_conversations(frame, gap_minutes)
    replies, seconds = _replies(frame)
    return Engagement(conversation, replies, seconds, _answers(frame, conversation))


@without_cycle_collection()
def number_conversations(frame: pl.DataFrame, gap_minutes: float) -> Whole:
    """The conversation of each message, as training groups them, channel by channel.

    Grouping reads names only behind an @, so the other texts are left where they are.
    """
    mentioning = pl.col("content").str.contains("@", literal=True)
    needed = frame.select(
        "channel_id",
        "id",
        # Grouping takes only differences: without the zone they are built faster.
        pl.col("timestamp").dt.replace_time_zone(None),
        pl.col("author_id").cast(pl.String),
        pl.col("author").cast(pl.String),
        pl.when(mentioning).then("content").otherwise(pl.lit("")).alias("content"),
        "reply_to",
    ).with_row_index("row")
    found = np.zeros(len(frame), np.int64)
    channels = 0
    for channel in needed.partition_by("channel_id", maintain_order=True, include_key=False):
        ordered = channel.sort("timestamp", "id")
        rows = list(
            starmap(_Row, zip(*(ordered[name].to_list() for name in _Row._fields), strict=True))
        )
        numbers = np.array(conversation_numbers(rows, gap_minutes), np.int64)
        found[ordered["row"].to_numpy()] = numbers + channels
        channels += int(numbers.max()) + 1
    return found


def _replies(frame: pl.DataFrame) -> tuple[Whole, Whole]:
    """Replies that each message received, and the seconds to the first one by somebody else."""
    targets = frame.lazy().select("id", "author_id", "timestamp", "has_time").with_row_index("row")
    answers = (
        frame.lazy()
        .filter(pl.col("reply_to").is_not_null())
        .select("reply_to", "author_id", "timestamp", "has_time")
    )
    pairs = answers.join(targets, left_on="reply_to", right_on="id").collect()
    replies = np.bincount(pairs["row"].to_numpy(), minlength=len(frame))
    by_others = pairs.filter(
        pl.col("author_id") != pl.col("author_id_right"),
        pl.col("has_time") & pl.col("has_time_right"),
        pl.col("timestamp") >= pl.col("timestamp_right"),
    )
    first = by_others.group_by("row").agg(
        (pl.col("timestamp") - pl.col("timestamp_right")).min().dt.total_seconds().alias("seconds")
    )
    return replies.astype(np.int64), first["seconds"].to_numpy().astype(np.int64)


def _answers(frame: pl.DataFrame, conversation: Whole) -> Whole:
    """Seconds from the last message of a turn to the first of the next one."""
    ordered = (
        frame.select("author_id", "timestamp", "id", "has_time")
        .with_columns(conversation=pl.Series(conversation))
        .sort("conversation", "timestamp", "id")
    )
    same = pl.col("conversation") == pl.col("conversation").shift()
    other = pl.col("author_id") != pl.col("author_id").shift()
    known = pl.col("has_time") & pl.col("has_time").shift()
    waits = ordered.select(
        pl.col("timestamp").diff().dt.total_seconds().filter(same & other & known)
    )
    return waits.to_series().to_numpy().astype(np.int64)
