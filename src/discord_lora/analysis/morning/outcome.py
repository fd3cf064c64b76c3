"""Where a run stands: its state, that in one sentence, and the command that goes on."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from discord_lora.analysis.morning.sittings import (
    LATEST_TIME,
    Event,
    Sitting,
    text,
    time_of,
    working_seconds,
)
from discord_lora.console import duration

State = Literal["starting", "running", "silent", "finished", "stopped", "failed"]

PATIENCE_SECONDS = 600.0
"""Without a sign of life for longer, a run whose process is not known counts as cut off."""

TRAIN = "python training/train_lora.py"


def state_of(last: Sitting, now: float) -> State:
    """Of the run whose newest sitting this is."""
    if last.ending is not None:
        return last.ending
    alive = last.is_alive()
    if alive is None:
        alive = now - last.last <= PATIENCE_SECONDS
    if not alive:
        return "silent"
    return "running" if last.last_step != last.first_step else "starting"


def outcome(
    sittings: Sequence[Sitting], state: State, steps: int, held_out: Sequence[float], now: float
) -> str:
    """One sentence.

    Args:
        sittings: at least one, oldest first.
        state: of the newest.
        steps: planned; 0 if that is not known.
        held_out: nats a token, in the order they were measured.
        now: seconds since 1970.
    """
    last = sittings[-1]
    at = f"step {last.last_step:,}" + (f" of {steps:,}" if steps else "")
    when = clock(last.last, now)
    if state == "starting":
        done = f"going on after {at}" if last.first_step else "no step is done yet"
        return f"Starting since {clock(last.began, now)}: {done}."
    if state == "running" and now - last.last > PATIENCE_SECONDS:
        return f"Running, but silent since {when}, {at}; training.log may say why."
    if state == "running":
        return f"Running: {at} at {when}{_to_go(last, steps, now)}."
    if state == "silent":
        return f"No sign of life since {when}, {at if last.last_step else 'before the first step'}."
    said = text(last.end, "sentence").strip()
    if state in ("stopped", "failed"):
        return f"{state.capitalize()} at {when} after {at}" + (f": {said}" if said else ".")
    taken = duration(working_seconds(sittings))
    done = f"Finished at {when}: {last.last_step:,} steps in {taken}{_learned(held_out)}"
    return f"{done}; {said}." if said else f"{done}."


def next_command(last: Sitting, state: State, plan: Event) -> str:
    """What to type next; empty while it runs."""
    if state in ("starting", "running"):
        return ""
    return text(last.end, "next_command") or text(plan, "command") or TRAIN


def clock(moment: float, now: float | None = None) -> str:
    """`03:12`, or `Tue 24 Nov 03:12` where that is another day than `now`."""
    if not 0 < moment <= LATEST_TIME:
        return "a time unknown"
    at = datetime.fromtimestamp(moment)
    if now is not None and at.date() == datetime.fromtimestamp(now).date():
        return f"{at:%H:%M}"
    return f"{at:%a} {at.day} {at:%b %H:%M}"


def _to_go(last: Sitting, steps: int, now: float) -> str:
    """When it will be done, at the rate since its first step."""
    done = last.last_step - last.first_step
    since = time_of(last.start, last.began)
    if steps <= last.last_step or done <= 0 or last.last <= since:
        return ""
    left = (steps - last.last_step) * (last.last - since) / done
    return f", about {duration(left)} to go, until {clock(last.last + left, now)}"


def _learned(held_out: Sequence[float]) -> str:
    if len(held_out) < 2:
        return ""
    change = f", held-out loss from {held_out[0]:.3f} to {held_out[-1]:.3f}"
    lowest = min(held_out)
    return change if lowest == held_out[-1] else f"{change} (lowest: {lowest:.3f})"
