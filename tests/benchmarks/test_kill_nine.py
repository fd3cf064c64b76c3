"""A training that is killed again and again, for real; benchmarks/kill_nine.py does it 50 times."""

import os
import random
import time

import pytest
import torch

from discord_lora.adapter_folder import WEIGHTS_FILE
from discord_lora.analysis.morning.history import append_event
from discord_lora.finetuning.checkpoints import Checkpoint, save_checkpoint
from kill_nine import KILLS, KINDS, Torment, moment


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_adapter(tmp_path):
    torment = Torment(tmp_path, 3, random.Random(5))
    torment.run_to_the_end("calm")
    while torment.done < 3:
        torment.kill_once()
    torment.run_to_the_end("killed")
    said = []
    assert torment.verdict(said.append) == 0
    assert "went on after steps 0, " in " ".join(said)


# What counts as a fault ------------------------------------------------------------------------


@pytest.fixture
def torment(tmp_path):
    """Two runs that ended with the same adapter, and the killed one's checkpoint of step 6."""
    torment = Torment(tmp_path, 3, random.Random(5))
    for name in ("calm", "killed"):
        run = tmp_path / name / "adapters" / "run"
        run.mkdir(parents=True)
        (run / WEIGHTS_FILE).write_bytes(b"weights")
    (tmp_path / "killed" / "logs" / "run").mkdir(parents=True)
    made = Checkpoint(6, {"w": torch.zeros(2)}, {}, {}, {}, {})
    save_checkpoint(torment.checkpoints, made, keep=2)
    torment.look_at_checkpoints()
    return torment


def faults(torment):
    said = []
    code = torment.verdict(said.append)
    found = [line for line in said if line.startswith("NOT as it has to be")]
    assert code == bool(found)
    return " ".join(found)


def note(torment, kind, **values):
    append_event(torment.folder / "killed" / "logs" / "run", kind, **values)


def test_going_on_from_the_newest_is_no_fault(torment):
    note(torment, "start", step=6)
    torment.look_at_start(0)
    assert faults(torment) == ""


def test_each_fault_is_named_and_fails(torment):
    note(torment, "start", step=3)
    torment.look_at_start(0)
    assert "went on after step 3, and step 6 was there" in faults(torment)
    torment.faults.clear()
    (torment.checkpoints / "step-00000006" / "state.pt").write_bytes(b"")
    torment.look_at_checkpoints()
    assert "left step 6 torn: state.pt is damaged" in faults(torment)
    torment.faults.clear()
    note(torment, "incident", step=3, what="damaged_checkpoint", sentence="passed over")
    assert "passed over as damaged" in faults(torment)


def test_with_all_kills_done_each_kind_of_moment_has_to_have_been_met(torment):
    torment.done = KILLS
    torment.moments.update(kind for kind in KINDS if kind != "measuring")
    assert faults(torment).endswith("no kill when measuring")


def test_a_moment_is_told_by_the_lines_and_files_of_this_start(torment):
    def lines(*kinds):
        return [{"kind": kind, "step": 7, "time": time.time()} for kind in kinds]

    folder = torment.checkpoints
    assert moment(folder, []) == moment(folder, lines("start", "plan")) == "starting"
    assert moment(folder, lines("start", "step")) == "measuring"
    assert moment(folder, [*lines("start"), {"kind": "step", "step": 8}]) == "in a step"
    left = folder / "step-00000009.partial"
    left.mkdir()
    os.utime(left, (1, 1))
    assert moment(folder, lines("start", "saved")) == "answering", "an earlier kill left it"
    os.utime(left)
    assert moment(folder, [{"kind": "start", "time": 2.0}]) == "saving"
