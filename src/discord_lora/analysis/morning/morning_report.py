"""One run's night in figures: what happened, what it took, what it came to, what to do next."""

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from discord_lora.analysis.morning.curves import Points, smoothed, thinned
from discord_lora.analysis.morning.history import (
    POWER_LIMIT,
    read_history,
    without_repeated_steps,
)
from discord_lora.analysis.morning.incidents import Incident, incidents_of
from discord_lora.analysis.morning.outcome import State, next_command, outcome, state_of
from discord_lora.analysis.morning.sittings import (
    Event,
    Sitting,
    count,
    number,
    sittings,
    text,
    time_of,
    working_seconds,
)

CURVES = ("learning_rate", "messages_per_second", "tokens_per_second", "celsius", "watts")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One measurement of the held-out loss."""

    step: int
    time: float
    nats_per_token: float
    bits_per_character: float | None
    messages: int


@dataclass(frozen=True, slots=True)
class Compared:
    """What was predicted and what it was, in seconds or bytes; None where it is not known."""

    predicted: float | None
    real: float | None
    label: str = ""
    """How the prediction was made."""

    @property
    def ratio(self) -> float | None:
        """Real / predicted."""
        return self.real / self.predicted if self.predicted and self.real else None


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out message and what the model answered in its place."""

    prompt: str
    """The end of what was said before."""
    real: str
    answers: list[tuple[int, str]]
    """(step, answer), by step; step 0 is the base model."""


@dataclass(slots=True)
class MorningReport:
    """Everything that the pages show. Times are seconds since 1970."""

    run: str
    state: State
    sentence: str
    """The outcome in one sentence, or where the run stands."""
    next_command: str
    """Empty while it runs."""
    written: float
    began: float
    last: float
    """Last sign of life."""
    steps: int
    """Planned; 0 if that is not known."""
    steps_done: int
    steps_per_epoch: int
    base_model: str
    voice: str
    hardware: str
    working_seconds: float
    """Of all starts together, steps that were done again included."""
    idle_seconds: float
    """Between them."""
    starts: int
    seconds: Compared
    memory: Compared
    loss: Points
    smooth_loss: Points
    bad_losses: int
    """Logged steps whose loss was no finite number."""
    held_out: list[HeldOut]
    curves: dict[str, Points]
    """Of `CURVES`, those that are known."""
    medians: dict[str, float]
    """Of each of them, over all steps."""
    throttled: tuple[int, int]
    """Log lines in which the card was slower than it can be, of how many."""
    not_finite: int
    """Steps that were left out because loss or gradient was not finite."""
    overflowed: int
    """Steps that fp16 left out because it found its scale too high."""
    checkpoints: int
    save_seconds: float
    """Of all checkpoints together."""
    answer_seconds: float
    """Of the sample answers at all of them."""
    incidents: list[Incident]
    questions: list[Question]

    @property
    def best(self) -> HeldOut | None:
        """Where the held-out loss was lowest; the first of equals."""
        return min(self.held_out, key=lambda it: it.nats_per_token, default=None)


def read_report(folder: Path, now: float | None = None) -> MorningReport | None:
    """The report on `logs/<run>/`; None if that run has no history."""
    events = read_history(folder)
    return make_report(folder.name, events, time.time() if now is None else now) if events else None


