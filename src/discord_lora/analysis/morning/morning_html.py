"""The morning report as a page for a browser: `logs/<run>/report.html`."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from discord_lora.analysis.morning.curves import Points, thinned
from discord_lora.analysis.morning.morning_page import (
    compared_rows,
    incident_count,
    next_words,
    spread,
    steps_left_out,
)
from discord_lora.analysis.morning.morning_report import MorningReport, Question, read_report
from discord_lora.analysis.morning.outcome import State, clock
from discord_lora.console import duration
from discord_lora.messages.output import write_whole
from discord_lora.pages.charts import LineChart, line_chart
from discord_lora.pages.render import render_page

REPORT_FILE = "report.html"

MOST_INCIDENTS = 200
MOST_MEASURED = 12
MOST_ANSWERS, MOST_ANSWERS_FOLDED = 8, 60
"""Rows of a question that are seen, and that are there after a click."""

MOST_SMALL_POINTS = 120
"""Of a curve that has half the width."""

_LONGEST_ANSWER = 600
"""Characters."""

LEVELS: dict[State, str] = {
    "starting": "advice",
    "running": "good",
    "silent": "warning",
    "finished": "good",
    "stopped": "advice",
    "failed": "warning",
}
_CURVES = {
    "learning_rate": "Learning rate",
    "messages_per_second": "Messages a second",
    "celsius": "Temperature of the card, °C",
    "watts": "Power of the card, W",
}
_MEDIANS = {
    "messages_per_second": ("messages a second", "{:,.2f}"),
    "tokens_per_second": ("tokens a second", "{:,.0f}"),
    "celsius": ("temperature", "{:.0f} °C"),
    "watts": ("power", "{:.0f} W"),
}


@dataclass(frozen=True)
class Row:
    """Checkpoints next to each other at which the model said the same."""

    when: str
    said: list[str]
    """Lines."""


def write_report(folder: Path) -> Path | None:
    """Write `report.html` into `logs/<run>/`; None if that run has no history yet.

    Raises:
        UserError: it cannot be written.
    """
    report = read_report(folder)
    if report is None:
        return None
    path = folder / REPORT_FILE
    write_whole(path, as_html(report), "--html")
    return path


def as_html(report: MorningReport) -> bytes:
    """One self-contained page, UTF-8. Messages of members are in it, as questions and answers."""
    answers = {id(question): rows_of(question) for question in report.questions}
    return render_page(
        "morning_report.html",
        report=report,
        level=LEVELS[report.state],
        state="Cut off" if report.state == "silent" else report.state.capitalize(),
        next_words=next_words(report),
        best=report.best,
        clock=lambda moment: clock(moment, report.written),
        clock_with_day=clock,
        duration=lambda seconds: _unbroken(duration(seconds)),
        incident_count=incident_count(report),
        loss=_loss(report),
        curves={
            title: chart
            for name, title in _CURVES.items()
            if (chart := _chart(title, report.curves.get(name, [])))
        },
        compared=compared_rows(report),
        medians={
            title: form.format(report.medians[name])
            for name, (title, form) in _MEDIANS.items()
            if name in report.medians
        },
        held_out=spread(report.held_out, MOST_MEASURED, keep=report.best),
        incidents=report.incidents[-MOST_INCIDENTS:],
        left_out=steps_left_out(report),
        lines=_lines,
        rows=lambda question: spread(answers[id(question)], MOST_ANSWERS),
        folded=lambda question: _folded(answers[id(question)]),
    )


def rows_of(question: Question) -> list[Row]:
    """The answers by checkpoint; the same one several times in a row is one row."""
    found = []
    for said, group in itertools.groupby(question.answers, key=lambda answer: answer[1]):
        steps = [step for step, _ in group]
        last = f" to {steps[-1]:,}" if len(steps) > 1 else ""
        when = f"step {steps[0]:,}{last}" if steps[-1] else "before training"
        found.append(Row(when, _lines(said)))
    return found


def _folded(rows: Sequence[Row]) -> list[Row]:
    return spread(rows, MOST_ANSWERS_FOLDED) if len(rows) > MOST_ANSWERS else []


def _lines(text: str) -> list[str]:
    """Lines of foreign text, and not too much of it."""
    return [line for line in text[:_LONGEST_ANSWER].splitlines() if line.strip()]


def _unbroken(figure: str) -> str:
    return figure.replace(" ", "\N{NO-BREAK SPACE}")


def _loss(report: MorningReport) -> LineChart | None:
    """Training loss and held-out loss over one axis; None where there would be no line."""
    best = report.best
    series: dict[str, Points] = {
        "training, smoothed": report.smooth_loss,
        "held out": [(it.step, it.nats_per_token) for it in report.held_out],
        "training, each logged step": report.loss,
        "lowest held out": [(best.step, best.nats_per_token)] if best else [],
    }
    shown = {name: points for name, points in series.items() if points}
    if len({x for points in shown.values() for x, _ in points}) < 2:
        return None
    return line_chart(series, x_text=_step, y_text=lambda y: f"{y:.4g}")


def _chart(title: str, points: Points) -> LineChart | None:
    if len({x for x, _ in points}) < 2:
        return None
    return line_chart({title: thinned(points, MOST_SMALL_POINTS)}, x_text=_step, y_text=_figure)


def _figure(y: float) -> str:
    """Short beside a small chart: 1.5e-4, 0.5, 240."""
    short = f"{y:.4g}"
    return short if len(short) <= 5 else f"{y:.1e}".replace("e-0", "e-").replace("e+0", "e")


def _step(x: float) -> str:
    return f"step {x:,.0f}" if x else "start"
