"""The history of a night, as tests write it, and what its pages say."""

import io

from rich.console import Console

from discord_lora.analysis.morning.morning_html import as_html
from discord_lora.analysis.morning.morning_page import print_page
from discord_lora.analysis.morning.morning_report import make_report

EVENING = 1_790_000_000.0
COMMAND = "python training/train_lora.py --max-steps 40"


def event(kind, at, **values):
    """An event `at` seconds after the evening."""
    return {"kind": kind, "time": EVENING + at, **values}


def plan(at=0.0, **values):
    usual = {
        "run": "ada-tiny", "steps": 40, "steps_per_epoch": 40, "base_model": "tiny", "voice": "Ada",
        "hardware": "CPU", "command": COMMAND, "seconds": 100.0, "peak_bytes": 2e9,
        "label": "modelled",
    }  # fmt: skip
    return event("plan", at, **{**usual, **values})


def start(at, step=0, **values):
    return event("start", at, step=step, **values)


def steps(first, last, at, seconds=2.0):
    return [
        event(
            "step", at + n * seconds, step=step, loss=3.0 - step / 40, learning_rate=1e-3,
            messages_per_second=4.0, tokens_per_second=100.0, memory_bytes=1.5e9,
        )
        for n, step in enumerate(range(first, last + 1), start=1)
    ]  # fmt: skip


def held_out(at, step, nats):
    return event("held_out", at, step=step, nats_per_token=nats, bits_per_character=1.5, messages=9)


def end(at, outcome="finished", **values):
    return event("end", at, outcome=outcome, **values)


def report_of(*events, now=10_000.0):
    return make_report("folder", events, EVENING + now)


def page_of(report):
    written = io.StringIO()
    print_page(Console(width=80, file=written), report)
    return written.getvalue()


def shown(report):
    """Both pages as text; neither may fail."""
    return page_of(report) + as_html(report).decode()
