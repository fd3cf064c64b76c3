"""Checkpoints: written aside, flushed, renamed; a manifest with hashes last.

A folder `step-00000050` exists only when all of it was written. Resume takes the newest whose
files still have the hashes of the manifest, and nothing that it reads can execute code.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from discord_lora.console import UserError

MANIFEST = "manifest.json"
RENAME_ATTEMPTS = 10
KEEP = 2
"""Checkpoints that stay: the newest, and one more in case the disk damages it."""


@dataclass(slots=True)
class Checkpoint:
    """Everything a run needs to go on after `step` as if it had never stopped."""

    step: int
    weights: dict[str, torch.Tensor]
    """The trainable weights."""
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    scaler: dict[str, Any]
    """Empty without fp16."""
    progress: dict[str, Any]
    """JSON: what was measured so far."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint` below `folder` and drop the oldest ones.

    Raises:
        UserError: the folder cannot be written; the previous checkpoint is untouched.
    """
    final = folder / f"step-{checkpoint.step:08d}"
    aside = final.with_suffix(".partial")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_file(checkpoint.weights, aside / "weights.safetensors")
        state = {
            "optimizer": checkpoint.optimizer,
            "scheduler": checkpoint.scheduler,
            "scaler": checkpoint.scaler,
        }
        torch.save(state, aside / "state.pt")
        _write_json(aside / "progress.json", {"step": checkpoint.step, **checkpoint.progress})
        _flush(aside)
        _write_json(aside / MANIFEST, {path.name: _sha256(path) for path in _files(aside)})
        _flush(aside)
        shutil.rmtree(final, ignore_errors=True)
        _put_in_place(aside, final)
        older = [path for path in _newest_first(folder) if path.name < final.name]
        for path in older[KEEP - 1 :]:
            shutil.rmtree(path, ignore_errors=True)
    except (OSError, RuntimeError, SafetensorError) as error:  # each library its own full disk
        raise UserError(
            f"Cannot save a checkpoint in {folder} ({error}); make room or check the rights, then "
            "run the same command again: it goes on from the checkpoint before."
        ) from None
    return final


def load_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose files are whole, and the names of damaged ones passed over."""
    damaged: list[str] = []
    for path in _newest_first(folder):
        if is_whole(path):
            return _load(path), damaged
        damaged.append(path.name)
        # Out of the way: it must not count among the checkpoints that are kept.
        with suppress(OSError):
            path.replace(path.with_suffix(".damaged"))
    return None, damaged


def load_step(folder: Path, step: int) -> Checkpoint | None:
    """The checkpoint of this step, or None if it is gone or damaged."""
    path = folder / f"step-{step:08d}"
    return _load(path) if is_whole(path) else None


def is_whole(path: Path) -> bool:
    """True if each file of the checkpoint has the hash that the manifest recorded."""
    try:
        manifest: dict[str, str] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        return manifest == {file.name: _sha256(file) for file in _files(path)}
    except (OSError, ValueError):
        return False


def _load(path: Path) -> Checkpoint:
    state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    progress = json.loads((path / "progress.json").read_text(encoding="utf-8"))
    return Checkpoint(
        step=progress.pop("step"),
        weights=load_file(path / "weights.safetensors"),
        optimizer=state["optimizer"],
        scheduler=state["scheduler"],
        scaler=state["scaler"],
        progress=progress,
    )


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step-*") if not path.suffix), reverse=True)


def _put_in_place(aside: Path, final: Path) -> None:
    """Rename; on Windows a virus scanner may hold a fresh file for a moment."""
    for attempt in range(RENAME_ATTEMPTS):
        try:
            aside.replace(final)
            return
        except PermissionError:
            if attempt == RENAME_ATTEMPTS - 1:
                raise
            time.sleep(0.5)


def _files(path: Path) -> Iterator[Path]:
    return (file for file in sorted(path.iterdir()) if file.name != MANIFEST)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8", newline="\n")


def _flush(folder: Path) -> None:
    """Push each file to the disk itself: a rename may survive a power cut that its data do not."""
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
