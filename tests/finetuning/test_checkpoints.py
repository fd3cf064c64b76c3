import errno
import hashlib
import json
import os
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from discord_lora.console import Interrupted, UserError
from discord_lora.finetuning import checkpoints, disk_room
from discord_lora.finetuning.checkpoints import Checkpoint, drop_oldest, load_newest
from discord_lora.finetuning.manifest import damage, manifest_of
from run_scripts import run_here, tiny_model_folder, write_chat
from test_train_lora import arguments

NAMES = ["weights.safetensors", "state.pt", "progress.json", "manifest.json"]


def checkpoint(step):
    parameter = torch.nn.Parameter(torch.full((2, 3), float(step)))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return Checkpoint(
        step, {"w": parameter.detach()}, optimizer.state_dict(), {"last_epoch": step}, {}, {"a": 1}
    )


def save_checkpoint(folder, made, keep=2, **options):
    return checkpoints.save_checkpoint(folder, made, keep=keep, **options)


def steps(folder):
    return sorted(int(path.name[5:]) for path in folder.glob("step-*") if not path.suffix)


def rewrite_manifest(path):
    """What an attacker would do, or another version: the hashes fit."""
    hashes = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in path.iterdir()
        if file.name != "manifest.json"
    }
    (path / "manifest.json").write_bytes(manifest_of(hashes))


def test_what_is_saved_is_what_is_loaded(tmp_path):
    made = checkpoint(5)
    save_checkpoint(tmp_path, made)
    loaded, damaged = load_newest(tmp_path, made.weights)
    assert damaged == []
    assert (loaded.step, loaded.scheduler, loaded.progress) == (5, {"last_epoch": 5}, {"a": 1})
    assert torch.equal(loaded.weights["w"], made.weights["w"])
    ours, theirs = (c.optimizer["state"][0]["exp_avg"] for c in (made, loaded))
    assert torch.equal(ours, theirs)


# Which stay ------------------------------------------------------------------------------------


def test_the_newest_stay_and_the_best_and_old_ones_go(tmp_path):
    for step in (5, 10, 15, 20):
        save_checkpoint(tmp_path, checkpoint(step), best_step=5)
    assert steps(tmp_path) == [5, 15, 20]
    save_checkpoint(tmp_path, checkpoint(25), keep=3, best_step=25)
    assert steps(tmp_path) == [15, 20, 25]
    assert load_newest(tmp_path)[0].step == 25
    assert len(list(tmp_path.iterdir())) == 3


def test_a_run_that_went_back_never_takes_up_what_it_gave_up(tmp_path):
    for step in (100, 150, 200):
        save_checkpoint(tmp_path, checkpoint(step), keep=3)
    save_checkpoint(tmp_path, checkpoint(120), keep=3)
    assert steps(tmp_path) == [100, 120]


def test_a_step_saved_again_replaces_the_first(tmp_path):
    save_checkpoint(tmp_path, checkpoint(5))
    again = checkpoint(5)
    again.progress["a"] = 2
    save_checkpoint(tmp_path, again)
    assert load_newest(tmp_path)[0].progress == {"a": 2}


def left_in_the_middle_of_replacing(folder, step):
    """A run was killed when the new one was there, and the old one was being deleted."""
    path = save_checkpoint(folder, checkpoint(step))
    old = path.with_suffix(".replaced")
    shutil.copytree(path, old)
    (old / "state.pt").unlink()
    return old


def test_what_is_left_of_a_replaced_one_does_not_block_its_step(tmp_path):
    left_in_the_middle_of_replacing(tmp_path, 5)
    save_checkpoint(tmp_path, checkpoint(5))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_a_replaced_one_does_not_come_back_for_one_that_was_dropped(tmp_path):
    old = left_in_the_middle_of_replacing(tmp_path, 5)
    assert load_newest(tmp_path)[0].step == 5 and not old.exists()
    left_in_the_middle_of_replacing(tmp_path, 5)
    for step in (10, 15, 20):
        save_checkpoint(tmp_path, checkpoint(step))
    assert load_newest(tmp_path)[0].step == 20 and steps(tmp_path) == [15, 20]


def test_more_than_eight_digits_keep_their_order(tmp_path):
    for step in (99_999_999, 100_000_000, 100_000_001):
        save_checkpoint(tmp_path, checkpoint(step))
    assert steps(tmp_path) == [100_000_000, 100_000_001]
    assert load_newest(tmp_path)[0].step == 100_000_001


