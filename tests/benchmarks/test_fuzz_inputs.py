"""Broken inputs, a few of them here and ten thousand with `python benchmarks/fuzz_inputs.py`."""

import pytest

import fuzz_inputs


@pytest.mark.parametrize("kind", ["settings", "data"])
@pytest.mark.parametrize(
    "count", [120, pytest.param(1_000, marks=[pytest.mark.slow, pytest.mark.alone])]
)
def test_no_broken_input_ends_in_a_traceback(tmp_path, kind, count):
    one = fuzz_inputs.one_settings_file if kind == "settings" else fuzz_inputs.TrainingDataLines()
    outcome = fuzz_inputs.fuzz(one, count, seed=count, folder=tmp_path)
    assert outcome.failures == []
    assert min(outcome.taken, outcome.refused) > count / 20
    assert outcome.slowest_seconds < 5
    assert outcome.most_bytes < 200e6
    assert outcome.longest_error < 10_000