def make_report(run: str, events: Sequence[Event], now: float) -> MorningReport:
    """From at least one event to the report.

    Args:
        run: its name, should the history not say it.
        events: all of them, those of steps done again included.
        now: seconds since 1970.
    """
    starts = sittings(events)
    counted = without_repeated_steps(events)
    held_out = _held_out(counted)
    last = starts[-1]
    plans = [it.plan for it in starts if it.plan]
    newest: Event = plans[-1] if plans else {}
    state = state_of(last, now)
    steps = count(newest, "steps")
    rates = [event for event in counted if event["kind"] == "step"]
    losses = [
        (event["step"], value) for event in rates if (value := number(event, "loss")) is not None
    ]
    curves = {name: points for name in CURVES if (points := _curve(rates, name))}
    return MorningReport(
        run=text(newest, "run") or run,
        state=state,
        sentence=outcome(starts, state, steps, [it.nats_per_token for it in held_out], now),
        next_command=next_command(last, state, newest),
        written=now,
        began=starts[0].began,
        last=last.last,
        steps=steps,
        steps_done=last.last_step,
        steps_per_epoch=count(newest, "steps_per_epoch"),
        base_model=text(newest, "base_model"),
        voice=text(newest, "voice"),
        hardware=text(newest, "hardware"),
        working_seconds=working_seconds(starts),
        idle_seconds=sum(
            max(0.0, after.began - before.last)
            for before, after in itertools.pairwise(starts)
        ),
        starts=len(starts),
        seconds=_seconds(starts, state, steps),
        memory=_memory(newest, events),
        loss=thinned(losses),
        smooth_loss=thinned(smoothed(losses)),
        bad_losses=sum("loss" in event for event in rates) - len(losses),
        held_out=held_out,
        curves={name: thinned(points) for name, points in curves.items()},
        medians={name: statistics.median(y for _, y in it) for name, it in curves.items()},
        throttled=(sum(map(_is_slowed, rates)), len(rates)),
        not_finite=_newest_count(counted, "not_finite"),
        overflowed=_newest_count(counted, "overflowed"),
        checkpoints=sum(event["kind"] == "saved" for event in counted),
        save_seconds=_seconds_of(counted, "saved"),
        answer_seconds=_seconds_of(counted, "answers"),
        incidents=incidents_of(events, starts, state),
        questions=_questions(counted),
    )  # fmt: skip


def _seconds(starts: Sequence[Sitting], state: State, steps: int) -> Compared:
    """Of the whole run. It was predicted before the first start, and is known at the end, unless
    the run stopped early: the prediction was for all of its steps."""
    plan: Event = starts[0].plan if starts[0].first_step == 0 else {}
    is_whole = state == "finished" and starts[-1].last_step >= steps
    real = working_seconds(starts) if is_whole else None
    return Compared(number(plan, "seconds"), real, text(plan, "label"))


def _memory(plan: Event, events: Sequence[Event]) -> Compared:
    """What the process held, whatever others had on the card."""
    held = [number(event, "peak_bytes") for event in events if event["kind"] in ("step", "end")]
    real = max(filter(None, held), default=None)
    return Compared(number(plan, "peak_bytes"), real, text(plan, "peak_label"))


def _is_slowed(event: Event) -> bool:
    """By anything but its power limit."""
    return bool({*text(event, "throttled").split(", ")} - {"", POWER_LIMIT})


def _newest_count(events: Sequence[Event], key: str) -> int:
    """Of a count that goes on over the whole run."""
    return next((count(event, key) for event in reversed(events) if key in event), 0)


def _seconds_of(events: Sequence[Event], kind: str) -> float:
    """Of all events of one kind together."""
    return sum(number(event, "seconds") or 0.0 for event in events if event["kind"] == kind)


def _held_out(events: Sequence[Event]) -> list[HeldOut]:
    """By step; of a step that was measured twice the last one."""
    found: dict[int, HeldOut] = {}
    for event in events:
        nats = number(event, "nats_per_token") if event["kind"] == "held_out" else None
        if nats is not None:
            found[event["step"]] = HeldOut(
                event["step"],
                time_of(event, 0.0),
                nats,
                number(event, "bits_per_character"),
                count(event, "messages"),
            )
    return [found[step] for step in sorted(found)]


def _curve(events: Sequence[Event], name: str) -> Points:
    return [(it["step"], value) for it in events if (value := number(it, name)) is not None]


def _questions(events: Sequence[Event]) -> list[Question]:
    """Of a step that was answered twice the last answer."""
    found: dict[tuple[str, str], dict[int, str]] = {}
    for event in events:
        answers = event.get("answers") if event["kind"] == "answers" else None
        for one in answers if isinstance(answers, list) else []:
            if isinstance(one, dict):
                key = text(one, "prompt"), text(one, "real")
                found.setdefault(key, {})[event["step"]] = text(one, "answer")
    return [Question(*key, sorted(answers.items())) for key, answers in found.items()]
