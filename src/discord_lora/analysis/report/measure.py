"""Columns of messages → the data report, and the figures of each single message behind it."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from discord_lora.analysis.report import data_report as report
from discord_lora.analysis.report.activity import measure_activity
from discord_lora.analysis.report.columns import MessageColumns
from discord_lora.analysis.report.duplicates import (
    COPYPASTA_COPIES,
    COPYPASTA_WORDS,
    FEWEST_WORDS,
    Duplicates,
    find_duplicates,
)
from discord_lora.analysis.report.engagement import Engagement, measure_engagement
from discord_lora.analysis.report.findings import find
from discord_lora.analysis.report.languages import UNCLEAR, share_languages
from discord_lora.analysis.report.private_data import count_private_data
from discord_lora.analysis.report.quality import Quality, is_command, measure_quality
from discord_lora.analysis.report.statistics import (
    distribution,
    fewest_for_half,
    gini,
    herfindahl,
    part,
)
from discord_lora.analysis.report.words import Words, read_words
from discord_lora.messages.timestamps import from_microseconds

MOST_AUTHORS = 20
LOW_SCORE = 20
_MOST_REPEATED = 10
_EXACT_IN_JSON = 2**53
_LINK = r"(?i)https?://\S+"
_BLANK = r"[\s\x1c-\x1f]"

Whole = npt.NDArray[np.int64]
CountTokens = Callable[[pl.Series], Whole]


@dataclass(frozen=True)
class Options:
    """What the report depends on besides the messages."""

    gap_minutes: float = 30.0
    timezone: str = "UTC"
    tokenizer: str | None = None
    count_tokens: CountTokens | None = None
    preparation: report.Preparation | None = None


@dataclass(frozen=True)
class Measures:
    """Figures of every message, in the order of the frame."""

    frame: pl.DataFrame
    words: Words
    engagement: Engagement
    duplicates: Duplicates
    quality: Quality
    score: npt.NDArray[np.float64]
    tokens: Whole | None


def measure(columns: MessageColumns, options: Options) -> Measures:
    """Everything that is known of each message."""
    frame = columns.frame
    content = frame["content"]
    with ThreadPoolExecutor(1) as pool:
        # Grouping is Python, the rest lets go of Python's lock: they share two cores well.
        grouping = pool.submit(measure_engagement, columns, options.gap_minutes)
        words = read_words(content)
        duplicates = find_duplicates(content, words)
        engagement = grouping.result()
    quality = measure_quality(frame, words, duplicates, engagement.replies)
    tokens = options.count_tokens(content) if options.count_tokens else None
    return Measures(frame, words, engagement, duplicates, quality, quality.score, tokens)


def make_report(columns: MessageColumns, measures: Measures, options: Options) -> report.DataReport:
    """The report over all messages."""
    with ThreadPoolExecutor(2) as pool:
        # Each of the three goes over all texts once more.
        lengths = pool.submit(_lengths, measures, options)
        private_data = pool.submit(_private_data, measures.frame)
        content = pool.submit(_content, measures)
        made = report.DataReport(
            format=report.REPORT_FORMAT,
            source=_source(columns, options),
            overview=_overview(measures),
            authors=_authors(measures),
            lengths=lengths.result(),
            activity=measure_activity(measures.frame, options.timezone),
            channels=_channels(measures),
            engagement=_engagement(measures),
            quality=_quality(measures),
            content=content.result(),
            duplicates=_duplicates(measures),
            languages=_languages(measures.frame),
            private_data=private_data.result(),
            findings=[],
        )
    return replace(made, findings=find(made))


def _known(values: npt.ArrayLike) -> report.Distribution:
    found = distribution(values)
    assert found is not None, "there is at least one message"
    return found


def _source(columns: MessageColumns, options: Options) -> report.Source:
    account = columns.account
    return report.Source(
        # A name on Linux may be bytes that are no UTF-8, which JSON cannot hold.
        files=[os.fsencode(path).decode(errors="replace") for path in columns.files],
        lines=account.lines,
        messages=len(columns.frame) if columns.ready is None else 0,
        dropped=dict(account.dropped),
        unreadable=len(account.rejects),
        ready_conversations=len(account.conversations),
        remarks=list(account.remarks()),
        preparation=options.preparation,
    )


def _overview(measures: Measures) -> report.Overview:
    frame = measures.frame
    times = frame.filter("has_time")["timestamp"]
    days = times.dt.date().unique().sort()
    moments = np.sort(times.dt.epoch("us").to_numpy())
    return report.Overview(
        messages=len(frame),
        learned=int(frame["train"].sum()),
        by_bots=int(frame["is_bot"].sum()),
        conversations=int(measures.engagement.conversation.max()) + 1,
        channels=frame["channel_id"].n_unique(),
        authors=frame["author_id"].n_unique(),
        first=_iso(moments[:1]),
        last=_iso(moments[-1:]),
        days=(days[-1] - days[0]).days + 1 if len(days) else None,
        active_days=len(days) if len(days) else None,
        without_time=len(frame) - len(times),
    )


def _iso(moment: Whole) -> str | None:
    """At most one moment in µs; polars' own datetimes would need the system's time zones."""
    return from_microseconds(int(moment[0])).isoformat() if len(moment) else None


def _authors(measures: Measures) -> report.Authors:
    frame = measures.frame.select("author_id", "author").with_columns(
        characters=measures.frame["content"].str.len_chars(), quality=pl.Series(measures.score)
    )
    per_author = frame.group_by("author_id").agg(
        pl.len().alias("messages"),
        pl.col("author").last().cast(pl.String),
        pl.col("characters").quantile(0.5, "lower"),
        pl.col("quality").mean(),
    )
    ranked = per_author.with_columns(pl.col("author_id").cast(pl.String)).sort(
        "messages", "author_id", descending=[True, False]
    )
    counts = ranked["messages"].to_numpy().astype(np.int64)
    concentration = herfindahl(counts)
    top = [
        report.Author(author_id, name, n, n / len(frame), int(length), quality)
        for author_id, n, name, length, quality in ranked.head(MOST_AUTHORS).iter_rows()
    ]
    return report.Authors(
        count=len(counts),
        top1_share=float(counts[0] / len(frame)),
        top5_share=float(counts[:5].sum() / len(frame)),
        herfindahl=concentration,
        effective=1 / concentration,
        gini=gini(counts),
        half_by=fewest_for_half(counts),
        top=top,
    )


def _lengths(measures: Measures, options: Options) -> report.Lengths:
    content = measures.frame["content"]
    return report.Lengths(
        characters=_known(content.str.len_chars()),
        words=_known(content.str.count_matches(r"[^\s\x1c-\x1f]+")),
        tokens=None if measures.tokens is None else distribution(measures.tokens),
        tokenizer=None if measures.tokens is None else options.tokenizer,
    )


def _channels(measures: Measures) -> list[report.Channel]:
    per_channel = (
        measures.frame.select("channel_id", "guild", "channel", "author_id")
        .with_columns(
            conversation=pl.Series(measures.engagement.conversation),
            quality=pl.Series(measures.score),
        )
        .group_by("channel_id")
        .agg(
            pl.col("guild", "channel").last().cast(pl.String),
            pl.len().alias("messages"),
            (pl.len() / len(measures.frame)).alias("share"),
            pl.col("author_id", "conversation").n_unique(),
            pl.col("quality").mean(),
        )
        .with_columns(pl.col("channel_id").cast(pl.String))
        .sort("messages", "channel_id", descending=[True, False])
    )
    return [report.Channel(*row) for row in per_channel.iter_rows()]


def _engagement(measures: Measures) -> report.Engagement:
    frame, found = measures.frame, measures.engagement
    groups = frame.select("author_id").with_columns(conversation=pl.Series(found.conversation))
    conversations = groups.group_by("conversation").agg(
        pl.len().alias("messages"), pl.col("author_id").n_unique().alias("authors")
    )
    return report.Engagement(
        # As floats: somebody may have written a number so large that a sum would turn negative.
        reactions=int(min(frame["reactions"].to_numpy().sum(dtype=np.float64), _EXACT_IN_JSON)),
        with_reactions=part(int((frame["reactions"] > 0).sum()), len(frame)),
        replies=part(int(frame["reply_to"].is_not_null().sum()), len(frame)),
        replies_found=int(found.replies.sum()),
        with_replies=part(np.count_nonzero(found.replies), len(frame)),
        first_reply_seconds=distribution(found.first_reply_seconds),
        answer_seconds=distribution(found.answer_seconds),
        conversation_messages=_known(conversations["messages"]),
        conversation_authors=_known(conversations["authors"]),
        monologues=int((conversations["authors"] == 1).sum()),
    )


def _quality(measures: Measures) -> report.Quality:
    score = measures.score
    bins = np.minimum(score // 10, 9).astype(np.int64)
    names = (field for field in Quality.__dataclass_fields__)
    return report.Quality(
        score=_known(np.rint(score)),
        histogram=np.bincount(bins, minlength=10).tolist(),
        low=part(np.count_nonzero(score < LOW_SCORE), len(score)),
        mean_parts={name: float(getattr(measures.quality, name).mean()) for name in names},
    )


def _content(measures: Measures) -> report.Content:
    content, count = measures.frame["content"], len(measures.frame)
    has_link = content.str.contains(_LINK)
    linked = content.filter(has_link)
    words = measures.words.counts
    rest = linked.str.replace_all(_LINK, "").str.replace_all(rf"{_BLANK}+|[<>|]+", "")
    return report.Content(
        with_link=part(len(linked), count),
        link_only=part(int((rest == "").sum()), count),
        commands=part(np.count_nonzero(is_command(content)), count),
        with_code=part(int(content.str.contains("```", literal=True).sum()), count),
        without_words=part(np.count_nonzero((words == 0) & ~has_link.to_numpy()), count),
        one_word=part(np.count_nonzero(words == 1), count),
        up_to_three_words=part(np.count_nonzero((words >= 1) & (words <= 3)), count),
        questions=part(int(content.str.contains(rf"\?{_BLANK}*$").sum()), count),
    )


def _duplicates(measures: Measures) -> report.Duplicates:
    found, words, count = measures.duplicates, measures.words.counts, len(measures.frame)
    long = words >= FEWEST_WORDS
    pasted = (words >= COPYPASTA_WORDS) & (found.near_copies >= COPYPASTA_COPIES)
    repeated = np.flatnonzero(found.first & long & (found.near_copies > 1))
    most = repeated[np.argsort(-found.near_copies[repeated], kind="stable")][:_MOST_REPEATED]
    ids = measures.frame["id"]
    return report.Duplicates(
        exact_repeats=part(np.count_nonzero(~found.first_exact), count),
        long_repeats=part(np.count_nonzero(~found.first_exact & long), count),
        near_repeats=part(np.count_nonzero(~found.first & long), count),
        copypasta=part(np.count_nonzero(pasted), count),
        copypasta_texts=len(np.unique(found.group[pasted])),
        largest=[
            report.Repeated(ids[row], int(found.near_copies[row]), int(words[row]))
            for row in most.tolist()
        ],
    )


def _languages(frame: pl.DataFrame) -> report.Languages:
    counts = share_languages(frame["content"])
    sample = sum(counts.values())
    clear = sample - counts.get(UNCLEAR, 0)
    shares = {code: n / clear for code, n in counts.items() if code != UNCLEAR}
    return report.Languages(sample, counts, shares)


def _private_data(frame: pl.DataFrame) -> report.PrivateData:
    kinds = count_private_data(frame["content"])
    return report.PrivateData(part(kinds.pop("any"), len(frame)), kinds)
