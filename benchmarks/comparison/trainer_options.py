"""What `transformers.Trainer` and TRL's trainer, which stands on it, are both told."""

from typing import Any

from transformers import TrainerCallback

from comparison.measure import Stopwatch
from discord_lora.hardware import Hardware
from discord_lora.settings import Settings


def trainer_options(settings: Settings, hardware: Hardware, steps: int) -> dict[str, Any]:
    """The project's own settings in Trainer's words: one epoch, same optimizer, same schedule."""
    return {
        "output_dir": str(settings.output_dir),
        "num_train_epochs": 1,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler,
        "warmup_steps": round(steps * settings.warmup_ratio),
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "optim": "adamw_torch",
        "seed": settings.seed,
        # Said outright: TRL turns bf16 on wherever fp16 is off, on a CPU and on a Turing card too.
        "bf16": hardware.precision == "bf16",
        "fp16": hardware.precision == "fp16",
        "use_cpu": not hardware.is_cuda,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
    }


class TimedTraining(TrainerCallback):
    """Times from before the first batch is fetched to after the last optimizer step."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self.stopwatch = stopwatch

    def on_train_begin(self, *_arguments: Any, **_more: Any) -> None:
        self.stopwatch.start()

    def on_train_end(self, *_arguments: Any, **_more: Any) -> None:
        self.stopwatch.stop()
