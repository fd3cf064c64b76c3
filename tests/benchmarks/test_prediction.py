"""What is held against each other: the plan, and a run with the same settings."""

import time
from pathlib import Path

import pytest

import machine_pace
import prediction
from discord_lora.console import UserError, make_console


def test_a_run_does_not_read_the_settings_of_whoever_measures(tmp_path, monkeypatch):
    words = []

    def run(options):
        words.extend(options)
        time.sleep(0.1)
        return 1.0, 1.0

    def plan(_settings, *, calibrate):
        time.sleep(0.1)
        return prediction.Predicted(1.0, 1.0)

    monkeypatch.setattr(machine_pace, "EVERY_SECONDS", 0.001)
    monkeypatch.setattr(prediction, "in_a_process", plan)
    monkeypatch.setattr(prediction, "run", run)
    prediction.compare(prediction.CASES[0], tmp_path / "data.jsonl", tmp_path, 5)
    own = Path(words[words.index("--env-file") + 1])
    assert own.read_text() == ""


def compared(case, *, seconds=1.0, peak=1.0, slower=1.0, modelled=1.5):
    """A run for which the plans said so many times what it took."""
    formulas, said = (prediction.Predicted(100 * it, 1e9 * peak) for it in (modelled, seconds))
    return prediction.Compared(case, formulas, said, 100, 1e9, others=0, slower=slower)


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
    done = [
        compared(case, seconds=time, peak=peak)
        for case, time, peak in zip(prediction.CASES, seconds, peaks, strict=False)
    ]
    assert prediction.verdict(done, make_console()) == code
    assert said in " ".join(capsys.readouterr().out.split())


def test_a_case_is_run_again_where_the_machine_changed_its_pace(capsys):
    first, other = prediction.CASES[:2]
    done = [compared(first, seconds=1.3, peak=1.08, slower=0.8)]
    assert not prediction.is_settled(first, done)
    done.append(compared(other))
    done.append(compared(first, seconds=1.2, slower=1.08))
    assert not prediction.is_settled(first, done)
    steady = [*done, compared(first, seconds=1.05, slower=1.06)]
    assert prediction.is_settled(first, steady)
    assert prediction.is_settled(first, [*done, compared(first, slower=0.5)])  # often enough
    assert prediction.verdict(steady, make_console()) == 1  # the memory of the first counts
    said = " ".join(capsys.readouterr().out.split())
    assert "time within 10 % in 2 of 2, memory within 7 % in 3 of 4" in said
    assert "in 2 of 4 runs the machine changed its pace" in said


@pytest.mark.parametrize(("modelled", "code"), [(1.5, 0), (1.52, 1), (0.67, 0), (0.66, 1)])
def test_a_plan_from_formulas_alone_may_be_off_by_a_factor(modelled, code):
    done = [compared(case) for case in prediction.CASES]
    done[3] = compared(prediction.CASES[3], modelled=modelled)
    assert prediction.verdict(done, make_console()) == code


def test_a_number_that_is_no_case_is_refused(monkeypatch):
    monkeypatch.setattr("sys.argv", ["prediction.py", "--only", "1,9"])
    with pytest.raises(UserError, match=r"no case '9', only 1, 2"):
        prediction.main()


def test_the_pace_is_compared_only_where_it_was_seen(monkeypatch):
    before, now, nothing = machine_pace.Pace(), machine_pace.Pace(), machine_pace.Pace()
    before.seconds, now.seconds = [1.0, 3.0], [3.0, 3.0]
    monkeypatch.setattr(machine_pace.sys, "platform", "linux")
    assert now.times_slower_than(before) == 1.5
    assert now.times_slower_than(nothing) == nothing.times_slower_than(now) == 1
    monkeypatch.setattr(machine_pace.sys, "platform", "win32")
    assert now.times_slower_than(before) == 1
