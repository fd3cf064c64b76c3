"""Columns of messages → the data report, and the figures of each single message behind it."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from discord_lora.analysis.report import data_report as report
from discord_lora.analysis.report.activity import measure_activity
from discord_lora.analysis.report.columns import MessageColumns
from discord_lora.analysis.report.content import find_content
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
from discord_lora.analysis.report.private_data import find_private_data
from discord_lora.analysis.report.quality import Quality, measure_quality
from discord_lora.analysis.report.statistics import (
    distribution,
    fewest_for_half,
    gini,
    herfindahl,
    part,
)
from discord_lora.analysis.report.words import Words, read_words

MOST_AUTHORS = 20
LOW_SCORE = 20
_MOST_REPEATED = 10
_EXACT_IN_JSON = 2**53
_ISO = "%Y-%m-%dT%H:%M:%S%.f%:z"

Whole = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Masks = Mapping[str, Mask]
CountTokens = Callable[[pl.Series], Whole]


@dataclass(frozen=True)
class Options:
    """What the report depends on besides the messages."""

    gap_minutes: float = 30.0
    timezone: str = "UTC"
    tokenizer: str | None = None
    count_tokens: CountTokens | None = None
    preparation: report.Preparation | None = None
    files: tuple[Path, ...] = ()
    """What somebody named, which may be exports that were prepared first."""
    max_seq_length: int = 512
    """Tokens from which on a message would be cut off."""


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
    frame, everything = measures.frame, np.ones(len(measures.frame), np.bool_)
    with ThreadPoolExecutor(2) as pool:
        # Each of the three goes over all texts once more.
        lengths = pool.submit(_lengths, measures, options)
        private_data = pool.submit(find_private_data, frame["content"])
        content = pool.submit(find_content, frame["content"], measures.words)
        languages = _languages(frame)
        made = report.DataReport(
            format=report.REPORT_FORMAT,
            source=_source(columns, options),
            overview=_overview(measures, options.timezone),
            authors=_authors(measures, everything),
            lengths=lengths.result(),
            activity=measure_activity(frame, options.timezone),
            channels=_channels(measures),
            engagement=_engagement(measures),
            quality=_quality(measures),
            content=_content(content.result(), everything),
            duplicates=_duplicates(measures, measures.duplicates, everything),
            languages=languages,
            private_data=_private_data(private_data.result(), everything),
            learned=_learned(measures, content.result(), private_data.result(), languages),
            findings=[],
        )
    return replace(made, findings=find(made, options.max_seq_length))


def _known(values: npt.ArrayLike) -> report.Distribution:
    found = distribution(values)
    assert found is not None, "there is at least one message"
    return found


def _source(columns: MessageColumns, options: Options) -> report.Source:
    account = columns.account
    return report.Source(
        files=[_as_utf8(str(path)) for path in options.files],
        lines=account.lines,
        messages=len(columns.frame) if columns.ready is None else 0,
        dropped=dict(account.dropped),
        unreadable=len(account.rejects),
        ready_conversations=len(account.conversations),
        remarks=[_as_utf8(remark) for remark in account.remarks()],
        preparation=options.preparation,
    )


def _as_utf8(text: str) -> str:
    """A file's name on Linux may be bytes that are no UTF-8, which JSON cannot hold."""
    return text.encode(errors="replace").decode()


def _overview(measures: Measures, timezone: str) -> report.Overview:
    frame = measures.frame
    times = frame.filter("has_time")["timestamp"].dt.convert_time_zone(timezone)
    days = np.unique(times.dt.date().cast(pl.Int32).to_numpy())
    return report.Overview(
        messages=len(frame),
        learned=int(frame["train"].sum()),
        by_bots=int(frame["is_bot"].sum()),
        conversations=int(measures.engagement.conversation.max()) + 1,
        channels=frame["channel_id"].n_unique(),
        authors=frame["author_id"].n_unique(),
        first=_iso(times, times.arg_min()),
        last=_iso(times, times.arg_max()),
        days=int(days[-1] - days[0]) + 1 if len(days) else None,
        active_days=len(days) if len(days) else None,
        without_time=len(frame) - len(times),
    )


def _iso(times: pl.Series, place: int | None) -> str | None:
    """One of them, written by polars: as a datetime it would need the system's time zones."""
    return None if place is None else str(times[[place]].dt.strftime(_ISO)[0])


def _authors(measures: Measures, rows: Mask) -> report.Authors:
    """Of the messages in `rows`."""
    frame = (
        measures.frame.select("author_id", "author")
        .with_columns(
            characters=measures.frame["content"].str.len_chars(), quality=pl.Series(measures.score)
        )
        .filter(pl.Series(rows))
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


def _content(found: Masks, rows: Mask) -> report.Content:
    count = np.count_nonzero(rows)
    return report.Content(
        **{name: part(np.count_nonzero(mask & rows), count) for name, mask in found.items()}
    )


def _duplicates(measures: Measures, found: Duplicates, rows: Mask) -> report.Duplicates:
    """Of the messages in `rows`; `found` has an entry for each of them."""
    words = measures.words.counts[rows]
    count, long = len(words), words >= FEWEST_WORDS
    pasted = (words >= COPYPASTA_WORDS) & (found.near_copies >= COPYPASTA_COPIES)
    repeated = np.flatnonzero(found.first & long & (found.near_copies > 1))
    most = repeated[np.argsort(-found.near_copies[repeated], kind="stable")][:_MOST_REPEATED]
    ids = measures.frame["id"].filter(pl.Series(rows))
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


def _private_data(found: Masks, rows: Mask) -> report.PrivateData:
    kinds = {kind: int(np.count_nonzero(mask & rows)) for kind, mask in found.items()}
    return report.PrivateData(part(kinds.pop("any"), np.count_nonzero(rows)), kinds)


def _learned(
    measures: Measures, content: Masks, private_data: Masks, languages: report.Languages
) -> report.Learned | None:
    """Of the messages to learn from; `languages` are those of all messages."""
    rows = measures.frame["train"].to_numpy()
    if not rows.any():
        return None
    duplicates = measures.duplicates.among(rows)
    repeats = ~duplicates.first & (measures.words.counts[rows] >= FEWEST_WORDS)
    # A message may be several of them at once.
    noise = content["link_only"][rows] | content["commands"][rows] | repeats
    return report.Learned(
        by_bots=int(np.count_nonzero(measures.frame["is_bot"].to_numpy() & rows)),
        noise=part(np.count_nonzero(noise), len(noise)),
        authors=_authors(measures, rows),
        content=_content(content, rows),
        duplicates=_duplicates(measures, duplicates, rows),
        languages=languages if rows.all() else _languages(measures.frame.filter(pl.Series(rows))),
        tokens=None if measures.tokens is None else distribution(measures.tokens[rows]),
        private_data=_private_data(private_data, rows),
    )
