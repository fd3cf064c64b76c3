"""The morning report as a terminal page of 80 columns, in characters that every console has."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from discord_lora.analysis.morning.morning_report import Compared, MorningReport, Question
from discord_lora.analysis.morning.outcome import clock
from discord_lora.console import duration, printable

Item = TypeVar("Item")

WIDTH = 80
_HEIGHT = 9
_PLOT = 68
_MOST_INCIDENTS = 20
_MOST_MEASURED = 10
_MOST_ANSWERS = 4
_LONGEST = 300
"""Characters of an answer, or of what a message said."""

STYLES = {"finished": "green", "silent": "red", "failed": "red", "stopped": "yellow"}


def print_page(console: Console, report: MorningReport) -> None:
    """Print everything that the history of a run tells."""
    _title(console, printable(report.run))
    print_outcome(console, report)
    _next(console, report)
    for line in _about(report):
        _say(console, line)
    _title(console, "predicted and real")
    console.print(_compared(report))
    for line in _rates(report):
        _say(console, line)
    if report.loss or report.held_out:
        _title(console, "loss")
        for line in plot(report):
            console.print(line, markup=False)
        _held_out(console, report)
    _title(console, "incidents")
    _incidents(console, report)
    if report.questions:
        _title(console, "the same held-out questions at each checkpoint")
        for question in report.questions:
            _question(console, question)


def print_outcome(console: Console, report: MorningReport) -> None:
    """The short form: where it stands, and how many incidents there were."""
    sentence = textwrap.fill(printable(report.sentence), WIDTH)
    console.print(Text(sentence, style=STYLES.get(report.state, "")))
    if report.incidents:
        newest = report.incidents[-1]
        when = f"{clock(newest.time, report.written)}, step {newest.step:,}"
        _say(console, f"{incident_count(report)}; the newest: {newest.what}, {when}")


def _next(console: Console, report: MorningReport) -> None:
    if report.next_command:
        console.print(next_words(report))
        # Whole, on a line of its own: to be copied.
        console.print(f"  {printable(report.next_command)}", markup=False, soft_wrap=True)


def next_words(report: MorningReport) -> str:
    """What stands before the next command."""
    return "Talk to it:" if report.state == "finished" else "Go on with:"


def incident_count(report: MorningReport) -> str:
    count = len(report.incidents)
    return f"{count:,} incident{'' if count == 1 else 's'}"


def steps_left_out(report: MorningReport) -> str:
    """How many steps taught nothing, and why; empty if there were none."""
    reasons = {
        "because loss or gradient was not finite": report.not_finite,
        "because fp16 found its scale too high": report.overflowed,
    }
    parts = [f"{steps:,} {why}" for why, steps in reasons.items() if steps]
    return f"Steps left out: {', '.join(parts)}." if parts else ""


def _about(report: MorningReport) -> Iterator[str]:
    trained = [
        report.base_model and f"base model {report.base_model}",
        report.voice and f"voice {report.voice}",
        report.hardware and f"on {report.hardware}",
    ]
    yield ", ".join(filter(None, trained))
    if report.starts > 1:
        yield (
            f"{report.starts:,} starts since {clock(report.began, report.written)}; "
            f"{duration(report.working_seconds)} of work, {duration(report.idle_seconds)} between"
        )


def _compared(report: MorningReport) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for heading in ("predicted", "real", "real / predicted"):
        table.add_column(heading, justify="right")
    for row in compared_rows(report):
        label = f" ({printable(row.label)})" if row.label else ""
        table.add_row(Text(f"{row.name}{label}"), row.predicted, row.real, row.ratio)
    return table


class ComparedRow(NamedTuple):
    """In words; `-` where something is not known."""

    name: str
    label: str
    """How the prediction was made."""
    predicted: str
    real: str
    ratio: str


def compared_rows(report: MorningReport) -> list[ComparedRow]:
    """Time and memory."""

    def row(name: str, of: Compared, words: Callable[[float], str]) -> ComparedRow:
        predicted, real = ("-" if it is None else words(it) for it in (of.predicted, of.real))
        ratio = "-" if of.ratio is None else f"{of.ratio:.2f}"
        return ComparedRow(name, of.label, predicted, real, ratio)

    return [
        row("time", report.seconds, duration),
        row("memory", report.memory, lambda held: f"{held / 1e9:.1f} GB"),
    ]


def _rates(report: MorningReport) -> Iterator[str]:
    median = report.medians
    rates = {
        "messages_per_second": "{:,.2f} messages/s",
        "tokens_per_second": "{:,.0f} tokens/s",
        "celsius": "{:.0f} C",
        "watts": "{:.0f} W",
    }
    known = [form.format(median[name]) for name, form in rates.items() if name in median]
    if known:
        yield f"median: {', '.join(known)}"
    slow, lines = report.throttled
    if slow:
        yield f"the card slowed itself down in {slow:,} of {lines:,} log lines"
    if report.checkpoints:
        answers = f", sample answers beside them in {duration(report.answer_seconds)}"
        yield (
            f"{report.checkpoints:,} checkpoints in {duration(report.save_seconds)}"
            f"{answers if report.answer_seconds else ''}"
        )


def plot(report: MorningReport) -> Iterator[str]:
    """Training loss smoothed (*) and held-out loss (o) over the steps."""
    held_out = [(it.step, it.nats_per_token) for it in report.held_out]
    points = [(x, y, "*") for x, y in report.smooth_loss] + [(x, y, "o") for x, y in held_out]
    if not points:
        return
    last, low = max(x for x, _, _ in points) or 1, min(y for _, y, _ in points)
    high = max(y for _, y, _ in points)
    rows = [[" "] * _PLOT for _ in range(_HEIGHT)]
    for x, y, sign in points:
        from_top = round((high - y) / ((high - low) or 1) * (_HEIGHT - 1))
        rows[from_top][round(x / last * (_PLOT - 1))] = sign
    for number, row in enumerate(rows):
        level = high - (high - low) * number / (_HEIGHT - 1)
        yield f"{level:8.3f} |{''.join(row).rstrip()}"
    steps = f"step {last:,}"
    yield f"{'':8} +{'-' * _PLOT}"
    yield f"{'':9}0{steps:>{_PLOT}}"
    yield "          * training, smoothed   o held out   (nats/token)"


def _held_out(console: Console, report: MorningReport) -> None:
    if report.bad_losses:
        console.print(f"logged steps whose loss is no number: {report.bad_losses:,}")
    best = report.best
    if best is None:
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("step", "held-out nats/token", "bits/character"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for it in spread(report.held_out, _MOST_MEASURED, keep=best):
        bits = "-" if it.bits_per_character is None else f"{it.bits_per_character:.4f}"
        mark = "lowest" if it is best else ""
        table.add_row(f"{it.step:,}", f"{it.nats_per_token:.4f}", bits, mark)
    console.print(table)


def spread(items: Sequence[Item], most: int, *, keep: Item | None = None) -> list[Item]:
    """At most `most` of the items, evenly, with the first, the last and `keep` among them."""
    if len(items) <= most:
        return list(items)
    places = {round(n * (len(items) - 1) / (most - 1)) for n in range(most)}
    return [it for n, it in enumerate(items) if n in places or it is keep]


def _incidents(console: Console, report: MorningReport) -> None:
    if not report.incidents:
        console.print("none")
    if steps_left_out(report):
        _say(console, steps_left_out(report))
    left_out = len(report.incidents) - _MOST_INCIDENTS
    if left_out > 0:
        console.print(f"{left_out:,} earlier ones are on the HTML page")
    for it in report.incidents[-_MOST_INCIDENTS:]:
        when = f"{clock(it.time, report.written)}  step {it.step:,}"
        _say(console, f"{when}  {it.what}: {it.sentence}"[:_LONGEST])


def _question(console: Console, question: Question) -> None:
    console.print()
    for line in question.prompt.splitlines()[-3:]:
        _say(console, line)
    answers = [(f"step {step:,}" if step else "before", text) for step, text in question.answers]
    rows = [("really", question.real), *spread(answers, _MOST_ANSWERS)]
    for who, said in rows:
        text = printable(said[:_LONGEST]) or "(nothing)"
        filled = textwrap.fill(
            text, WIDTH, initial_indent=f"  {who:>11}  ", subsequent_indent=" " * 15
        )
        console.print(filled, markup=False)


def _title(console: Console, title: str) -> None:
    console.print()
    console.print(f"-- {title} ".ljust(WIDTH, "-"), style="bold", markup=False)


def _say(console: Console, text: str) -> None:
    for line in textwrap.wrap(printable(text), WIDTH, subsequent_indent="  "):
        console.print(line, markup=False)