def test_what_a_killed_run_left_is_cleared_away(tmp_path):
    save_checkpoint(tmp_path, checkpoint(5))
    for name in ("step-00000010.partial", "step-00000003.removed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_bytes(b"x")
    assert load_newest(tmp_path)[0].step == 5
    save_checkpoint(tmp_path, checkpoint(12))
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000005", "step-00000012"}


# Damage ----------------------------------------------------------------------------------------


def broken_ones(raw, places):
    for place in sorted(random.Random(7).sample(range(len(raw)), min(places, len(raw)))):
        flipped = bytearray(raw)
        flipped[place] ^= 1 << place % 8
        yield bytes(flipped)
    for length in (0, 1, len(raw) // 2, len(raw) - 1):
        yield raw[:length]
    yield raw + b"\n"
    yield None


@pytest.mark.parametrize("name", NAMES)
def test_any_flipped_or_missing_byte_is_noticed_and_put_on_the_right_file(tmp_path, name):
    path = save_checkpoint(tmp_path, checkpoint(10))
    raw = (path / name).read_bytes()
    for broken in broken_ones(raw, 400):
        (path / name).unlink(missing_ok=True)
        if broken is not None:
            (path / name).write_bytes(broken)
        wrong = "missing" if broken is None else "damaged"
        assert damage(path) == f"{name} is {wrong}"
    (path / name).write_bytes(raw)
    assert damage(path) == ""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["flip", "truncate", "empty", "remove", "folder"])
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, name, kind):
    save_checkpoint(tmp_path, checkpoint(5))
    path = save_checkpoint(tmp_path, checkpoint(10)) / name
    raw = bytearray(path.read_bytes())
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind != "remove":
        raw[len(raw) // 2] ^= 1
        path.write_bytes({"flip": raw, "truncate": raw[:-7], "empty": b""}[kind])
    loaded, damaged = load_newest(tmp_path)
    assert len(damaged) == 1 and damaged[0].startswith(f"step-00000010 ({name} is ")
    assert loaded.step == 5
    assert load_newest(tmp_path)[1] == []


def test_two_damaged_files_are_both_named(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint(10))
    (path / "progress.json").unlink()
    (path / "state.pt").write_bytes(b"")
    assert damage(path) == "progress.json is missing, state.pt is damaged"


def test_what_a_file_manager_leaves_in_it_is_no_damage(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint(10))
    (path / ".DS_Store").write_bytes(b"\0")
    (path / "@eaDir").mkdir()
    assert load_newest(tmp_path)[0].step == 10


@pytest.mark.parametrize(
    "text", [b"{}", b"[]", b"null", b'{"files": []}', b"[" * 10**5, b"\xff", b'{"files": {"a": 1}}']
)
def test_a_strange_manifest_is_a_damaged_one(tmp_path, text):
    path = save_checkpoint(tmp_path, checkpoint(10))
    (path / "manifest.json").write_bytes(text)
    assert damage(path) == "manifest.json is damaged"


def test_damaged_newer_ones_never_push_out_a_whole_one(tmp_path):
    for step in (5, 100, 150):
        save_checkpoint(tmp_path, checkpoint(step), keep=3)
    for step in (100, 150):
        (tmp_path / f"step-{step:08d}" / "state.pt").write_bytes(b"")
    assert load_newest(tmp_path)[0].step == 5
    save_checkpoint(tmp_path, checkpoint(50))
    assert load_newest(tmp_path)[0].step == 50


def test_when_no_checkpoint_can_be_used_the_run_does_not_begin_anew_in_silence(tmp_path):
    for step in (5, 10):
        path = save_checkpoint(tmp_path, checkpoint(step))
        (path / "state.pt").write_bytes(b"")
    for _ in range(2):  # the second call finds them where they were
        with pytest.raises(
            UserError, match=r"step-00000010 \(state.pt is damaged\); step-00000005"
        ):
            load_newest(tmp_path)
    assert steps(tmp_path) == [5, 10]


def test_where_nothing_was_learned_nothing_is_lost(tmp_path):
    (save_checkpoint(tmp_path, checkpoint(0)) / "state.pt").write_bytes(b"")
    assert load_newest(tmp_path) == (None, ["step-00000000 (state.pt is damaged)"])


@pytest.mark.parametrize(("failures", "expected"), [(2, 10), (99, 5)])
def test_a_drive_that_does_not_answer_condemns_no_checkpoint(
    tmp_path, monkeypatch, failures, expected
):
    for step in (5, 10):
        save_checkpoint(tmp_path, checkpoint(step))
    load, failed = checkpoints.load_file, []

    def load_badly(path):
        if path.parent.name == "step-00000010" and len(failed) < failures:
            failed.append(path)
            raise OSError(errno.EIO, "planted")
        return load(path)

    monkeypatch.setattr(checkpoints, "load_file", load_badly)
    monkeypatch.setattr(disk_room.time, "sleep", lambda _seconds: None)
    loaded, passed_over = load_newest(tmp_path)
    assert loaded.step == expected and steps(tmp_path) == [5, 10]
    assert len(passed_over) == (expected == 5)
    assert all("it cannot be read" in sentence for sentence in passed_over)


def test_the_newest_progress_that_can_be_read(tmp_path):
    assert checkpoints.newest_progress(tmp_path) == {}
    for step, text in ((5, '{"step": 5}'), (10, "torn"), (15, "[]"), (20, None)):
        folder = tmp_path / f"step-{step:08d}"
        folder.mkdir()
        if text is not None:
            (folder / "progress.json").write_text(text)
    assert checkpoints.newest_progress(tmp_path) == {"step": 5}


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize("failures", [2, 99])
def test_a_drive_that_does_not_list_is_waited_for_and_then_named(
    tmp_path, monkeypatch, failures, number
):
    save_checkpoint(tmp_path, checkpoint(5))
    listed, scanned, failed = os.listdir, os.scandir, []

    def badly(look):
        def look_badly(folder):
            if folder == tmp_path and len(failed) < failures:
                failed.append(folder)
                raise OSError(number, "planted")
            return look(folder)

        return look_badly

    monkeypatch.setattr(os, "listdir", badly(listed))
    monkeypatch.setattr(os, "scandir", badly(scanned))
    monkeypatch.setattr(disk_room.time, "sleep", lambda _seconds: None)
    if failures == 2:
        assert load_newest(tmp_path)[0].step == 5
        return
    for ask in (load_newest, checkpoints.saved_steps):
        with pytest.raises(UserError, match=r"Cannot look into .*planted.*the same command again"):
            ask(tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        SafetensorError("Error while memory mapping: Cannot allocate memory (os error 12)"),
        SafetensorError("I/O error: Die Auslagerungsdatei ist zu klein (os error 1455)"),
    ],
)
def test_memory_that_runs_out_while_reading_condemns_no_checkpoint(tmp_path, monkeypatch, error):
    save_checkpoint(tmp_path, checkpoint(5))

    def fail(_path):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "load_file", fail)
        with pytest.raises(UserError, match="Memory ran out while a checkpoint was read"):
            load_newest(tmp_path)
        assert checkpoints.load_step(tmp_path, 5, {}) is None
    assert steps(tmp_path) == [5] and load_newest(tmp_path)[0].step == 5


