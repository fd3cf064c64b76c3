"""Checkpoints: written aside, flushed, read back, renamed; a manifest with hashes last.

    step-00000050/              there only when all of it was written
        weights.safetensors     the trainable weights
        state.pt                optimizer, scheduler, scaler
        progress.json           the step, and what was measured so far
        manifest.json           the hash of each of these, and of itself

Resume takes the newest whose files are as the manifest says, and nothing that it reads can execute
code. Beside them there may be `step-N.partial` (being written), `.removed` (being deleted) and
`.damaged` (passed over): none of them is ever read.
"""

import errno
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from discord_lora.console import UserError, words_of
from discord_lora.finetuning.disk_room import (
    WRITE_ERRORS,
    NoRoom,
    entries,
    flush_folder,
    look_into,
    patiently,
    put_in_place,
    when_there_is_room,
)
from discord_lora.finetuning.manifest import MANIFEST, damage, manifest_of, write_file
from discord_lora.hardware import is_out_of_memory, memory_must_suffice

NO_MEMORY_TO_READ = (
    "Memory ran out while a checkpoint was read; close other programs. The same command goes on "
    "from it."
)
UNFINISHED = (".partial", ".removed")
"""Of what a run that was killed was writing or deleting."""
REPLACED = ".replaced"
"""Of a checkpoint while a new one of the same step takes its place."""


@dataclass(slots=True)
class Checkpoint:
    """Everything a run needs to go on after `step` as if it had never stopped."""

    step: int
    weights: dict[str, Tensor]
    """The trainable weights."""
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    scaler: dict[str, Any]
    """Empty without fp16."""
    progress: dict[str, Any]
    """JSON: what was measured so far."""


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


# Saving ----------------------------------------------------------------------------------------


def save_checkpoint(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    keep: int,
    best_step: int | None = None,
    no_room: NoRoom | None = None,
) -> Path:
    """Write `checkpoint` below `folder`, then drop the older ones.

    The newest `keep` stay, and the one of `best_step`. Those of later steps go: a run that is here
    has gone back, and what it did then must not be taken up again.

    A full disk costs the oldest ones at once, down to the newest and the best. If that is not
    enough, `no_room` is called and writing tried again, for as long as it takes.

    Raises:
        UserError: the folder cannot be written; the previous checkpoint is untouched.
        Interrupted: of `no_room`; the previous checkpoint is untouched.
    """
    final = checkpoint_path(folder, checkpoint.step)
    try:
        when_there_is_room(
            lambda: _write(final, checkpoint),
            f"the checkpoint after step {checkpoint.step:,}",
            folder,
            make_room=lambda: drop_oldest(folder, best_step, checkpoint.step),
            no_room=no_room,
        )
    except WRITE_ERRORS as error:
        raise UserError(
            f"Cannot save a checkpoint in {folder} ({words_of(error)}); make room, or see to the "
            "drive and the rights."
        ) from None
    with suppress(OSError):  # what cannot be listed now is dropped after the next one
        later, before = _later_and_before(folder, checkpoint.step)
        for path in (*later, *before[keep:]):
            if path in later or _step(path) != best_step:
                _remove(path)
    return final


def drop_oldest(folder: Path, best_step: int | None = None, step: int | None = None) -> bool:
    """Remove what is worth least: a damaged checkpoint, or the oldest; never the newest or best.

    Those after `step` are worth nothing. Returns False if there is nothing left to remove.
    """
    later, before = _later_and_before(folder, step)
    spare = [path for path in reversed(before[1:]) if _step(path) != best_step]
    for path in (*folder.glob("step-*.damaged"), *later, *spare):
        _remove(path)
        if not path.exists():
            return True
    return False


def _later_and_before(folder: Path, step: int | None) -> tuple[list[Path], list[Path]]:
    """The checkpoints after `step`, and the others, each newest first."""
    there = _newest_first(entries(folder))
    later = [path for path in there if step is not None and _step(path) > step]
    return later, there[len(later) :]


def _write(final: Path, checkpoint: Checkpoint) -> None:
    """The steps of one try; nothing is left of it where it fails."""
    folder = final.parent
    for suffix in UNFINISHED:
        for left in folder.glob(f"step-*{suffix}"):
            shutil.rmtree(left, ignore_errors=True)
    with suppress(OSError):  # of an earlier time: the next one will
        _settle_replaced(folder)
    aside = final.with_suffix(".partial")
    state = {name: getattr(checkpoint, name) for name in ("optimizer", "scheduler", "scaler")}
    progress = json.dumps({**checkpoint.progress, "step": checkpoint.step}, indent=2)
    contents: dict[str, Callable[[Any], object]] = {
        "weights.safetensors": lambda file: file.write(safetensors_bytes(checkpoint.weights)),
        "state.pt": lambda file: torch.save(state, file),
        "progress.json": lambda file: file.write(progress.encode("utf-8")),
    }
    try:
        aside.mkdir(parents=True)
        hashes = {name: write_file(aside / name, fill) for name, fill in contents.items()}
        flush_folder(aside)
        # After all that it vouches for: where it is whole, the rest is on the disk.
        write_file(aside / MANIFEST, lambda file: file.write(manifest_of(hashes)))
        flush_folder(aside)
        if problem := damage(aside):
            raise OSError(errno.EIO, f"it does not read back as it was written: {problem}")
        _replace(aside, final)
        flush_folder(folder)
    except WRITE_ERRORS:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _replace(aside: Path, final: Path) -> None:
    """Put a checkpoint where one of the same step may be; that one goes when the new one is there.

    `_settle_replaced` brings it back for a run that was killed in between.
    """
    old = final.with_suffix(REPLACED)
    if final.exists():
        put_in_place(final, old)
    try:
        put_in_place(aside, final)
    except OSError:
        if old.exists():
            put_in_place(old, final)
        raise
    _remove(old)


