"""Short nights are held against the clock on the wall, in which the plan was asked for."""

import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

import deadlines
from discord_lora.env_file import write_env
from discord_lora.settings import load_settings

NOON = datetime(2026, 3, 2, 12, 0)


@pytest.mark.parametrize(
    ("now", "minutes", "deadline"),
    [
        (NOON, 2, NOON + timedelta(minutes=2)),
        (NOON + timedelta(microseconds=1), 2, NOON + timedelta(minutes=3)),
        (NOON + timedelta(seconds=59), 2.5, NOON + timedelta(minutes=4)),
        (NOON.replace(hour=23, minute=58), 2, NOON.replace(day=3, hour=0)),
    ],
)
def test_a_deadline_is_the_next_whole_minute_far_enough_away(now, minutes, deadline):
    assert deadlines.deadline_after(now, minutes) == deadline


@pytest.mark.parametrize(
    ("shares", "code", "said"), [((0.85, 0.99), 0, "2 of 2"), ((0.75, 0.9), 1, "1 of 2"),
                                 ((0.9, 1.01), 1, "1 of 2")],
)  # fmt: skip
def test_each_night_has_to_fill_the_time_until_its_deadline(
    shares, code, said, tmp_path, monkeypatch, capsys
):
    asked, coming = [], iter(shares)

    def analyze(options):
        asked.append(options)
        env = Path(options[options.index("--env-file") + 1])
        assert load_settings(env_file=env).output_dir.is_absolute()
        write_env(env, {"MAX_STEPS": "7"})

    def run(options):
        assert "--ready-by" not in options
        clock = asked[-1][asked[-1].index("--ready-by") + 1]
        now = datetime.now()
        deadline = datetime.combine(now.date(), datetime.strptime(clock, "%H:%M").time())
        deadline += timedelta(days=deadline < now)
        return next(coming) * (deadline - now).total_seconds(), 0.0

    monkeypatch.setattr(deadlines, "data_files", lambda *_: {"all": tmp_path / "all.jsonl"})
    monkeypatch.setattr(deadlines, "analyze", analyze)
    monkeypatch.setattr(deadlines, "run", run)
    monkeypatch.setattr(sys, "argv", ["deadlines.py", "--minutes", "30,60"])
    assert deadlines.main() == code
    assert f"{said} ended between 80 and 100 % of the time allowed" in capsys.readouterr().out
    assert ["--calibrate" in options for options in asked] == [True, False, False]
