"""What is held against each other: the plan, and a run with the same settings."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

import prediction
from discord_lora.console import UserError, make_console


def test_a_run_stands_between_two_calibrations_that_know_nothing_of_it(tmp_path, monkeypatch):
    """Nor does it read the settings of whoever measures."""
    calls = []

    def plan(settings, *, calibrate):
        calls.append((calibrate, [settings["logs_dir"], settings["output_dir"]]))
        return prediction.Predicted({1: 90.0, 2: 100.0}.get(len(calls), 120.0), 3e9)

    def run(options):
        calls.append(options)
        own = Path(options[options.index("--env-file") + 1])
        assert own.read_text() == ""
        return 110.0, 2e9

    monkeypatch.setattr(prediction, "in_a_process", plan)
    monkeypatch.setattr(prediction, "run", run)
    done = prediction.compare(prediction.CASES[0], tmp_path / "data.jsonl", tmp_path, 5)
    (formulas, _), (before, folders), words, (after, others) = calls
    assert (formulas, before, after) == (False, True, True)
    assert words[words.index("--logs-dir") + 1] == str(folders[0])
    assert not set(folders) & set(others)
    assert (done.modelled.seconds, done.calibrated.seconds, done.seconds) == (90, 100, 110)
    assert done.after == 1.2
    assert not done.is_steady


def compared(case, *, seconds=1.0, peak=1.0, after=1.0, modelled=1.5):
    """A run for which the plans said so many times what it took."""
    formulas, said = (prediction.Predicted(100 * it, 1e9 * peak) for it in (modelled, seconds))
    return prediction.Compared(case, formulas, said, 100, 1e9, others=0, after=after)


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
    done = [compared(first, seconds=1.3, peak=1.08, after=0.8)]
    assert not prediction.is_settled(first, done)
    done.append(compared(other))
    done.append(compared(first, seconds=1.2, after=1.08))
    assert not prediction.is_settled(first, done)
    steady = [*done, compared(first, seconds=1.05, after=1.06)]
    assert prediction.is_settled(first, steady)
    assert prediction.is_settled(first, [*done, compared(first, after=0.5)])  # often enough
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


@pytest.mark.parametrize("text", ['[{"slower": 1.0}]', "[{", "7"])
def test_figures_of_another_version_are_refused_before_hours_are_spent(tmp_path, text):
    (tmp_path / "done.json").write_text(text)
    with pytest.raises(UserError, match="name another file"):
        prediction.read_done(tmp_path / "done.json")


def test_a_stopped_round_goes_on_with_what_it_has(tmp_path):
    done = [compared(case, after=1.02) for case in prediction.CASES[:2]]
    (tmp_path / "done.json").write_text(json.dumps([asdict(one) for one in done]))
    assert prediction.read_done(tmp_path / "done.json") == done