def _settle_replaced(folder: Path) -> None:
    """What was being replaced comes back, or goes where the new one is there."""
    for old in entries(folder):
        if old.suffix != REPLACED:
            continue
        if (final := old.with_suffix("")).exists():
            _remove(old)
        else:
            with suppress(OSError):
                put_in_place(old, final)


def _remove(path: Path) -> None:
    """Delete under another name: who is killed in the middle leaves no torn checkpoint."""
    going = path.with_suffix(".removed")
    shutil.rmtree(going, ignore_errors=True)
    with suppress(OSError):
        path.replace(going)
        shutil.rmtree(going, ignore_errors=True)


# Loading ---------------------------------------------------------------------------------------


class _UnfitError(Exception):
    """It is damaged, or its content is not what this version writes for this adapter."""


def load_newest(
    folder: Path, trainable: Mapping[str, Tensor] | None = None
) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and what is wrong with the newer ones.

    With `trainable`, also only one whose weights have these names and shapes. Checkpoints that are
    passed over are named with the file: `step-00000100 (state.pt is damaged)`.

    Raises:
        UserError: something was learned, and none of the checkpoints can be used. All stay as
            they are: the version that wrote them may read them, or the drive come back. Or the
            drive does not say what is there.
    """
    with suppress(OSError):  # the next line tells
        patiently(partial(_settle_replaced, folder))
    found, passed_over = None, []
    there = _newest_first(look_into(folder))
    unfit: list[Path] = []
    for path in there:
        try:
            found = patiently(partial(_read, path, trainable))
            break
        except _UnfitError as error:
            unfit.append(path)
            passed_over.append(f"{path.name} ({error})")
        except OSError as error:
            passed_over.append(f"{path.name} (it cannot be read: {error})")
    if found is None and any(map(_step, there)):
        raise UserError(
            f"{folder} holds no checkpoint that can be used: {'; '.join(passed_over)}. Go on with "
            "the version and on the drive that they were written with, or add --fresh to start "
            "over."
        )
    for path in unfit:  # out of the way: it must not count among the checkpoints that are kept
        away = path.with_suffix(".damaged")
        shutil.rmtree(away, ignore_errors=True)
        with suppress(OSError):
            path.replace(away)
    return found, passed_over


def saved_steps(folder: Path) -> list[int]:
    """Of the checkpoints that are there, whole or not, newest first.

    Raises:
        UserError: the drive does not say.
    """
    return [_step(path) for path in _newest_first(look_into(folder))]


def newest_progress(folder: Path) -> dict[str, Any]:
    """What the newest one says, unverified; for a question before the start."""
    for step in saved_steps(folder):
        with suppress(OSError, ValueError, RecursionError):
            file = checkpoint_path(folder, step) / "progress.json"
            progress = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(progress, dict):
                return progress
    return {}


def load_step(folder: Path, step: int, trainable: Mapping[str, Tensor]) -> Checkpoint | None:
    """The checkpoint of this step, or None if it is gone, damaged, foreign or too much."""
    try:
        return patiently(partial(_read, checkpoint_path(folder, step), trainable))
    except (_UnfitError, OSError, UserError):
        return None


@memory_must_suffice(NO_MEMORY_TO_READ)
def _read(path: Path, trainable: Mapping[str, Tensor] | None) -> Checkpoint:
    """What is in it.

    Raises:
        _UnfitError: it is of no use.
        OSError, UserError: it cannot be read, or memory runs out, which says nothing about it.
    """
    if reason := damage(path):
        raise _UnfitError(reason)
    return _load(path, trainable)


def _load(path: Path, trainable: Mapping[str, Tensor] | None) -> Checkpoint:
    """Raises _UnfitError where the content is not what this version writes for this adapter."""
    with _reading("weights.safetensors"):
        weights = load_file(path / "weights.safetensors")
        if trainable is not None and _shapes(weights) != _shapes(trainable):
            raise ValueError("names or shapes are those of another adapter")
    with _reading("state.pt"):
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        parts = {name: dict(state[name]) for name in ("optimizer", "scheduler", "scaler")}
    with _reading("progress.json"):
        progress = dict(json.loads((path / "progress.json").read_text(encoding="utf-8")))
        step = progress.pop("step")
        if step != _step(path):
            raise ValueError(f"it is of step {step}")
    return Checkpoint(step=step, weights=weights, progress=progress, **parts)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # foreign content breaks in a way of its own in each library
        if isinstance(error, OSError) or is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:100]
        raise _UnfitError(f"{name} is not what this version writes: {reason}") from None


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in weights.items()}


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    found = (path for path in paths if re.fullmatch(r"step-[0-9]+", path.name))
    return sorted(found, key=_step, reverse=True)
