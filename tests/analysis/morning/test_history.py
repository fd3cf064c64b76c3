"""What a night leaves behind is readable, whatever tore it."""

from discord_lora.analysis.morning.history import HISTORY_FILE, append_event, read_events


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


def test_a_torn_line_costs_itself_only(tmp_path):
    append_event(tmp_path, "step", step=10, loss=3.0)
    with (tmp_path / HISTORY_FILE).open("ab") as file:
        file.write(b'{"kind": "step", "st')
    append_event(tmp_path, "step", step=20, loss=2.0)
    with (tmp_path / HISTORY_FILE).open("ab") as file:
        file.write(b'\xff\xfe\n[1, 2]\n{"kind": "step", "step": "x"}\n{"kind": "other"}\n')
    assert [event["step"] for event in read_events(tmp_path)] == [10, 20]


def test_no_history_and_no_room_are_no_errors(tmp_path):
    assert read_events(tmp_path / "nowhere") == []
    append_event(tmp_path / "nowhere", "start", step=0)
