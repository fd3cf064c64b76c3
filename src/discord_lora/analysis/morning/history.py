"""`logs/<run>/history.jsonl`: what happened in one run's night, an event a line.

Training appends to it, the morning report reads it, and this file is where both meet. A line that
was torn by a power cut is passed over. A run that went on from a checkpoint, or back to one, did
the steps after it a second time; of those, only the second time counts.
"""

import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeGuard

HISTORY_FILE = "history.jsonl"

POWER_LIMIT = "power limit"
"""Of what slows a card down, the one that is as it should be: at full load each card is there."""

MOST_STEPS = 10**12
"""A larger number is damage."""

Kind = Literal["plan", "start", "step", "held_out", "saved", "answers", "incident", "end"]
"""
plan      at each start: `run, steps, steps_per_epoch, base_model, voice, hardware, command`, and
          predicted `seconds` (of the whole program) with their `label` (measured here, calibrated
          or modelled), and `peak_bytes` with `peak_label`
start     `step`: done so far; 0 for a new run
          With both of them comes `process, computer` by itself: whether that process still lives
          tells a run that is silent from one that was killed
step      `step, loss, learning_rate`; `messages_per_second, tokens_per_second` since the last such
          event; `memory_bytes`, in use by anybody, and `peak_bytes`, the most that the process
          held; `not_finite, overflowed`: steps of the run so far that were left out because loss or
          gradient was not finite, or fp16 found its scale too high. On a card also `celsius, watts`
          and `throttled`, what slows it down in words with commas between
held_out  `step, nats_per_token, bits_per_character, messages`
saved     `step, seconds` (without those for which a full disk was waited for), `bytes`
answers   `step, seconds, answers`: list of `prompt` (the end of it), `real`, `answer`
incident  `step, what` (one word, such as `out_of_memory`), `sentence`; `went_back` also has
          `back_to`, the step from which the run goes on
end       `step, outcome` (finished, stopped, failed), `sentence, seconds` since the start of the
          program, `peak_bytes, not_finite, overflowed, next_command`
"""


_FIGURES = frozenset({"step", "held_out", "saved", "answers"})
"""Kinds that say nothing without a step, and that a step done again replaces."""


def append_event(folder: Path, kind: Kind, **values: Any) -> None:
    """Add a line. A disk that is full costs the line, not the run."""
    if kind in ("plan", "start"):
        values = {"process": os.getpid(), "computer": platform.node(), **values}
    line = json.dumps({"kind": kind, "time": time.time(), **values}, ensure_ascii=False)
    with suppress(OSError), (folder / HISTORY_FILE).open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a line that was torn must not spoil this one
                line = "\n" + line
        file.write((line + "\n").encode("utf-8", "replace"))


def read_events(folder: Path) -> list[dict[str, Any]]:
    """All events that count, oldest first; none if there is no history."""
    return without_repeated_steps(read_history(folder))


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The same with the steps that were done again later: all that is readable."""
    try:
        lines = (folder / HISTORY_FILE).read_bytes().splitlines()
    except OSError:
        return []
    return [event for line in lines if (event := _event(line))]


def runs(logs_dir: Path) -> list[Path]:
    """Folders of the runs that have a history, the one written to last first."""
    found = []
    for path in logs_dir.glob(f"*/{HISTORY_FILE}"):
        with suppress(OSError):  # deleted meanwhile
            found.append((path.stat().st_mtime, path.parent))
    return [folder for _, folder in sorted(found, reverse=True)]


def without_repeated_steps(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Drop figures of steps that were done again; what happened stays."""
    kept: list[dict[str, Any]] = []
    again_from: float = math.inf  # the earliest step from which the run went on later
    for event in reversed(events):
        again_from = min(again_from, _goes_on_from(event))
        if event["kind"] not in _FIGURES or event["step"] <= again_from:
            kept.append(dict(event))
    return kept[::-1]


def _goes_on_from(event: Mapping[str, Any]) -> float:
    """The step after which steps are done anew from here on; infinite for most events."""
    if event["kind"] == "start":
        return int(event.get("step", 0))
    back_to = went_back_to(event)
    return math.inf if back_to is None else back_to


def went_back_to(event: Mapping[str, Any]) -> int | None:
    """The earlier step from which the run goes on after this incident; None for other events."""
    back_to = event.get("back_to") if event["kind"] == "incident" else None
    return back_to if _is_step(back_to) else None


def _event(line: bytes) -> dict[str, Any] | None:
    """None for what is no event, however it came to be: the file may be damaged."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or event.get("kind") not in Kind.__args__:  # type: ignore[attr-defined]
        return None
    step = event.get("step", None if event["kind"] in _FIGURES else 0)
    return event if _is_step(step) else None


def _is_step(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and 0 <= value <= MOST_STEPS
