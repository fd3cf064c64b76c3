"""What is held against each other: the plan, and a run with the same settings."""

import time
from pathlib import Path

import pytest

import prediction
from discord_lora.console import make_console


def test_a_run_does_not_read_the_settings_of_whoever_measures(tmp_path, monkeypatch):
    words = []

    def run(options):
        words.extend(options)
        time.sleep(0.1)
        return 1.0, 1.0

    def plan(_settings, *, calibrate):
        time.sleep(0.1)
        return prediction.Predicted(1.0, 1.0)

    monkeypatch.setattr(prediction, "EVERY_SECONDS", 0.001)
    monkeypatch.setattr(prediction, "in_a_process", plan)
    monkeypatch.setattr(prediction, "run", run)
    prediction.compare(prediction.CASES[0], tmp_path / "data.jsonl", tmp_path / "1", 5)
    own = Path(words[words.index("--env-file") + 1])
    assert own.read_text() == ""


@pytest.mark.parametrize(
    ("seconds", "peaks", "code", "said"),
    [
        ([1.09] * 7 + [1.5], [0.94] * 8, 0, "time within 10 % in 7 of 8, memory within 7 % in 8"),
        ([0.91] * 6 + [0.8] * 2, [1.0] * 8, 1, "time within 10 % in 6 of 8"),
        ([1.0] * 8, [1.0] * 7 + [1.08], 1, "memory within 7 % in 7 of 8"),
        ([1.0, 0.8], [1.0] * 2, 1, "time within 10 % in 1 of 2"),
    ],
)
def test_plans_that_do_not_come_true_are_counted(seconds, peaks, code, said, capsys):
    far_off = prediction.Predicted(9.0, 9.0)
    done = [
        prediction.Compared(
            prediction.CASES[0], far_off, prediction.Predicted(100 * time, 1e9 * peak), 100, 1e9,
            others=0, slower=1,
        )
        for time, peak in zip(seconds, peaks, strict=True)
    ]  # fmt: skip
    assert prediction.verdict(done, make_console()) == code
    assert said in " ".join(capsys.readouterr().out.split())
