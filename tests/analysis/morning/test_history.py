"""What a night leaves behind is readable, whatever tore it."""

import os
import time

from discord_lora.analysis.morning.history import (
    HISTORY_FILE,
    append_event,
    read_events,
    read_history,
    runs,
    without_repeated_steps,
)


def test_steps_done_again_count_once_and_incidents_stay(tmp_path):
    append_event(tmp_path, "start", step=0)
    for step in (10, 20, 30):
        append_event(tmp_path, "step", step=step, loss=3.0)
    append_event(tmp_path, "incident", step=25, what="out_of_memory", sentence="smaller rows")
    append_event(tmp_path, "start", step=20)
    append_event(tmp_path, "step", step=30, loss=2.0)
    events = read_events(tmp_path)
    assert [(e["step"], e["loss"]) for e in events if e["kind"] == "step"] == [
        (10, 3.0),
        (20, 3.0),
        (30, 2.0),
    ]
    assert [e["what"] for e in events if e["kind"] == "incident"] == ["out_of_memory"]


def test_a_return_to_no_step_is_none(tmp_path):
    append_event(tmp_path, "step", step=10, loss=3.0)
    for back_to in (None, "3", 2.5, -1, 10**13):
        append_event(tmp_path, "incident", step=12, what="went_back", back_to=back_to)
    assert [event["step"] for event in read_events(tmp_path) if event["kind"] == "step"] == [10]
    append_event(tmp_path, "incident", step=12, what="went_back", back_to=3)
    assert [event["step"] for event in read_events(tmp_path) if event["kind"] == "step"] == []


def test_a_torn_line_costs_itself_only(tmp_path):
    append_event(tmp_path, "step", step=10, loss=3.0)
    with (tmp_path / HISTORY_FILE).open("ab") as file:
        file.write(b'{"kind": "step", "st')
    append_event(tmp_path, "step", step=20, loss=2.0)
    with (tmp_path / HISTORY_FILE).open("ab") as file:
        file.write(b'\xff\xfe\n[1, 2]\n{"kind": "step", "step": "x"}\n{"kind": "other"}\n')
        file.write(b'{"kind": "step"}\n{"kind": ["step"], "step": 3}\n' + b"[" * 100_000 + b"\n")
        file.write(b'{"kind": "step", "step": 1' + b"0" * 5_000 + b"}\n")
        file.write(b'{"kind": "step", "step": -1}\n{"kind": "step", "step": 10000000000000}\n')
    assert [event["step"] for event in read_events(tmp_path)] == [10, 20]


def test_a_start_that_does_not_say_where_begins_at_the_first_step(tmp_path):
    append_event(tmp_path, "step", step=10, loss=3.0)
    append_event(tmp_path, "start")
    assert [event["kind"] for event in read_events(tmp_path)] == ["start"]
    assert [event["kind"] for event in read_history(tmp_path)] == ["step", "start"]


def test_the_run_that_was_written_last_is_the_first(tmp_path):
    for age, name in enumerate(("new", "older", "oldest")):
        (tmp_path / name).mkdir()
        append_event(tmp_path / name, "start", step=0)
        os.utime(tmp_path / name / HISTORY_FILE, (1e9 - age, 1e9 - age))
    (tmp_path / "tensorboard").mkdir()
    assert [folder.name for folder in runs(tmp_path)] == ["new", "older", "oldest"]
    assert runs(tmp_path / "nowhere") == []


def test_ten_thousand_starts_are_read_soon(tmp_path):
    events = [{"kind": kind, "step": n} for n in range(10_000) for kind in ("start", "step")]
    began = time.perf_counter()
    assert len(without_repeated_steps(events)) == 20_000
    assert time.perf_counter() - began < 2  # 0.02 s; the rest is for a busy machine


def test_no_history_and_no_room_are_no_errors(tmp_path):
    assert read_events(tmp_path / "nowhere") == []
    append_event(tmp_path / "nowhere", "start", step=0)