# Whole files with foreign content --------------------------------------------------------------


def foreign_state(path, change):
    state = torch.load(path / "state.pt", weights_only=True)
    torch.save(change(state), path / "state.pt")


FOREIGN = {
    "state.pt": [
        lambda path: foreign_state(path, lambda state: {"optimizer": state["optimizer"]}),
        lambda path: torch.save([1, 2], path / "state.pt"),
        lambda path: foreign_state(path, lambda state: {**state, "scheduler": None}),
        lambda path: (path / "state.pt").write_bytes(b""),
        lambda path: (path / "state.pt").write_bytes(b"PK\x03\x04" + b"\0" * 100),
    ],
    "weights.safetensors": [
        lambda path: save_file({"w": torch.zeros(3, 2)}, path / "weights.safetensors"),
        lambda path: save_file({"v": torch.zeros(2, 3)}, path / "weights.safetensors"),
        lambda path: (path / "weights.safetensors").write_bytes(b"\xff" * 64),
    ],
    "progress.json": [
        lambda path: (path / "progress.json").write_text("{}"),
        lambda path: (path / "progress.json").write_text('{"step": 11}'),
        lambda path: (path / "progress.json").write_text('{"step": "10"}'),
        lambda path: (path / "progress.json").write_text("[" * 10**5),
        lambda path: (path / "progress.json").write_text("7"),
    ],
}


