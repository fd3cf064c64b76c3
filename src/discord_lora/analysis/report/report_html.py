"""The data report as a page for a browser: what its charts and tables show."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from discord_lora.analysis.report.data_report import Activity, DataReport, Distribution, Month, Part
from discord_lora.analysis.report.findings import percent
from discord_lora.analysis.report.languages import NAMES, UNCLEAR
from discord_lora.analysis.report.measure import LOW_SCORE
from discord_lora.analysis.report.report_page import (
    WEEKDAYS,
    content_parts,
    last_part,
    repeat_parts,
)
from discord_lora.console import duration
from discord_lora.pages.charts import (
    ColumnChart,
    LaneChart,
    LineChart,
    column_chart,
    compact,
    lane_chart,
    line_chart,
)
from discord_lora.pages.render import render_page

MOST_AUTHORS, MOST_CHANNELS, MOST_REPEATED = 10, 16, 5
"""Rows of the rankings; --json has more."""

MOST_MONTHS = 120
"""Beyond that years are shown: a month would be thinner than a line."""

_MOST_MARKS = 5
_FEWEST_FOR_A_LINE = 3
_NUMBERS: Final = {0: "0"} | {10**n: compact(10**n) for n in range(7)}
_TIMES: Final = {0: "0", 60: "1 min", 3_600: "1 h", 86_400: "1 day", 30 * 86_400: "30 days"}
PART_MEANINGS: Final = {
    "length": "neither a scrap nor an essay",
    "information": "rare words, not “yes ok”",
    "originality": "no copy, not one word again and again",
    "own_words": "talk, not links, code and signs",
    "engagement": "reactions and replies, for its channel",
}


@dataclass(frozen=True)
class Spread:
    """Distributions as lanes, and the figures below them."""

    chart: LaneChart
    rows: dict[str, Distribution]


@dataclass(frozen=True)
class Timeline:
    unit: str
    chart: ColumnChart


@dataclass(frozen=True)
class Others:
    """What the rankings leave out."""

    people: int
    messages: int
    channels: int
    channel_messages: int


def as_html(report: DataReport) -> bytes:
    """One self-contained page, UTF-8. Of the messages themselves nothing is in it."""
    guilds = {channel.guild for channel in report.channels}
    activity = report.activity
    return render_page(
        "data_report.html",
        report=report,
        percent=lambda share: _unbroken(percent(share)),
        duration=_waiting,
        last_part=last_part,
        number=_number,
        others=_others(report),
        authors=report.authors.top[:MOST_AUTHORS],
        channels=report.channels[:MOST_CHANNELS],
        one_guild=guilds.pop() or None if len(guilds) == 1 else None,
        concentration=_concentration(report),
        months=activity and _timeline(activity.months),
        hours=activity and _hours(activity),
        weekdays=activity and _weekdays(activity),
        lengths=_lengths(report),
        conversations=_conversations(report),
        waits=_waits(report),
        engaged=_engaged(report),
        quality=_quality(report),
        low_score=LOW_SCORE,
        part_meanings=PART_MEANINGS,
        content=content_parts(report),
        repeats=repeat_parts(report),
        most_repeated=MOST_REPEATED,
        languages=_languages(report),
        unclear_share=report.languages.messages.get(UNCLEAR, 0) / report.languages.sample,
        private=_private(report),
        prepared=_prepared(report),
        file=_file(report),
    )


def _number(value: float) -> str:
    """A count as it is, a mean with a decimal place."""
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def _waiting(seconds: float) -> str:
    return _unbroken(duration(seconds))


def _unbroken(figure: str) -> str:
    """A figure that is not parted from its unit at the end of a line."""
    return figure.replace(" ", "\N{NO-BREAK SPACE}")


def _others(report: DataReport) -> Others:
    authors, channels, total = report.authors, report.channels, report.overview.messages
    return Others(
        people=authors.count - len(authors.top[:MOST_AUTHORS]),
        messages=total - sum(author.messages for author in authors.top[:MOST_AUTHORS]),
        channels=len(channels) - len(channels[:MOST_CHANNELS]),
        channel_messages=sum(channel.messages for channel in channels[MOST_CHANNELS:]),
    )


def _concentration(report: DataReport) -> LineChart | None:
    """How much the first n people wrote; None where a line would have no shape."""
    top, count = report.authors.top, report.authors.count
    if len(top) < _FEWEST_FOR_A_LINE:
        return None
    running, written = 0, []
    for rank, author in enumerate(top, 1):
        running += author.messages
        written.append((rank, running / report.overview.messages))
    alike = [(1, 1 / count), (len(top), len(top) / count)]
    return line_chart(
        {"so many people wrote": written, "if all wrote the same": alike},
        y_from=0,
        y_text=lambda share: f"{100 * share:.0f} %",
    )


def _timeline(months: Sequence[Month]) -> Timeline | None:
    """Messages by month, or by year if there are very many; None for a single one."""
    if len(months) <= MOST_MONTHS:
        counts, unit = {month.month: month.messages for month in months}, "month"
    else:
        counts, unit = {}, "year"
        for month in months:
            year = month.month[:4]
            counts[year] = counts.get(year, 0) + month.messages
    if len(counts) == 1:
        return None
    return Timeline(unit, column_chart(counts, _time_marks(list(counts))))


def _time_marks(names: Sequence[str]) -> dict[float, str]:
    """Place of a column → its name; of more than 18 months the Januaries, as years."""
    januaries = [n for n, name in enumerate(names) if name.endswith("-01")]
    by_year = len(names) > 18 and len(januaries) > 1
    places = januaries if by_year else list(range(len(names)))
    every = -(-len(places) // _MOST_MARKS)
    return {n + 0.5: names[n][:4] if by_year else names[n] for n in places[::every]}


def _hours(activity: Activity) -> ColumnChart:
    names = {f"{hour}:00": count for hour, count in enumerate(activity.hours)}
    return column_chart(names, {hour + 0.5: f"{hour}:00" for hour in (0, 6, 12, 18, 23)})


def _weekdays(activity: Activity) -> ColumnChart:
    names = dict(zip(WEEKDAYS, activity.weekdays, strict=True))
    return column_chart(names, {n + 0.5: day for n, day in enumerate(WEEKDAYS)})


def _quality(report: DataReport) -> ColumnChart:
    names = {f"{10 * n}–{10 * n + 10}": n for n in range(10)}
    counts = {name: report.quality.histogram[n] for name, n in names.items()}
    marks = {float(n): str(10 * n) for n in range(0, 11, 2)}
    return column_chart(counts, marks, pale=LOW_SCORE // 10)


def _spread(
    rows: Mapping[str, Distribution | None],
    marks: Mapping[int, str],
    text: Callable[[float], str] = _number,
) -> Spread:
    known = {name: of for name, of in rows.items() if of is not None}
    ends = {name: (of.median, of.p90, of.p99, of.longest) for name, of in known.items()}
    return Spread(lane_chart(ends, marks, text), known)


def _lengths(report: DataReport) -> Spread:
    of = report.lengths
    rows = {"characters": of.characters, "words": of.words, "tokens": of.tokens}
    return _spread(rows, _NUMBERS)


def _conversations(report: DataReport) -> Spread:
    talk = report.engagement
    rows = {"messages": talk.conversation_messages, "people": talk.conversation_authors}
    return _spread(rows, _NUMBERS)


def _waits(report: DataReport) -> Spread | None:
    talk = report.engagement
    rows = {
        "the next person’s message": talk.answer_seconds,
        "the first reply by Discord’s own reply": talk.first_reply_seconds,
    }
    return _spread(rows, _TIMES, _waiting) if any(rows.values()) else None


def _engaged(report: DataReport) -> dict[str, Part]:
    talk = report.engagement
    return {
        "reply to another": talk.replies,
        "got a reply": talk.with_replies,
        "got a reaction": talk.with_reactions,
    }


def _languages(report: DataReport) -> dict[str, Part]:
    of = report.languages
    return {
        f"{NAMES.get(code, code)} ({code})": Part(of.messages[code], share)
        for code, share in of.shares.items()
    }


def _private(report: DataReport) -> dict[str, Part]:
    total = report.overview.messages
    return {
        kind.replace("_", " "): Part(count, count / total)
        for kind, count in report.private_data.kinds.items()
        if count
    }


def _prepared(report: DataReport) -> dict[str, int]:
    made = report.source.preparation
    if made is None:
        return {}
    unreadable = {"could not be read": made.unreadable} if made.unreadable else {}
    return {"read": made.read, **_dropped(made.dropped), "kept": made.kept, **unreadable}


def _file(report: DataReport) -> dict[str, int]:
    of = report.source
    found = {
        "could not be read": of.unreadable,
        "ready conversations": of.ready_conversations,
        "messages kept": of.messages,
    }
    shown = {name: count for name, count in found.items() if count}
    return {"read": of.lines, **_dropped(of.dropped), **shown}


def _dropped(reasons: Mapping[str, int]) -> dict[str, int]:
    return {f"dropped: {reason}": count for reason, count in reasons.items() if count}
