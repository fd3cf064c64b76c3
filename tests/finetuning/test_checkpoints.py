import json

import pytest
import torch
from safetensors import SafetensorError

from discord_lora.console import UserError
from discord_lora.finetuning import checkpoints
from discord_lora.finetuning.checkpoints import Checkpoint, is_whole, load_newest, save_checkpoint


def checkpoint(step):
    parameter = torch.nn.Parameter(torch.full((2, 3), float(step)))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return Checkpoint(
        step, {"w": parameter.detach()}, optimizer.state_dict(), {"last_epoch": step}, {}, {"a": 1}
    )


def test_what_is_saved_is_what_is_loaded(tmp_path):
    made = checkpoint(5)
    save_checkpoint(tmp_path, made)
    loaded, damaged = load_newest(tmp_path)
    assert damaged == []
    assert (loaded.step, loaded.scheduler, loaded.progress) == (5, {"last_epoch": 5}, {"a": 1})
    assert torch.equal(loaded.weights["w"], made.weights["w"])
    ours, theirs = (c.optimizer["state"][0]["exp_avg"] for c in (made, loaded))
    assert torch.equal(ours, theirs)


def test_the_newest_stays_and_old_ones_go(tmp_path):
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, checkpoint(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000015"]
    assert load_newest(tmp_path)[0].step == 15


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "state.pt", "progress.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, name, damage):
    save_checkpoint(tmp_path, checkpoint(5))
    path = save_checkpoint(tmp_path, checkpoint(10)) / name
    raw = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(raw[:-7])
    else:
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    loaded, damaged = load_newest(tmp_path)
    assert damaged == ["step-00000010"]
    assert loaded.step == 5


def test_a_half_written_checkpoint_is_not_one(tmp_path):
    save_checkpoint(tmp_path, checkpoint(5))
    half = tmp_path / "step-00000010.partial"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"x")
    assert load_newest(tmp_path)[0].step == 5
    save_checkpoint(tmp_path, checkpoint(10))
    assert not half.exists()


def test_a_planted_pickle_is_not_executed(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint(5))
    proof = tmp_path / "executed"

    class Malicious:
        def __reduce__(self):
            return (proof.touch, ())

    torch.save({"optimizer": Malicious(), "scheduler": {}, "scaler": {}}, path / "state.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    import hashlib

    manifest["state.pt"] = hashlib.sha256((path / "state.pt").read_bytes()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert is_whole(path)
    with pytest.raises(Exception, match=r"(?i)weights.only|unsupported"):
        load_newest(tmp_path)
    assert not proof.exists()


def test_a_folder_that_cannot_be_written_ends_in_one_sentence(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="Cannot save a checkpoint"):
        save_checkpoint(blocked, checkpoint(1))


def test_damaged_newer_ones_never_push_out_a_whole_one(tmp_path):
    for step in (5, 100, 150):
        save_checkpoint(tmp_path, checkpoint(step))
    for step in (100, 150):
        (tmp_path / f"step-{step:08d}" / "state.pt").write_bytes(b"")
    assert load_newest(tmp_path)[0] is None
    save_checkpoint(tmp_path, checkpoint(50))
    assert load_newest(tmp_path)[0].step == 50


def test_a_full_disk_ends_in_one_sentence_and_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, checkpoint(5))

    def full(*_):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(UserError, match="make room"):
        save_checkpoint(tmp_path, checkpoint(10))
    assert load_newest(tmp_path)[0].step == 5