@pytest.mark.parametrize(
    ("name", "change"), [(name, change) for name, them in FOREIGN.items() for change in them]
)
def test_whole_files_that_hold_something_else_are_passed_over(tmp_path, name, change):
    made = checkpoint(5)
    save_checkpoint(tmp_path, made)
    path = save_checkpoint(tmp_path, checkpoint(10))
    change(path)
    rewrite_manifest(path)
    assert damage(path) == ""
    loaded, damaged = load_newest(tmp_path, made.weights)
    assert loaded.step == 5
    assert damaged[0].startswith(f"step-00000010 ({name} is not what this version writes")


# A full disk -----------------------------------------------------------------------------------


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


# The training script ---------------------------------------------------------------------------


def test_a_run_with_a_damaged_checkpoint_goes_on_from_the_one_before(tmp_path, monkeypatch, capsys):
    write_chat(tmp_path / "chat.jsonl")
    words = arguments(
        tmp_path,
        base_model=tiny_model_folder(tmp_path),
        quantization="none",
        save_every_steps=2,
        max_validation_messages=1,
    )
    assert run_here(monkeypatch, "training/train_lora.py", *words) == 0
    run = tmp_path / "adapters" / "server-tiny"
    undisturbed = (run / "adapter_model.safetensors").read_bytes()
    kept = tmp_path / "kept"
    shutil.copytree(run / "checkpoints", kept)

    def damaged(change, sentence):
        (run / "run.json").unlink()
        shutil.rmtree(run / "checkpoints")
        shutil.copytree(kept, run / "checkpoints")
        change(run / "checkpoints" / "step-00000004")
        capsys.readouterr()
        assert run_here(monkeypatch, "training/train_lora.py", *words) == 0
        out = capsys.readouterr().out
        assert f"step-00000004 ({sentence}" in out and "going on after step 2" in out
        assert (run / "adapter_model.safetensors").read_bytes() == undisturbed

    def flip(path):
        raw = bytearray((path / "state.pt").read_bytes())
        raw[len(raw) // 3] ^= 4
        (path / "state.pt").write_bytes(raw)

    def of_another_rank(path):
        save_file({"x": torch.zeros(1)}, path / "weights.safetensors")
        rewrite_manifest(path)

    damaged(flip, "state.pt is damaged")
    damaged(of_another_rank, "weights.safetensors is not what this version writes")


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["scheduler"].clear(),
        lambda state: state["optimizer"]["param_groups"].append({}),
        lambda state: state["optimizer"]["param_groups"][0].pop("betas"),
        lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(1)),
        lambda state: state["optimizer"].pop("state"),
    ],
)  # fmt: skip
def test_a_state_of_another_version_is_one_sentence(tmp_path, monkeypatch, capsys, change):
    write_chat(tmp_path / "chat.jsonl")
    words = arguments(
        tmp_path, base_model=tiny_model_folder(tmp_path), quantization="none", max_steps=2,
        max_validation_messages=1, gradient_accumulation_steps=1, save_every_steps=2,
    )  # fmt: skip
    assert run_here(monkeypatch, "training/train_lora.py", *words) == 0
    run = tmp_path / "adapters" / "server-tiny"
    (run / "run.json").unlink()
    path = run / "checkpoints" / "step-00000002"

    def changed(state):
        change(state)
        return state

    foreign_state(path, changed)
    rewrite_manifest(path)
    capsys.readouterr()
    assert run_here(monkeypatch, "training/train_lora.py", *words) == 2
    error = capsys.readouterr().err
    assert "step 2 is whole, but another version wrote it" in error and "--fresh" in error
    assert json.loads((path / "progress.json").read_text())["step"] == 2


@pytest.mark.parametrize("killed", [False, True])
def test_a_checkpoint_that_cannot_be_replaced_is_still_there(tmp_path, monkeypatch, killed):
    save_checkpoint(tmp_path, checkpoint(5))
    put_in_place = checkpoints.put_in_place

    def fail(aside, final):
        if aside.suffix == ".partial":
            raise KeyboardInterrupt if killed else PermissionError("planted")
        put_in_place(aside, final)

    monkeypatch.setattr(checkpoints, "put_in_place", fail)
    with pytest.raises((UserError, KeyboardInterrupt)):
        save_checkpoint(tmp_path, checkpoint(5))
    assert load_newest(tmp_path)[0].step == 5
