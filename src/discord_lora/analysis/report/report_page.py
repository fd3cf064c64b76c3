"""The data report as a terminal page of 80 columns, in characters that every console has."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from discord_lora.analysis.report.data_report import DataReport, Distribution, Part
from discord_lora.analysis.report.findings import percent
from discord_lora.analysis.report.languages import UNCLEAR
from discord_lora.console import duration, printable

WIDTH = 80
_BAR = 24
_MOST_ROWS = 10
_MOST_LANGUAGES = 6
_LONGEST_NAME = 32
_MARKS = {"warning": ("!!", "bold red"), "advice": ("->", "yellow"), "good": ("ok", "green")}
_SHADES = " .:-=+*#@"
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS_SHOWN = 60


def print_page(console: Console, report: DataReport) -> None:
    """Print everything; of the messages themselves nothing is shown."""
    for line in _head(report):
        _say(console, line)
    _title(console, "what to do")
    for finding in report.findings:
        mark, style = _MARKS[finding.level]
        text = textwrap.fill(
            printable(finding.sentence), WIDTH, initial_indent=f"{mark} ", subsequent_indent="   "
        )
        console.print(Text(text, style=style))
    _title(console, "people")
    _say(console, _concentration(report))
    people = ((it.name, it.messages, it.share) for it in report.authors.top)
    console.print(_ranking("author", people))
    _title(console, "channels")
    named = ((it.name, it.messages, it.share) for it in report.channels)
    console.print(_ranking("channel", named))
    model = report.lengths.tokenizer
    _title(console, f"lengths, tokens of {last_part(model)}" if model else "lengths")
    console.print(_lengths(report))
    _activity(console, report)
    _title(console, "answers")
    for line in _engagement(report):
        _say(console, line)
    _title(console, "what the messages are")
    console.print(_content(report))
    _title(console, "quality")
    for line in _quality(report):
        _say(console, line)


def last_part(location: str) -> str:
    """The model's name without its folders."""
    return printable(location).replace("\\", "/").rstrip("/").rpartition("/")[2]


def _say(console: Console, text: str) -> None:
    for line in textwrap.wrap(printable(text), WIDTH, subsequent_indent="  ") or [""]:
        console.print(line, markup=False)


def _title(console: Console, title: str) -> None:
    console.print()
    console.print(f"-- {title} ".ljust(WIDTH, "-"), style="bold", markup=False)


def _head(report: DataReport) -> Iterator[str]:
    source, all_of = report.source, report.overview
    yield (
        f"{all_of.messages:,} messages in {all_of.conversations:,} conversations by "
        f"{all_of.authors:,} people in {all_of.channels:,} channels"
    )
    if all_of.first and all_of.last:
        yield (
            f"from {all_of.first[:10]} to {all_of.last[:10]}, {all_of.days:,} days, on "
            f"{all_of.active_days:,} of them somebody wrote"
        )
    if source.preparation:
        made = source.preparation
        yield f"exports: {_account(made.read, made.kept, made.dropped)}"
    if source.ready_conversations:
        yield f"ready conversations: {source.ready_conversations:,}; each turn counts as a message"
    dropped = {**source.dropped, "unreadable": source.unreadable}
    kept = source.messages + source.ready_conversations
    yield f"file: {_account(source.lines, kept, dropped)}"
    yield from source.remarks


def _account(read: int, kept: int, dropped: dict[str, int]) -> str:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in dropped.items() if count)
    total = sum(dropped.values())
    return f"{read:,} read = {kept:,} kept + {total:,} dropped{f' ({reasons})' if reasons else ''}"


def _concentration(report: DataReport) -> str:
    authors = report.authors
    if authors.count == 1:
        return "one author"
    return (
        f"{authors.half_by:,} of {authors.count:,} wrote half, the first five "
        f"{percent(authors.top5_share)}; as varied as {authors.effective:.1f} equally active "
        f"people (1 / Herfindahl); Gini {authors.gini:.2f}"
    )


def _ranking(kind: str, rows: Iterable[tuple[str, int, float]]) -> Table:
    shown = list(rows)[:_MOST_ROWS]
    table = _table(kind, "messages", "share", "")
    longest = max((share for _, _, share in shown), default=1)
    for name, messages, share in shown:
        table.add_row(_name(name), f"{messages:,}", percent(share), _bar(share / longest))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(first, no_wrap=True, max_width=_LONGEST_NAME)
    for other in others:
        table.add_column(other, justify="right" if other else "left", no_wrap=True)
    return table


def _name(name: str) -> Text:
    """A foreign name, cut to its place; Text, since somebody may be called [bold]."""
    text = Text(printable(name))
    if text.cell_len > _LONGEST_NAME:
        text.truncate(_LONGEST_NAME - 2)
        text.append("..")
    return text


def _bar(share: float) -> str:
    return "#" * max(1, round(share * _BAR)) if share > 0 else ""


