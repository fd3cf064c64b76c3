"""What was timed on this machine, kept for the next estimate: a JSON line a calibration or run."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from discord_lora.analysis.plan.memory import ActivationBytes
from discord_lora.analysis.plan.time_model import TimeModel
from discord_lora.settings import Settings

FILE_NAME = "timings.jsonl"
"""In LOGS_DIR."""

DECIDING = (
    "base_model",
    "quantization",
    "lora_r",
    "lora_dropout",
    "lora_target_modules",
    "optimizer",
    "packing",
    "gradient_checkpointing",
)
"""Settings that change what a token costs. How many tokens there are is no matter of these."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What one calibration or one run found out."""

    machine: str
    """Device and threads: `CPU x 2`, `NVIDIA GeForce RTX 2080 Ti`."""
    settings: Mapping[str, Any]
    """Those of `DECIDING`."""
    time: TimeModel
    activations: ActivationBytes
    checkpointed: int
    """Layers, of those that `activations` counts."""
    base_bytes: float
    """Memory beside what a micro-batch takes: process, weights, adapter."""
    start_up_seconds: float
    """From the start of the program to the first step."""
    save_seconds: float
    """Of one checkpoint."""
    when: str = ""
    loading_bytes: float = 0.0
    """Most that was held before the first micro-batch, while weights were read and quantized."""

    def peak_bytes(self, row_tokens: int) -> float:
        """Most memory of a run whose largest micro-batch has so many tokens."""
        trained = self.base_bytes + self.activations.needed(row_tokens, self.checkpointed)
        return max(self.loading_bytes, trained)


def deciding(settings: Settings) -> dict[str, Any]:
    """The settings by which timings are found again."""
    plain = settings.model_dump(mode="json", include=set(DECIDING))
    return {name: plain[name] for name in DECIDING}


def newest_timing(folder: Path, machine: str | None, settings: Settings) -> Timing | None:
    """Of this machine (None: of any), this model and these settings; None if there is none.

    Lines that cannot be read are passed over: timings are a help, not a need.
    """
    found = None
    with suppress(OSError):
        for line in (folder / FILE_NAME).read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, TypeError, KeyError, RecursionError):
                timing = _from_plain(json.loads(line))
                if machine in (None, timing.machine) and timing.settings == deciding(settings):
                    found = timing
    return found


def add_timing(folder: Path, timing: Timing) -> None:
    """Append a line. A folder that cannot be written costs the line, not the run."""
    plain = asdict(timing) | {"when": datetime.now().astimezone().isoformat(timespec="seconds")}
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / FILE_NAME).open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(plain) + "\n")


def _from_plain(plain: dict[str, Any]) -> Timing:
    parts = {
        "time": TimeModel(**plain["time"]),
        "activations": ActivationBytes(**plain["activations"]),
    }
    return Timing(**{**plain, **parts})
