"""Damage is noticed, named and passed over."""

import errno
import json
import os
import random
import shutil

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from discord_lora.console import UserError
from discord_lora.finetuning import checkpoints, disk_room
from discord_lora.finetuning.checkpoints import load_newest
from discord_lora.finetuning.manifest import damage
from made_checkpoints import (
    NAMES,
    checkpoint,
    foreign_state,
    rewrite_manifest,
    save_checkpoint,
    steps,
)
from run_scripts import run_here, tiny_model_folder, write_chat
from test_train_lora import arguments


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
