"""`logs/<run>/history.jsonl`: what happened in one run's night, an event a line.

Training appends to it, the morning report reads it, and this file is where both meet. A line that
was torn by a power cut is passed over. A run that went on from a checkpoint did the steps after it
a second time; of those, only the second time counts.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

HISTORY_FILE = "history.jsonl"

Kind = Literal["plan", "start", "step", "held_out", "saved", "answers", "incident", "end"]
"""
plan      before each start: `run, steps, steps_per_epoch, base_model, voice, hardware, command`,
          and predicted `seconds, peak_bytes, label` (measured here, calibrated or modelled)
start     `step`: done so far; 0 for a new run
step      `step, loss, learning_rate, messages_per_second, tokens_per_second, memory_bytes`, on a
          card also `celsius, watts, throttled`
held_out  `step, nats_per_token, bits_per_character, messages, best` (true if the lowest so far)
saved     `step, seconds, bytes`
answers   `step, answers`: list of `prompt` (the end of it), `real`, `answer`
incident  `step, what` (one word, such as `out_of_memory`), `sentence`
end       `step, outcome` (finished, stopped, failed), `sentence, seconds` since the start of the
          program, `peak_bytes, next_command`
"""


def append_event(folder: Path, kind: Kind, **values: Any) -> None:
    """Add a line. A disk that is full costs the line, not the run."""
    line = json.dumps({"kind": kind, "time": time.time(), **values}, ensure_ascii=False)
    with suppress(OSError), (folder / HISTORY_FILE).open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a line that was torn must not spoil this one
                line = "\n" + line
        file.write((line + "\n").encode("utf-8", "replace"))


def read_events(folder: Path) -> list[dict[str, Any]]:
    """All events that count, oldest first; none if there is no history."""
    try:
        lines = (folder / HISTORY_FILE).read_bytes().splitlines()
    except OSError:
        return []
    return without_repeated_steps([event for line in lines if (event := _event(line))])


def without_repeated_steps(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Drop figures of steps that were done again after a start; what happened stays."""
    kept: list[dict[str, Any]] = []
    for event in events:
        if event["kind"] == "start":
            redone = {"step", "held_out", "saved", "answers"}
            kept = [e for e in kept if e["kind"] not in redone or e["step"] <= event["step"]]
        kept.append(dict(event))
    return kept


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    known = isinstance(event, dict) and event.get("kind") in Kind.__args__  # type: ignore[attr-defined]
    return event if known and isinstance(event.get("step", 0), int) else None
