"""What was timed before: found again, and what it decides in the plan."""

import json
from dataclasses import replace

import pytest

from discord_lora.analysis.plan.timings import add_timing, newest_timing
from discord_lora.settings import load_settings
from planned_night import SETTINGS, night, timing


def test_the_newest_timing_of_the_same_machine_and_settings_is_found(tmp_path):
    assert newest_timing(tmp_path, "CPU x 2", SETTINGS) is None
    other = load_settings({"quantization": "none"}, env_file=None)
    for made in (
        timing(save_seconds=1.0),
        timing(save_seconds=2.0),
        timing("another"),
        timing(settings=other),
    ):
        add_timing(tmp_path, made)
    with (tmp_path / "timings.jsonl").open("a") as file:
        file.write('{"torn')
    found = newest_timing(tmp_path, "CPU x 2", SETTINGS)
    assert found.save_seconds == 2.0
    assert found.time == timing().time
    assert found.activations == timing().activations


def test_more_checkpointing_than_was_timed_takes_longer():
    timed = timing(checkpointed=0)
    settings = load_settings({"gradient_checkpointing": "true"}, env_file=None)
    plan = night(16_000, timing=timed, settings=settings)
    assert plan.prices.time.token == pytest.approx(1.5 * timed.time.token)
    assert plan.peak_source == "modelled"


def test_checkpointing_changes_neither_the_optimizer_nor_a_pass_forward():
    timed = timing(time=replace(timing().time, forward=0.1))
    settings = load_settings({"gradient_checkpointing": "true"}, env_file=None)
    time = night(16_000, timing=timed, settings=settings).prices.time
    assert (time.step, time.forward) == (timed.time.step, 0.1)
    assert time.micro_batch == pytest.approx(1.5 * timed.time.micro_batch)
    assert time.source == "calibrated"


def test_the_peak_may_be_that_of_loading():
    timed = timing(loading_bytes=6e9)
    assert timed.peak_bytes(320) == 6e9
    assert timed.peak_bytes(100_000) == 5e9 + timed.activations.needed(100_000, 0) > 6e9


def test_a_timing_of_an_earlier_version_is_still_of_use(tmp_path):
    add_timing(tmp_path, timing())
    file = tmp_path / "timings.jsonl"
    plain = json.loads(file.read_text())
    del plain["time"]["forward"], plain["loading_bytes"]
    file.write_text(json.dumps(plain) + "\n")
    found = newest_timing(tmp_path, "CPU x 2", SETTINGS)
    assert (found.time, found.loading_bytes) == (timing().time, 0.0)


def test_what_was_timed_here_decides_over_the_model():
    plan = night(16_000, timing=timing())
    assert plan.prices.source == "calibrated"
    assert plan.prices.start_up_seconds == 12
    assert plan.peak_bytes == 5e9 + timing().activations.needed(320, 0)
    assert night(16_000).peak_source == "modelled"