def _shades(counts: Sequence[int]) -> str:
    """One character a number, the darker the more."""
    most = max(counts, default=0) or 1
    steps = len(_SHADES) - 1
    return "".join(_SHADES[-(-count * steps // most)] for count in counts)


def _lengths(report: DataReport) -> Table:
    table = _table("", "mean", "median", "p90", "p95", "p99", "longest", "total")
    lengths = report.lengths
    rows: list[tuple[str, Distribution]] = [
        ("characters", lengths.characters), ("words", lengths.words)
    ]  # fmt: skip
    if lengths.tokens:
        rows.append(("tokens", lengths.tokens))
    for name, of in rows:
        values = (of.median, of.p90, of.p95, of.p99, of.longest, of.total)
        table.add_row(_name(name), f"{of.mean:,.1f}", *(f"{value:,}" for value in values))
    return table


def _activity(console: Console, report: DataReport) -> None:
    activity = report.activity
    if activity is None:
        return
    _title(console, f"when (time zone {activity.timezone})")
    busiest = max(range(24), key=activity.hours.__getitem__)
    hours = f"|{_shades(activity.hours)}|"
    console.print(f"hours     0 {hours} 23   busiest at {busiest}:00", markup=False)
    total = sum(activity.weekdays)
    week = "  ".join(
        f"{day} {count / total:.0%}" for day, count in zip(WEEKDAYS, activity.weekdays, strict=True)
    )
    console.print(f"weekdays  {week}", markup=False)
    months = activity.months[-_MONTHS_SHOWN:]
    top = max(activity.months, key=lambda month: month.messages)
    shades = f"|{_shades([month.messages for month in months])}|"
    _say(
        console,
        f"months    {months[0].month} {shades} {months[-1].month}   busiest {top.month} with "
        f"{top.messages:,}",
    )


def _engagement(report: DataReport) -> Iterator[str]:
    talk = report.engagement
    length, people = talk.conversation_messages, talk.conversation_authors
    yield (
        f"a conversation has {length.mean:.1f} messages (median {length.median:,}, longest "
        f"{length.longest:,}) by {people.mean:.1f} people; {talk.monologues:,} of "
        f"{length.count:,} have one person in them"
    )
    if talk.answer_seconds:
        waits = talk.answer_seconds
        yield (
            f"the next person answers after {duration(waits.median)} (median), in nine of ten "
            f"turns within {duration(waits.p90)}"
        )
    if talk.replies.messages:
        first = talk.first_reply_seconds
        after = f", the first after {duration(first.median)} (median)" if first else ""
        yield (
            f"{_part(talk.replies)} are replies, {talk.replies_found:,} of them to a message "
            f"here; {percent(talk.with_replies.share)} got one{after}"
        )
    if talk.reactions:
        yield f"{talk.reactions:,} reactions on {_part(talk.with_reactions)}"


def _part(part: Part) -> str:
    return f"{part.messages:,} messages ({percent(part.share)})"


def content_parts(report: DataReport) -> dict[str, Part]:
    """What messages consist of, in words."""
    content = report.content
    return {
        "with a link": content.with_link,
        "nothing but links": content.link_only,
        "bot commands": content.commands,
        "with a block of code": content.with_code,
        "no words (emoji, signs, numbers)": content.without_words,
        "one word": content.one_word,
        "one to three words": content.up_to_three_words,
        "questions": content.questions,
    }


def repeat_parts(report: DataReport) -> dict[str, Part]:
    """What was said before, in words."""
    repeats = report.duplicates
    return {
        "said before, word for word": repeats.exact_repeats,
        "said before nearly so, 6+ words": repeats.near_repeats,
        "copypasta": repeats.copypasta,
    }


def _content(report: DataReport) -> Table:
    rows = {
        **content_parts(report),
        **repeat_parts(report),
        "seem to hold private data": report.private_data.any,
    }
    table = _table("", "messages", "share", "")
    for name, part in rows.items():
        table.add_row(name, f"{part.messages:,}", percent(part.share), _bar(part.share))
    return table


def _quality(report: DataReport) -> Iterator[str]:
    quality, languages = report.quality, report.languages
    score = quality.score
    yield (
        f"score 0 |{_shades(quality.histogram)}| 100   median {score.median}, below 20: "
        f"{percent(quality.low.share)}   (--explain ID shows how one comes about)"
    )
    parts = "  ".join(f"{name} {mean:.2f}" for name, mean in quality.mean_parts.items())
    yield f"mean parts: {parts}"
    shares = list(languages.shares.items())[:_MOST_LANGUAGES]
    shown = ", ".join(f"{code} {percent(share)}" for code, share in shares)
    unclear = languages.messages.get(UNCLEAR, 0) / languages.sample
    yield (
        f"languages: {shown or 'none recognised'} of the messages that show one "
        f"({percent(unclear)} do not; {languages.sample:,} looked at)"
    )
