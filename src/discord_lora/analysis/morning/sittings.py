"""A run's sittings: from each start of the program to its end, or to where its history breaks off.

start  plan  step step held_out saved step | start  plan  step ... end
first sitting, cut off by a power cut        second one: some of the steps were done again
"""

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import psutil

from discord_lora.analysis.morning.history import went_back_to

Event = Mapping[str, Any]
Ending = Literal["finished", "stopped", "failed"]

LATEST_TIME = 4e9
"""Seconds since 1970; a later time is damage."""

_LARGEST = 1e18
"""So is a larger number."""

_CLOCK_SLACK = 60.0
"""Seconds by which the clock may have been set since the process started."""


@dataclass(slots=True)
class Sitting:
    """One start of the program."""

    began: float
    last: float
    """Last sign of life."""
    plan: Event = field(default_factory=dict)
    start: Event = field(default_factory=dict)
    end: Event = field(default_factory=dict)
    last_step: int = 0
    """Steps done when it ended, or as far as is known."""

    @property
    def first_step(self) -> int:
        """Steps done when it began."""
        return int(self.start.get("step", 0))

    @property
    def ending(self) -> Ending | None:
        """None: nobody wrote down how it ended, or it goes on."""
        outcome = self.end.get("outcome")
        if not self.end:
            return None
        return outcome if outcome in ("finished", "stopped") else "failed"

    @property
    def seconds(self) -> float:
        taken = number(self.end, "seconds")
        if taken is not None and 0 <= taken <= LATEST_TIME:
            return taken
        return max(0.0, self.last - self.began)

    def is_alive(self) -> bool | None:
        """Whether its process is still there; None where that cannot be known."""
        origin = self.start or self.plan
        process = origin.get("process")
        if not isinstance(process, int) or origin.get("computer") != platform.node():
            return None
        try:
            made = psutil.Process(process).create_time()
        except (psutil.Error, ValueError, OverflowError):
            return False
        return bool(made <= self.began + _CLOCK_SLACK)


def sittings(events: Iterable[Event]) -> list[Sitting]:
    """All of them, oldest first, from all events, those of steps done again included."""
    found: list[Sitting] = []
    for event in events:
        kind = event["kind"]
        now = time_of(event, found[-1].last if found else 0.0)
        if not found or _begins_anew(found[-1], event):
            found.append(Sitting(began=now, last=now))
        sitting = found[-1]
        sitting.last = now
        back_to = went_back_to(event)
        if back_to is not None:
            sitting.last_step = back_to
        elif kind != "incident":  # that is of a step that was not done yet
            sitting.last_step = max(sitting.last_step, event.get("step", 0))
        if kind == "plan":
            sitting.plan = event
        elif kind == "start":
            sitting.start = event
        elif kind == "end":
            sitting.end = event
    return found


def working_seconds(of: Iterable[Sitting]) -> float:
    """Of all together, steps that were done again included."""
    return sum(it.seconds for it in of)


def _begins_anew(sitting: Sitting, event: Event) -> bool:
    """Whether the event is of another start of the program. Plan and start come in any order."""
    kind = event["kind"]
    if kind not in ("plan", "start"):
        return False
    there = {"plan": sitting.plan, "start": sitting.start}[kind]
    other = (sitting.plan or sitting.start).get("process", event.get("process"))
    return bool(sitting.end or there) or other != event.get("process")


def number(event: Event, key: str) -> float | None:
    """A finite number of the event; None if there is none."""
    value = event.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # What is not a number compares as false with everything.
    return float(value) if abs(value) <= _LARGEST else None


def count(event: Event, key: str) -> int:
    """A whole number from 0 on; 0 if there is none."""
    value = number(event, key)
    return int(value) if value is not None and value > 0 else 0


def text(event: Event, key: str) -> str:
    """Empty if there is none."""
    value = event.get(key)
    return value if isinstance(value, str) else ""


def time_of(event: Event, otherwise: float) -> float:
    """Seconds since 1970."""
    value = number(event, "time")
    return value if value is not None and 0 <= value <= LATEST_TIME else otherwise
