"""The room for checkpoints, with a disk of any size."""

from types import SimpleNamespace

import pytest
import torch

from discord_lora.analysis.plan.disk import nearest_folder, room_for
from discord_lora.analysis.plan.memory import optimizer_bytes
from discord_lora.analysis.plan.model_shapes import MODELS
from discord_lora.finetuning.checkpoints import Checkpoint, save_checkpoint
from discord_lora.finetuning.preflight import room_of
from discord_lora.finetuning.preflight_page import disk_problem, disk_text
from discord_lora.finetuning.training_state import make_optimizer
from discord_lora.settings import load_settings

TRAINABLE = 1_000_000


@pytest.fixture
def room(monkeypatch):
    """`room_for` on a disk with so many bytes free."""

    def make(folder, free, moment_bytes=8.0, limit=2):
        usage = SimpleNamespace(free=int(free))
        monkeypatch.setattr("shutil.disk_usage", lambda _folder: usage)
        return room_for(folder, TRAINABLE, moment_bytes, limit)

    return make


def test_checkpoints_and_adapter_are_counted(tmp_path, room):
    made = room(tmp_path / "adapters" / "run", 1e9)
    assert made.checkpoints == 4  # two newest, the best, the one that is being written
    assert made.checkpoint_bytes == pytest.approx(12e6, rel=0.03)
    assert made.needed_bytes == pytest.approx(4 * 12e6 + 4e6, rel=0.03)
    assert room(tmp_path, 1e9, moment_bytes=2.0).checkpoint_bytes == pytest.approx(6e6, rel=0.03)
    assert room(tmp_path, 1e9, limit=5).checkpoints == 7
    assert not (tmp_path / "adapters").exists()


@pytest.mark.parametrize(("free", "enough"), [(52e6, False), (54e6, True), (0, False)])
def test_a_disk_is_enough_or_not(tmp_path, room, free, enough):
    made = room(tmp_path, free)
    assert made.is_enough == enough
    said = disk_problem(made, tmp_path)
    assert (said is None) == enough
    if said:
        assert "SAVE_TOTAL_LIMIT" in said and "53 MB" in said


def test_checkpoints_that_are_there_need_no_room_again(tmp_path, room):
    checkpoint = tmp_path / "checkpoints" / "step-00000050"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.pt").write_bytes(bytes(30_000_000))
    made = room(tmp_path, 30e6)
    assert made.there_bytes == 30_000_000
    assert made.is_enough
    assert "30 MB of it there" in disk_text(made)


def test_an_adapter_on_some_layers_needs_less_room(tmp_path):
    def adapter(targets):
        settings = load_settings({"lora_target_modules": targets}, env_file=None)
        run = SimpleNamespace(settings=settings, folder=SimpleNamespace(path=tmp_path))
        return room_of(run, MODELS[0], SimpleNamespace(is_cuda=False)).adapter_bytes

    on_two = 30 * 16 * (576 + 576 + 576 + 192) * 4
    assert adapter("q_proj,v_proj") == pytest.approx(on_two, rel=0.03)
    assert adapter("all-linear") > 5 * on_two


def test_the_disk_is_asked_at_the_nearest_folder_that_exists(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("shutil.disk_usage", lambda it: asked.append(it) or SimpleNamespace(free=1))
    room_for(tmp_path / "none" / "of" / "these", 1, 8.0, 2)
    assert asked == [tmp_path]
    assert nearest_folder(tmp_path) == tmp_path


def test_a_real_checkpoint_is_as_large_as_was_said(tmp_path, room):
    weights = {str(n): torch.zeros(500, 500, requires_grad=True) for n in range(4)}
    optimizer = make_optimizer(list(weights.values()), load_settings(env_file=None), "adamw")
    for weight in weights.values():
        weight.grad = torch.randn(weight.shape)
    optimizer.step()
    plain = {name: weight.detach() for name, weight in weights.items()}
    checkpoint = Checkpoint(1, plain, optimizer.state_dict(), {}, {}, {"losses": {}})
    path = save_checkpoint(tmp_path, checkpoint, keep=2)
    taken = sum(file.stat().st_size for file in path.iterdir())
    said = room(tmp_path, 1e9, optimizer_bytes("adamw")).checkpoint_bytes
    assert taken <= said <= 1.05 * taken
