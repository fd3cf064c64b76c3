"""What the report's benchmark measures on: as many messages as it says, none there twice."""

import json

import report_speed
from discord_lora.messages.training_data import read_training_data
from run_scripts import run_here, write_chat


def test_copies_have_ids_and_replies_of_their_own(tmp_path):
    path = write_chat(tmp_path / "chat.jsonl", 10, reply_to="m3")
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"".join(report_speed.repeated(lines, 25, different=False)))
    messages = read_training_data(path).messages
    assert len(messages) == len({message.id for message in messages}) == 25
    assert messages[15].reply_to == messages[13].id
    assert messages[10].timestamp > messages[9].timestamp
    assert messages[10].content == messages[0].content


def test_different_copies_repeat_no_text(tmp_path):
    lines = write_chat(tmp_path / "chat.jsonl", 3).read_bytes().splitlines()
    rows = [json.loads(line) for line in report_speed.repeated(lines, 9, different=True)]
    assert rows[0]["content"] not in {rows[3]["content"], rows[6]["content"]}
    assert rows[3]["content"] != rows[6]["content"]


def test_the_table_has_a_line_a_run(tmp_path, monkeypatch, capsys):
    path = write_chat(tmp_path / "chat.jsonl", 10)
    run = report_speed.Run("no tokens", 20, target=(3.0, None))
    found = report_speed.measure(run, path.read_bytes().splitlines(), tmp_path, "sample")
    assert found.seconds > 0
    assert found.peak_bytes > 10**7
    assert run_here(monkeypatch, "benchmarks/report_speed.py", tmp_path / "gone") == 2
    assert "There is no file" in capsys.readouterr().err
