import errno
import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from discord_lora.console import Interrupted, UserError
from discord_lora.finetuning import adapter, disk_room
from discord_lora.finetuning.adapter import save_adapter
from discord_lora.finetuning.disk_room import is_full
from discord_lora.finetuning.keeping import Keeper


class FullFile(io.RawIOBase):
    def __init__(self, number):
        self.number = number

    def write(self, data):
        raise OSError(self.number, os.strerror(self.number))


def error_of_torch(number):
    with pytest.raises((OSError, RuntimeError)) as caught:
        torch.save({"a": torch.zeros(1000)}, FullFile(number))
    return caught.value


def windows_error(number):
    error = OSError(errno.EINVAL, "as on Windows")
    error.winerror = number
    return error


def test_each_form_of_a_full_disk_is_known():
    for number in (errno.ENOSPC, errno.EDQUOT):
        assert is_full(OSError(number, "x"))
        assert is_full(error_of_torch(number))
    assert all(is_full(windows_error(number)) for number in (39, 112, 1295))
    text = "Error while serializing: I/O error: There is not enough space (os error {})"
    full = 112 if sys.platform == "win32" else 28
    assert is_full(SafetensorError(text.format(full)))


def test_other_errors_are_not_taken_for_a_full_disk():
    for number in (errno.EACCES, errno.EROFS, errno.EIO, errno.EFBIG):
        assert not is_full(OSError(number, "x"))
        assert not is_full(error_of_torch(number))
    assert not is_full(windows_error(5))
    assert not is_full(SafetensorError("I/O error: Permission denied (os error 13)"))
    assert not is_full(SafetensorError("no number in it"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_that_is_full_is_known_through_the_real_libraries():
    with pytest.raises((OSError, RuntimeError)) as caught, Path("/dev/full").open("wb") as file:
        torch.save({"a": torch.zeros(100_000)}, file)
    assert is_full(caught.value)


# The finished adapter --------------------------------------------------------------------------


class Info:
    def write(self, folder):
        (folder / "run.json").write_text("{}")


class Model:
    """Saves as PEFT does; `full` times with a full disk."""

    def __init__(self, full, error=None):
        self.full = full
        self.error = error or SafetensorError("I/O error: No space left on device (os error 28)")

    def save_pretrained(self, folder, **_):
        (Path(folder) / "adapter_model.safetensors").write_text("weights")
        if self.full:
            self.full -= 1
            raise self.error


@pytest.fixture(autouse=True)
def card(monkeypatch):
    monkeypatch.setattr(adapter, "model_card", lambda _info: "card")
    if sys.platform == "win32":
        monkeypatch.setattr(disk_room, "_FULL_ON_WINDOWS", {28})


def test_a_finished_adapter_waits_for_room(tmp_path):
    sentences, spared = [], [True, False, False]

    def no_room(sentence):
        assert list(tmp_path.iterdir()) == []  # nothing that could be taken for an adapter
        sentences.append(sentence)

    save_adapter(
        Model(full=3), {}, Info(), tmp_path, make_room=lambda: spared.pop(0), no_room=no_room
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_model.safetensors", "run.json", "README.md",
    }  # fmt: skip
    assert len(sentences) == 2 and "finished adapter" in sentences[0]


def test_an_adapter_that_a_scanner_holds_for_a_moment_is_put_in_place(tmp_path, monkeypatch):
    replace, refused = Path.replace, []

    def replace_later(path, target):
        if len(refused) < 3:
            refused.append(path)
            raise PermissionError("planted")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_later)
    monkeypatch.setattr(disk_room.time, "sleep", lambda _seconds: None)
    save_adapter(Model(full=0), {}, Info(), tmp_path)
    assert len(refused) == 3 and (tmp_path / "run.json").is_file()


def test_an_adapter_folder_without_rights_is_one_sentence_and_no_waiting(tmp_path):
    error = PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(UserError, match="OUTPUT_DIR"):
        save_adapter(Model(full=1, error=error), {}, Info(), tmp_path, no_room=pytest.fail)
    assert list(tmp_path.iterdir()) == []


def test_a_stop_while_the_disk_is_full_says_what_is_lost_and_how_to_go_on():
    log = SimpleNamespace(
        incident=lambda _what, _sentence: None,
        interrupted=lambda sentence: Interrupted(f"{sentence}\n  python again.py"),
    )
    state = SimpleNamespace(accelerator=Accelerator(cpu=True))
    keeper = Keeper(state, None, log, SimpleNamespace(made=lambda: True), checkpoints_kept=1)
    with pytest.raises(Interrupted) as stopped:
        keeper._write(lambda no_room: no_room("The disk is full."))
    first, command = str(stopped.value).splitlines()
    assert "could not be saved" in first and "Make room" in first
    assert command == "  python again.py"
