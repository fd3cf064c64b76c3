"""What a run says while it works: progress bar, `training.log`, `metrics.jsonl`, TensorBoard."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self, TextIO

from accelerate import Accelerator
from rich.console import Console

from discord_lora.console import UserError, make_progress
from discord_lora.finetuning.loop import HeldOutLoss, StepResult
from discord_lora.hardware import Hardware


def format_duration(seconds: float) -> str:
    """`1:02:03`, or `2 days, 1:02:03`."""
    return str(timedelta(seconds=round(seconds)))


class RunLog:
    """Reports one training run. Use it as a context manager: it owns the bar and the file."""

    def __init__(
        self,
        *,
        folder: Path,
        run: str,
        console: Console,
        hardware: Hardware,
        accelerator: Accelerator,
        steps: int,
        first_step: int,
        log_every_steps: int,
    ) -> None:
        self.console = console
        self.hardware = hardware
        self.accelerator = accelerator
        self.run = run
        self.steps = steps
        self.first_step = first_step
        self.log_every_steps = log_every_steps
        self.started = time.perf_counter()
        self.paused = 0.0
        self.messages = 0
        self.tokens = 0
        names = ["training.log", "metrics.jsonl"]
        if not accelerator.is_main_process:
            names = [os.devnull, os.devnull]  # one of several processes speaks for all
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.text, self.metrics = (
                (folder / name).open("a", encoding="utf-8", newline="\n") for name in names
            )
        except OSError as error:
            raise UserError(f"LOGS_DIR: cannot write into {folder} ({error}).") from None
        self.progress = make_progress(console)
        self.bar = self.progress.add_task("training", total=steps, completed=first_step)

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self.progress.stop()
        if error is not None:
            # In the morning the log has to say why it ended.
            self._write_line(f"stopped: {str(error) or type(error).__name__}")
        for file in (self.text, self.metrics):
            with suppress(OSError):  # a full disk must not hide why the run ended
                file.close()

    def say(self, sentence: str) -> None:
        """A line for the log and for whoever is watching."""
        self._write_line(sentence)
        self.console.print(sentence, markup=False)

    @property
    def training_seconds(self) -> float:
        """So far, without what was done aside."""
        return time.perf_counter() - self.started - self.paused

    @property
    def memory(self) -> str:
        used, total = self.hardware.used_bytes(), self.hardware.total_bytes
        return f"memory {used / 1e9:.1f} of {total / 1e9:.1f} GB"

    def stepped(self, result: StepResult) -> None:
        """Count one optimizer step; write a line every LOG_EVERY_STEPS and after the last."""
        loss = result.loss
        self.messages += result.messages
        self.tokens += result.tokens
        self.progress.update(self.bar, completed=result.step)
        if loss is None:
            return
        self.progress.update(self.bar, description=f"training, loss {loss:.3f}")
        if result.step % self.log_every_steps and result.step != self.steps:
            return
        elapsed = self.training_seconds
        rate = elapsed / (result.step - self.first_step)
        line = (
            f"step {result.step:,} of {self.steps:,}  loss {loss:.4f}  "
            f"learning rate {result.learning_rate:.2e}  {self.messages / elapsed:.2f} messages/s  "
            f"{self.tokens / elapsed:.0f} tokens/s  {self.memory}  "
            f"left {format_duration(rate * (self.steps - result.step))}"
        )
        self._write_line(line)
        if not self.console.is_terminal:
            self.console.print(line, markup=False)
        self._measure(
            result.step,
            {
                "loss": loss,
                "learning_rate": result.learning_rate,
                "messages_per_second": self.messages / elapsed,
                "tokens_per_second": self.tokens / elapsed,
                "memory_gb": self.hardware.used_bytes() / 1e9,
            },
        )

    def held_out(self, step: int, loss: HeldOutLoss) -> None:
        """Report one measurement of the held-out loss."""
        self.say(
            f"held-out loss after step {step:,}: {loss.nats_per_token:.4f} nats/token, perplexity "
            f"{loss.perplexity:.1f}, {loss.bits_per_character:.4f} bits/character "
            f"({loss.messages:,} messages)"
        )
        self._measure(
            step,
            {
                "held_out_loss": loss.nats_per_token,
                "held_out_bits_per_character": loss.bits_per_character,
            },
        )

    def incident(self, _what: str, sentence: str) -> None:
        self.say(sentence)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time spent here is not training time: rates and the time left leave it out."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.paused += time.perf_counter() - started

    def _write_line(self, text: str) -> None:
        now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        _append(self.text, f"{now}  {text}\n")

    def _measure(self, step: int, values: dict[str, Any]) -> None:
        record = {"run": self.run, "time": time.time(), "step": step, **values}
        _append(self.metrics, json.dumps(record) + "\n")
        with suppress(OSError):
            self.accelerator.log(values, step=step)


def _append(file: TextIO, line: str) -> None:
    """A log that cannot be written costs the line, not the run."""
    with suppress(OSError):
        file.write(line)
        file.flush()
