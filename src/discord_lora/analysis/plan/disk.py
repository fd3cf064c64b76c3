"""The room that a run's checkpoints will take, known before the first one is written."""

import shutil
from dataclasses import dataclass
from pathlib import Path

WEIGHT_BYTES = 4
"""Of a trainable number in a checkpoint and in the adapter: fp32."""

OVERHEAD = 1.02
"""Names and shapes beside the numbers, and the scales of 8-bit moments: one in 4 bytes for 256."""

BEST_AND_ASIDE = 2
"""Checkpoints beside the newest: the best one, and the one that is being written."""


@dataclass(frozen=True, slots=True)
class Room:
    """On the disk of OUTPUT_DIR."""

    checkpoint_bytes: float
    checkpoints: int
    """Most that exist at one time."""
    adapter_bytes: float
    there_bytes: float
    """That the run's earlier checkpoints take already, and that will be taken anew."""
    free_bytes: float

    @property
    def needed_bytes(self) -> float:
        """More than is taken already."""
        whole = self.checkpoints * self.checkpoint_bytes + self.adapter_bytes
        return max(0.0, whole - self.there_bytes)

    @property
    def is_enough(self) -> bool:
        return self.needed_bytes <= self.free_bytes


def room_for(run: Path, trainable: int, moment_bytes: float, save_total_limit: int) -> Room:
    """What a run in this folder needs, and what there is.

    Args:
        run: its folder, which need not exist yet.
        trainable: numbers in the adapter.
        moment_bytes: that the optimizer keeps for each of them.
        save_total_limit: newest checkpoints that stay.

    Raises:
        OSError: the disk cannot be asked.
    """
    return Room(
        checkpoint_bytes=OVERHEAD * trainable * (WEIGHT_BYTES + moment_bytes),
        checkpoints=save_total_limit + BEST_AND_ASIDE,
        adapter_bytes=OVERHEAD * trainable * WEIGHT_BYTES,
        there_bytes=sum(it.stat().st_size for it in run.rglob("*") if it.is_file()),
        free_bytes=shutil.disk_usage(nearest_folder(run)).free,
    )


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(it for it in (path.absolute(), *path.absolute().parents) if it.exists())
