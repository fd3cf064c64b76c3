"""What a run says while it works: progress bar, `training.log`, its history, TensorBoard."""

import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Self

from accelerate import Accelerator
from rich.console import Console

from discord_lora.analysis.morning.history import Kind, append_event
from discord_lora.console import Interrupted, UserError, make_progress, words_of
from discord_lora.finetuning.calibration import seconds_since_start
from discord_lora.finetuning.loop import HeldOutLoss, StepResult
from discord_lora.finetuning.telemetry import CardWatch, Reading
from discord_lora.finetuning.text_log import TextLog
from discord_lora.finetuning.watchdog import Watchdog
from discord_lora.hardware import Hardware

LOG_FILE = "training.log"

RECENT_LINES = 20
"""The time left is told by the pace since so many lines ago: a night's pace changes."""


def format_duration(seconds: float) -> str:
    """`1:02:03`, or `2 days, 1:02:03`."""
    return str(timedelta(seconds=round(seconds)))


@dataclass(frozen=True, slots=True)
class Mark:
    """What this process had done when a line was written."""

    seconds: float = 0.0
    """Of training."""
    steps: int = 0
    messages: int = 0
    tokens: int = 0


class RunLog:
    """Reports one training run. Use it as a context manager: it owns bar, files and watchdog.

    Of several processes only the main one writes.
    """

    def __init__(
        self,
        *,
        logs: Path,
        console: Console,
        hardware: Hardware,
        accelerator: Accelerator,
        steps: int,
        first_step: int,
        log_every_steps: int,
        go_on: str = "",
        talk: str = "",
        left_out: Callable[[], dict[str, int]] = dict,
    ) -> None:
        """For the run whose history is in `logs`; `training.log` is beside that folder.

        `go_on` and `talk`: the commands to type after a run that stopped, and a finished one.
        `left_out`: how many steps taught nothing so far, for the history.

        Raises:
            UserError: `logs` cannot be written.
        """
        self.console = console
        self.hardware = hardware
        self.accelerator = accelerator
        self.steps = steps
        self.first_step = first_step
        self.step = first_step
        self.log_every_steps = log_every_steps
        self.go_on, self.talk = go_on, talk
        self.started = time.perf_counter()
        self.paused = 0.0
        self.aside_since: float | None = None
        self.slept = 0.0
        self.steps_taken = 0
        self.messages = 0
        self.tokens = 0
        self.marks = deque([Mark()], maxlen=RECENT_LINES)
        self.left_out = left_out
        self.history = logs
        self.text: TextLog | None = None
        self.ended_already = False
        if accelerator.is_main_process:
            try:
                self.history.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"LOGS_DIR: cannot write into {self.history} ({error}).") from None
            self.text = TextLog(logs.parent / LOG_FILE)
        self.card = CardWatch(hardware.device)
        self.watchdog = Watchdog(
            incident=self.incident,
            write=self._write_line,
            slept=self._slept,
            counter=lambda: self.training_seconds,
            first_step=first_step,
        )
        self.progress = make_progress(console)
        self.bar = self.progress.add_task("training", total=steps, completed=first_step)

    def __enter__(self) -> Self:
        self.event("start", step=self.first_step)
        with suppress(OSError):  # the terminal may be gone
            self.progress.start()
        self.watchdog.__enter__()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self.watchdog.__exit__()
        with suppress(OSError):
            self.progress.stop()
        if error is None:
            self.ended("finished", "the adapter is finished")
        elif isinstance(error, Interrupted | KeyboardInterrupt):
            lines = str(error).splitlines() or ["left at once; the last checkpoint is whole"]
            self.ended("stopped", lines[0])
        else:
            if not isinstance(error, UserError):
                self._write_line("".join(traceback.format_exception(error)).rstrip())
            self.ended("failed", words_of(error))
        if self.text:
            self.text.close()

    def interrupted(self, sentence: str) -> Interrupted:
        """To be raised where a run stops as it was asked to; `sentence` says what is saved."""
        return Interrupted(f"{sentence}\nRun the same command again to go on:\n  {self.go_on}")

    def say(self, sentence: str) -> None:
        """A line for the log and for whoever is watching."""
        self._write_line(sentence)
        self._show(sentence)

    def event(self, kind: Kind, **values: Any) -> None:
        """A line for the run's history; what each kind holds is documented there."""
        if self.text:
            append_event(self.history, kind, **values)

    def incident(self, what: str, sentence: str) -> None:
        """Something out of the ordinary, for the log, the history and whoever is watching.

        `what` is one word for it, such as `out_of_memory`. From any thread.
        """
        self.event("incident", step=self.step, what=what, sentence=sentence)
        self.say(sentence)

    def went_back(self, step: int, sentence: str) -> None:
        """An incident after which the run goes on from an earlier `step`."""
        self.event("incident", step=self.step, what="went_back", back_to=step, sentence=sentence)
        self.say(sentence)
        self.step = step
        self.progress.update(self.bar, completed=step)

    def saved(self, step: int, seconds: float, folder: Path) -> None:
        """A checkpoint is on the disk, in `folder`."""
        size = 0
        with suppress(OSError):
            size = sum(file.stat().st_size for file in folder.iterdir())
        self.event("saved", step=step, seconds=round(seconds, 3), bytes=size)

    def ended(self, outcome: Literal["finished", "stopped", "failed"], sentence: str) -> None:
        """The end, told once: leaving the context does it if nobody did before."""
        if self.ended_already:
            return
        self.ended_already = True
        self._write_line(f"{outcome}: {sentence}")
        self.event(
            "end",
            step=self.step,
            outcome=outcome,
            sentence=sentence,
            seconds=round(seconds_since_start(), 1),
            peak_bytes=self.hardware.peak_bytes(),
            **self.left_out(),
            next_command=self.talk if outcome == "finished" else self.go_on,
        )

    @property
    def training_seconds(self) -> float:
        """So far, without what was done aside and what the computer slept beside that."""
        since = self.aside_since
        now = time.perf_counter() if since is None else since
        return now - self.started - self.paused - self.slept

    @property
    def memory(self) -> str:
        return self._memory(self.hardware.used_bytes())

    def stepped(self, result: StepResult) -> None:
        """Count one optimizer step; write a line every LOG_EVERY_STEPS and after the last."""
        loss = result.loss
        self.step = result.step
        self.steps_taken += 1
        self.watchdog.stepped(result.step)
        self.messages += result.messages
        self.tokens += result.tokens
        self.progress.update(self.bar, completed=result.step)
        if loss is None:
            return
        self.progress.update(self.bar, description=f"training, loss {loss:.3f}")
        if result.step % self.log_every_steps == 0 or result.step == self.steps:
            self._report(result, loss, self.card.read())

    def _report(self, result: StepResult, loss: float, card: Reading) -> None:
        now = Mark(self.training_seconds, self.steps_taken, self.messages, self.tokens)
        # Sleep that came to light after a line was written is taken off: then that line lies ahead.
        marks = [mark for mark in self.marks if mark.seconds < now.seconds] or [Mark()]
        last, first = marks[-1], marks[0]
        self.marks.append(now)
        pace = (now.seconds - first.seconds) / (now.steps - first.steps)
        memory = self.hardware.used_bytes() if card.memory_bytes is None else card.memory_bytes
        figures = {
            "loss": loss,
            "learning_rate": result.learning_rate,
            "messages_per_second": (now.messages - last.messages) / (now.seconds - last.seconds),
            "tokens_per_second": (now.tokens - last.tokens) / (now.seconds - last.seconds),
        }
        line = (
            f"step {result.step:,} of {self.steps:,}  loss {loss:.4f}  "
            f"learning rate {result.learning_rate:.2e}  "
            f"{figures['messages_per_second']:.2f} messages/s  "
            f"{figures['tokens_per_second']:.0f} tokens/s  {self._memory(memory)}  "
            f"{card.words()}{'  ' if card.words() else ''}"
            f"left {format_duration(pace * (self.steps - result.step))}"
        )
        self._write_line(line)
        if not self.console.is_terminal:
            self._show(line)
        self.event(
            "step",
            step=result.step,
            **figures,
            memory_bytes=memory,
            peak_bytes=self.hardware.peak_bytes(),
            **self.left_out(),
            **card.event(),
        )
        of_card = {name: value for name, value in card.event().items() if name != "throttled"}
        self._track(result.step, {**figures, "memory_gb": memory / 1e9, **of_card})
        too_hot = self.card.too_hot_for_long(card)
        if too_hot:
            self.incident("heat", too_hot)

    def held_out(self, step: int, loss: HeldOutLoss) -> None:
        """Report one measurement of the held-out loss."""
        self.say(
            f"held-out loss after step {step:,}: {loss.nats_per_token:.4f} nats/token, perplexity "
            f"{loss.perplexity:.1f}, {loss.bits_per_character:.4f} bits/character "
            f"({loss.messages:,} messages)"
        )
        figures = {
            "nats_per_token": loss.nats_per_token,
            "bits_per_character": loss.bits_per_character,
        }
        self.event("held_out", step=step, **figures, messages=loss.messages)
        self._track(
            step,
            {
                "held_out_loss": loss.nats_per_token,
                "held_out_bits_per_character": loss.bits_per_character,
            },
        )

    def beat(self) -> None:
        """A sign of life from work that takes long: the watchdog wants one."""
        self.watchdog.beat()

    @contextmanager
    def aside(self, work: str = "the work beside training") -> Iterator[None]:
        """Time spent here is not training time: rates and the time left leave it out.

        `work` is what the watchdog calls it.
        """
        began = self.aside_since = time.perf_counter()
        try:
            with self.watchdog.beside(work):
                yield
        finally:
            self.paused += time.perf_counter() - began
            self.aside_since = None

    def _memory(self, used: int) -> str:
        return f"memory {used / 1e9:.1f} of {self.hardware.total_bytes / 1e9:.1f} GB"

    def _slept(self, seconds: float) -> None:
        self.slept += seconds

    def _write_line(self, text: str) -> None:
        if self.text:
            self.text.write(text)

    def _show(self, text: str) -> None:
        with suppress(OSError):  # a terminal that is gone costs its line, not the run
            self.console.print(text, markup=False)

    def _track(self, step: int, values: dict[str, Any]) -> None:
        with suppress(OSError):
            self.accelerator.log(values, step=step)
