"""What timing a run's micro-batches makes of the memory that it saw."""

from dataclasses import dataclass, field, replace

import pytest
import torch

from discord_lora.conversations.packing import collate, pack
from discord_lora.finetuning import calibration
from discord_lora.finetuning.calibration import (
    BEFORE_TIMING,
    LONG_ENOUGH,
    QUANTILES,
    calibrate,
    chosen_rows,
    most_targets,
    rows_of,
    share_timed,
    usual,
)
from discord_lora.hardware import Hardware
from discord_lora.settings import load_settings
from finetuning_state import make_state

LOADING = 9 * 10**9
WHILE_TIMED = 5_100_000_000


@pytest.fixture(autouse=True)
def _only_five_rounds(monkeypatch):
    monkeypatch.setattr(calibration, "LONG_ENOUGH", 1e-9)


@dataclass(frozen=True)
class Computer(Hardware):
    """Whose memory is what a test says, each time that somebody looks."""

    peaks: list[int] = field(default_factory=lambda: [LOADING, WHILE_TIMED])
    forgotten: list[int] = field(default_factory=list)

    def forget_peak(self):
        self.forgotten.append(len(self.peaks))

    def peak_bytes(self):
        return self.peaks.pop(0)


def tokens(row):
    return sum(map(len, row))


def test_the_peak_of_loading_is_not_taken_for_what_a_row_needs(tmp_path):
    state = make_state()
    computer = Computer(torch.device("cpu"), "CPU", torch.float32, "no", 16 * 10**9)
    settings = load_settings({"base_model": "sample", "logs_dir": tmp_path}, env_file=None)
    timing = calibrate(state, settings, computer)
    longest = max(sum(map(len, step)) for step in state.plan.walk())
    assert timing.loading_bytes == LOADING
    trained = timing.base_bytes + timing.activations.needed(longest, timing.checkpointed)
    assert trained == pytest.approx(WHILE_TIMED)
    assert timing.peak_bytes(longest) == LOADING  # the run will load the model, too
    assert computer.forgotten == [1], "between the two looks"
    assert timing.time.forward > 0


def test_the_peak_belongs_to_the_row_that_it_was_seen_at(tmp_path, monkeypatch):
    """The run may hold a larger one, behind the steps that are looked at."""
    monkeypatch.setattr(calibration, "STEPS_LOOKED_AT", 1)
    for seed in range(20):
        state = make_state(seed=seed)
        first, *others = [sum(map(len, step)) for step in state.plan.walk()]
        if first < max(others):
            break
    computer = Computer(torch.device("cpu"), "CPU", torch.float32, "no", 16 * 10**9)
    settings = load_settings({"base_model": "sample", "logs_dir": tmp_path}, env_file=None)
    timing = calibrate(state, settings, computer)
    needed = timing.activations.needed
    assert timing.base_bytes + needed(first, timing.checkpointed) == pytest.approx(WHILE_TIMED)
    assert needed(max(others), 0) > needed(first, 0)


def test_what_memory_grows_by_passes_before_four_rows_take_turns(tmp_path, monkeypatch):
    """The first rows of the run, in its order, and the two for which there are most logits."""
    monkeypatch.setattr(calibration, "FIRST_ROWS", 3)
    lengths, shares = [], []

    def noted(row):
        lengths.append(tokens(row))
        return collate(row)

    @dataclass(frozen=True)
    class Watched(Computer):
        def forget_peak(self):
            lengths.append("forgotten")

    monkeypatch.setattr(calibration, "collate", noted)
    state = make_state()
    computer = Watched(torch.device("cpu"), "CPU", torch.float32, "no", 16 * 10**9)
    settings = load_settings({"base_model": "sample", "logs_dir": tmp_path}, env_file=None)
    calibrate(state, settings, computer, shares.append)
    rows = list(rows_of(state, state.plan.walk()))
    held_out, most = most_targets(rows_of(state, [state.validation])), most_targets(rows)
    assert len(rows) > 3
    passed = [tokens(row) for row in (most, *rows[:3], *chosen_rows(rows))]
    assert lengths[: 2 + len(passed)] == [tokens(held_out), "forgotten", *passed]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == 1


def test_the_row_of_most_targets_is_found():
    state = make_state()
    rows = list(rows_of(state, state.plan.walk()))
    targets = [len(collate(row).labels) for row in rows]
    assert min(targets) < max(targets)
    assert len(collate(most_targets(rows)).labels) == max(targets)


def test_without_held_out_messages_calibrating_goes_on(tmp_path):
    state = replace(make_state(), validation=[])
    settings = load_settings({"base_model": "sample", "logs_dir": tmp_path}, env_file=None)
    computer = Computer(torch.device("cpu"), "CPU", torch.float32, "no", 16 * 10**9)
    assert calibrate(state, settings, computer).time.source == "calibrated"


def test_rows_are_timed_by_rising_length():
    state = replace(make_state(max_targets=1), token_budget=100)
    rows = [row for step in state.plan.walk() for row in pack(step, state.token_budget)]
    lengths, chosen = list(map(tokens, rows)), list(map(tokens, chosen_rows(rows)))
    assert chosen == sorted(chosen)
    assert (chosen[0], chosen[-1]) == (min(lengths), max(lengths))


def test_two_paces_are_averaged_and_a_hiccup_is_none_of_them():
    assert usual([1.1, 1.5, 1.1, 1.5, 1.1]) == pytest.approx((1.1 + 1.1 + 1.5) / 3)
    assert usual([1.1, 22.7, 1.5, 1.1, 1.5]) == pytest.approx((1.1 + 1.5 + 1.5) / 3)


def test_timing_takes_two_minutes_unless_a_round_is_long(monkeypatch):
    monkeypatch.setattr(calibration, "LONG_ENOUGH", LONG_ENOUGH)
    assert share_timed(5, LONG_ENOUGH) == 1
    assert share_timed(4, 3 * LONG_ENOUGH) == 0.8  # a slow machine: still five rounds
    assert share_timed(1_000, LONG_ENOUGH / 2) == 0.5  # a quick one


def test_a_slow_machine_ends_with_the_round(tmp_path):
    """Rows of half a minute each: five rounds of them, whatever the clock says."""
    shares = []

    @dataclass(frozen=True)
    class Slow(Hardware):
        times: list[int] = field(default_factory=list)

        def now(self):
            self.times.append(1)
            return 30.0 * len(self.times)

    settings = load_settings({"base_model": "sample", "logs_dir": tmp_path}, env_file=None)
    slow = Slow(torch.device("cpu"), "CPU", torch.float32, "no", 10**10)
    calibrate(make_state(), settings, slow, shares.append)
    timed = [share for share in shares if share > BEFORE_TIMING]
    assert len(timed) == 5 * len(QUANTILES)
    assert shares == sorted(shares)
    assert shares[-1] == 1
