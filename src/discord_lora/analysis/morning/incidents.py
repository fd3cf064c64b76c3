"""What went wrong in a run: what training reported, and what can only be seen from outside."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from discord_lora.analysis.morning.outcome import State, clock
from discord_lora.analysis.morning.sittings import Event, Sitting, text, time_of
from discord_lora.console import duration

CUT_OFF = "The process ended without a word: a power cut, or it was killed."


@dataclass(frozen=True, slots=True)
class Incident:
    time: float
    """Seconds since 1970."""
    step: int
    what: str
    """A word or two."""
    sentence: str


def incidents_of(
    events: Sequence[Event], sittings: Sequence[Sitting], state: State
) -> list[Incident]:
    """All of them by time, the breaks between two sittings among them."""
    found = []
    now = 0.0
    for event in events:
        now = time_of(event, now)
        if event["kind"] == "incident":
            what = text(event, "what").replace("_", " ") or "incident"
            found.append(Incident(now, event.get("step", 0), what, text(event, "sentence")))
    found += [_break(before, after) for before, after in itertools.pairwise(sittings)]
    last = sittings[-1]
    if state == "silent":
        found.append(Incident(last.last, last.last_step, "cut off", CUT_OFF))
    elif state == "failed":
        found.append(Incident(last.last, last.last_step, "failed", text(last.end, "sentence")))
    return sorted(found, key=lambda it: it.time)


def _break(before: Sitting, after: Sitting) -> Incident:
    """Between two sittings: why the first ended, and what was lost."""
    why = {
        None: CUT_OFF,
        "stopped": text(before.end, "sentence") or "Stopped.",
        "finished": "Finished.",
        "failed": text(before.end, "sentence") or "It failed.",
    }[before.ending].rstrip(".")
    later = duration(max(0.0, after.began - before.last))
    again = before.last_step - after.first_step
    lost = f"; {again:,} steps were done again" if again > 0 else ""
    sentence = f"{why}. Started again {later} later, at {clock(after.began, before.last)}"
    return Incident(
        before.last,
        before.last_step,
        before.ending or "cut off",
        f"{sentence}, after step {after.first_step:,}{lost}.",
    )
