"""What is saved, what is loaded, and which of them stay."""

import shutil

import pytest
import torch

from discord_lora.console import UserError
from discord_lora.finetuning import checkpoints
from discord_lora.finetuning.checkpoints import load_newest
from made_checkpoints import checkpoint, save_checkpoint, steps


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
