"""What is in the way of a save for a moment does not cost the checkpoint, and never the night."""

import errno
import os
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from discord_lora.console import Interrupted, UserError
from discord_lora.finetuning import checkpoints, disk_room, keeping, training_state
from discord_lora.finetuning.checkpoints import saved_steps
from discord_lora.finetuning.keeping import Keeper
from discord_lora.finetuning.manifest import damage
from finetuning_state import make_state


class Log:
    """Of a run that nobody watches."""

    def __init__(self):
        self.saves = []
        self.seconds = []
        self.incidents = []

    @contextmanager
    def aside(self, _work):
        yield

    def saved(self, step, seconds, _path):
        self.saves.append(step)
        self.seconds.append(seconds)

    def incident(self, _what, sentence):
        self.incidents.append(sentence)

    def beat(self):
        pass

    def say(self, _sentence):
        pass

    def interrupted(self, sentence):
        return Interrupted(sentence)


@pytest.fixture
def pauses(monkeypatch):
    waited = []
    monkeypatch.setattr(keeping.time, "sleep", waited.append)
    return waited


@pytest.fixture
def keeper(tmp_path):
    folder = SimpleNamespace(checkpoints=tmp_path / "checkpoints", logs=tmp_path, path=tmp_path)
    stop = SimpleNamespace(made=lambda: False, in_a_hurry=False)
    return Keeper(make_state(), folder, Log(), stop, checkpoints_kept=2)


class Drive:
    """Does not answer so many times."""

    def __init__(self, failures, monkeypatch):
        self.left = failures
        self.fsync = os.fsync
        monkeypatch.setattr(disk_room.os, "fsync", self)

    def __call__(self, descriptor):
        self.left -= 1
        if self.left >= 0:
            raise OSError(errno.EIO, "planted")
        self.fsync(descriptor)


def test_a_drive_that_does_not_answer_at_once_gets_its_checkpoint(keeper, pauses, monkeypatch):
    Drive(2, monkeypatch)
    assert keeper.save(5, {}, 0) is None
    assert keeper.log.saves == saved_steps(keeper.folder.checkpoints) == [5]
    assert pauses == list(keeping.PAUSES)
    assert not damage(keeper.folder.checkpoints / "step-00000005")


def test_a_drive_that_is_gone_is_said_and_costs_no_other_checkpoint(keeper, pauses, monkeypatch):
    assert keeper.save(5, {}, 0) is None
    Drive(99, monkeypatch)
    assert "Cannot save a checkpoint" in str(keeper.save(10, {}, 0))
    assert keeper.log.saves == saved_steps(keeper.folder.checkpoints) == [5]


def test_in_a_hurry_nothing_is_waited_for(keeper, pauses, monkeypatch):
    keeper.stop.in_a_hurry = True
    Drive(1, monkeypatch)
    assert keeper.save(5, {}, 0) is None
    assert sum(pauses) == 0


def test_memory_that_is_short_for_a_moment_costs_no_checkpoint(keeper, pauses, monkeypatch):
    whole, failures = training_state.whole, [MemoryError(), torch.OutOfMemoryError("planted")]

    def fail_at_first(tensor):
        if failures:
            raise failures.pop()
        return whole(tensor)

    monkeypatch.setattr(training_state, "whole", fail_at_first)
    assert keeper.save(5, {}, 0) is None and keeper.log.saves == [5]

    def out_of_memory(*_arguments):
        raise MemoryError

    monkeypatch.setattr(checkpoints, "safetensors_bytes", out_of_memory)
    assert "MemoryError" in str(keeper.save(10, {}, 0))


def test_waiting_for_room_is_not_told_as_saving(keeper, monkeypatch):
    """Else the morning reads of one checkpoint that took five hours."""
    monkeypatch.setattr(disk_room, "LOOK_SECONDS", 1.5)
    save_checkpoint = keeping.save_checkpoint

    def save_when_there_is_room(folder, checkpoint, *, no_room, **options):
        no_room("The disk is full.")
        return save_checkpoint(folder, checkpoint, no_room=no_room, **options)

    monkeypatch.setattr(keeping, "save_checkpoint", save_when_there_is_room)
    assert keeper.save(5, {}, 0) is None
    assert keeper.log.incidents[0] == "The disk is full." and len(keeper.log.incidents) == 2
    assert keeper.log.seconds[0] < 1.5


def test_an_adapter_is_tried_again_as_well(keeper, pauses, monkeypatch):
    tries = []

    def fail_once(*_arguments, **_options):
        tries.append(1)
        if len(tries) == 1:
            raise UserError("planted")

    monkeypatch.setattr(keeping, "save_adapter", fail_once)
    keeper.write_adapter({}, None, 0)
    assert len(tries) == 2
