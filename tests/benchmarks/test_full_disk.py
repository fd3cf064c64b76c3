"""A training on a disk that fills up, for real; benchmarks/full_disk.py also does it on ext4."""

import threading
from argparse import Namespace

import pytest

import full_disk
from discord_lora.finetuning.disk_room import LOOK_SECONDS
from discord_lora.finetuning.training_state import make_accelerator
from discord_lora.hardware import detect_hardware
from discord_lora.settings import load_settings
from run_scripts import tiny_model_folder, write_chat


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(bool(full_disk.why_not()), reason=full_disk.why_not() or "-")
def test_a_run_waits_for_room_and_ends_with_the_same_adapter(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    data = write_chat(tmp_path / "chat.jsonl", 400)
    args = Namespace(kind="tmpfs", base_model=tiny_model_folder(tmp_path), data=data, steps=30)
    figures = full_disk.measure(args, work, print)
    assert figures.lines_while_full == [1, 1]
    assert max(figures.seconds_until_it_went_on) < LOOK_SECONDS + 10


@pytest.mark.skipif(bool(full_disk.why_not()), reason=full_disk.why_not() or "-")
def test_a_run_starts_without_tensorboard_where_there_is_not_a_byte_of_room(tmp_path, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # of TensorBoard's own thread
    with full_disk.small_disk("tmpfs", 1 << 16, tmp_path / "full") as disk:
        (disk / "tensorboard" / "run").mkdir(parents=True)
        full_disk.fill(disk, 0)
        settings = load_settings({"logs_dir": disk}, env_file=None)
        accelerator = make_accelerator(settings, detect_hardware(), "run")
        assert accelerator.trackers == []
        accelerator.log({"loss": 1.0}, step=1)
        accelerator.end_training()
