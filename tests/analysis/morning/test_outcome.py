"""Whether a run without an end still lives: its process says so, or its silence."""

import os
import platform
import subprocess
import sys
import time

import pytest

from discord_lora.analysis.morning.history import append_event
from discord_lora.analysis.morning.morning_report import read_report
from discord_lora.analysis.morning.outcome import PATIENCE_SECONDS
from morning_events import report_of, start, steps


def a_process(alive):
    """Its number; of one that is over, or of this one."""
    if alive:
        return os.getpid()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


@pytest.mark.parametrize(("alive", "state"), [(True, "running"), (False, "silent")])
def test_whether_the_process_lives_decides_at_once(tmp_path, alive, state):
    append_event(tmp_path, "start", step=0, process=a_process(alive))
    append_event(tmp_path, "step", step=3, loss=2.0)
    report = read_report(tmp_path)
    assert report.state == state
    append_event(tmp_path, "end", outcome="finished")
    assert read_report(tmp_path).state == "finished"


@pytest.mark.parametrize(("alive", "state"), [(True, "starting"), (False, "silent")])
def test_a_process_that_ended_while_it_loaded_is_known(tmp_path, alive, state):
    append_event(tmp_path, "plan", run="ada", process=a_process(alive))
    assert read_report(tmp_path).state == state


def test_a_process_that_lives_and_says_nothing_is_said_to_be_silent(tmp_path):
    append_event(tmp_path, "start", step=0)
    append_event(tmp_path, "step", step=3, loss=2.0)
    report = read_report(tmp_path, now=time.time() + 2 * PATIENCE_SECONDS)
    assert report.state == "running"
    assert report.sentence.startswith("Running, but silent since ")


def test_another_process_that_got_the_same_number_does_not_count():
    here = platform.node()
    long_ago = report_of(start(5, process=os.getpid(), computer=here), *steps(1, 3, 10))
    assert long_ago.state == "silent"


@pytest.mark.parametrize(
    ("later", "state"), [(0.5 * PATIENCE_SECONDS, "running"), (2 * PATIENCE_SECONDS, "silent")]
)
def test_of_another_computer_only_silence_is_known(later, state):
    events = [start(5, process=1, computer="another one"), *steps(1, 3, 10)]
    assert report_of(*events, now=16 + later).state == state
