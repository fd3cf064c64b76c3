"""A disk that is full, cannot be written or listed, or keeps something else."""

import errno
import os
import sys
from pathlib import Path

import pytest

from discord_lora.console import Interrupted, UserError
from discord_lora.finetuning import checkpoints, disk_room
from discord_lora.finetuning.checkpoints import drop_oldest, load_newest
from discord_lora.finetuning.manifest import damage
from made_checkpoints import (
    NAMES,
    checkpoint,
    save_checkpoint,
    steps,
)


class SmallDisk:
    """Says at the flush that the disk is full while more than `room` checkpoints are on it."""

    def __init__(self, folder, room, monkeypatch):
        self.folder = folder
        self.room = room
        self.fsync = os.fsync
        monkeypatch.setattr(disk_room.os, "fsync", self)

    def __call__(self, descriptor):
        if len([p for p in self.folder.iterdir() if p.suffix != ".removed"]) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.fsync(descriptor)


def test_a_full_disk_costs_the_oldest_but_never_the_newest_or_the_best(tmp_path, monkeypatch):
    for step in (5, 10, 15, 20):
        save_checkpoint(tmp_path, checkpoint(step), keep=4)
    SmallDisk(tmp_path, 3, monkeypatch)
    save_checkpoint(tmp_path, checkpoint(25), keep=4, best_step=5)
    assert steps(tmp_path) == [5, 20, 25]
    assert drop_oldest(tmp_path, best_step=20) is True
    assert drop_oldest(tmp_path, best_step=20) is False
    assert steps(tmp_path) == [20, 25]


def test_a_damaged_one_and_what_was_given_up_go_first_for_room(tmp_path, monkeypatch):
    for step in (5, 10, 90):
        save_checkpoint(tmp_path, checkpoint(step), keep=3)
    (tmp_path / "step-00000007.damaged").mkdir()
    SmallDisk(tmp_path, 3, monkeypatch)
    save_checkpoint(tmp_path, checkpoint(12), keep=3)
    assert steps(tmp_path) == [5, 10, 12]
    assert not (tmp_path / "step-00000007.damaged").exists()


def test_with_nothing_to_spare_it_waits_until_there_is_room(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, checkpoint(5))
    disk = SmallDisk(tmp_path, 1, monkeypatch)
    sentences = []

    def no_room(sentence):
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
        sentences.append(sentence)
        if len(sentences) == 3:
            disk.room = 2

    save_checkpoint(tmp_path, checkpoint(10), no_room=no_room)
    assert steps(tmp_path) == [5, 10] and damage(tmp_path / "step-00000010") == ""
    assert len(sentences) == 3
    assert "disk is full" in sentences[0] and "checkpoint after step 10" in sentences[0]


def test_waiting_says_so_once_and_ends_when_a_stop_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_room, "LOOK_SECONDS", 0.01)
    save_checkpoint(tmp_path, checkpoint(5))
    SmallDisk(tmp_path, 1, monkeypatch)
    said, asked = [], []

    def stop_requested():
        asked.append(1)
        return len(asked) > 4

    wait = disk_room.WaitForRoom(said.append, stop_requested)
    with pytest.raises(Interrupted, match="Make room"):
        save_checkpoint(tmp_path, checkpoint(10), no_room=wait)
    assert len(said) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
    assert wait.over() and "there is room again" in said[1]


def test_a_full_disk_nobody_waits_for_is_one_sentence(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, checkpoint(5))
    SmallDisk(tmp_path, 1, monkeypatch)
    with pytest.raises(UserError, match="make room"):
        save_checkpoint(tmp_path, checkpoint(10))
    assert load_newest(tmp_path)[0].step == 5


def test_a_folder_that_cannot_be_written_is_one_sentence_and_no_waiting(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="Cannot save a checkpoint"):
        save_checkpoint(blocked, checkpoint(1), no_room=pytest.fail)


def test_a_disk_that_keeps_something_else_than_was_written_is_noticed(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, checkpoint(5))
    flush = checkpoints.flush_folder

    def flush_badly(folder):
        if folder.suffix == ".partial":
            (folder / "state.pt").write_bytes(b"something else")
        flush(folder)

    monkeypatch.setattr(checkpoints, "flush_folder", flush_badly)
    with pytest.raises(UserError, match=r"state\.pt is damaged"):
        save_checkpoint(tmp_path, checkpoint(10))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_a_drive_that_cannot_be_listed_afterwards_costs_no_checkpoint(tmp_path, monkeypatch):
    for step in (5, 10):
        save_checkpoint(tmp_path, checkpoint(step))

    def gone(_folder):
        raise OSError(errno.EIO, "planted")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "entries", gone)
        save_checkpoint(tmp_path, checkpoint(15))
    assert steps(tmp_path) == [5, 10, 15]
    save_checkpoint(tmp_path, checkpoint(20))
    assert steps(tmp_path) == [15, 20]


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be flushed on Windows")
def test_data_is_on_the_disk_before_the_manifest_and_names_before_and_after_the_rename(
    tmp_path, monkeypatch
):
    order = []

    def fsync(descriptor):
        order.append(
            str(Path(f"/proc/self/fd/{descriptor}").readlink()).removeprefix(f"{tmp_path}/")
        )

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(disk_room.os, "fsync", fsync)
    save_checkpoint(tmp_path, checkpoint(5))
    aside = "step-00000005.partial"
    files = [f"{aside}/{name}" for name in NAMES]
    assert order == [*files[:3], aside, files[3], aside, str(tmp_path)]
