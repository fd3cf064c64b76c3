"""What is held against each other: the plan, and a run with the same settings."""

import time
from pathlib import Path

import prediction


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
