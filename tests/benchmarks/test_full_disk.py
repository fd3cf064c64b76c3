"""A training on a disk that fills up, for real; benchmarks/full_disk.py also does it on ext4."""

from argparse import Namespace

import pytest

import full_disk
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
    assert max(figures.seconds_until_it_went_on) < 15
