"""Checkpoints of one small weight, and what may be done to them."""

import hashlib

import torch

from discord_lora.finetuning import checkpoints
from discord_lora.finetuning.checkpoints import Checkpoint
from discord_lora.finetuning.manifest import manifest_of

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


def foreign_state(path, change):
    state = torch.load(path / "state.pt", weights_only=True)
    torch.save(change(state), path / "state.pt")
