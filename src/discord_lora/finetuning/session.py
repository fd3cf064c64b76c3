"""One training run from start or checkpoint to the finished adapter."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console

from discord_lora.adapter_folder import RunInfo
from discord_lora.analysis.plan.timings import add_timing
from discord_lora.base_model import load_base_model
from discord_lora.console import Interrupted, plainly
from discord_lora.conversations.dataset import Dataset
from discord_lora.conversations.packing import TrainingPlan
from discord_lora.finetuning.adapter import attach_adapter, library_versions, save_adapter
from discord_lora.finetuning.calibration import seconds_since_start, timing_of_run
from discord_lora.finetuning.checkpoints import Checkpoint, load_newest, save_checkpoint
from discord_lora.finetuning.for_the_morning import (
    Answering,
    note_answers,
    report_at_the_end,
    write_report_or_say,
)
from discord_lora.finetuning.loop import Events, HeldOutLoss, evaluate, fit
from discord_lora.finetuning.out_of_memory import try_largest
from discord_lora.finetuning.processes import is_sharded
from discord_lora.finetuning.run_folder import RunFolder
from discord_lora.finetuning.run_log import RunLog
from discord_lora.finetuning.training_model import TrainingModel
from discord_lora.finetuning.training_state import (
    TrainingState,
    build_state,
    make_accelerator,
    optimizer_name,
    restore,
    snapshot,
)
from discord_lora.hardware import Hardware, detect_hardware
from discord_lora.settings import Settings

LEAST_STEPS_TIMED = 20
"""Fewer steps say little about the next run."""


@dataclass(slots=True)
class Session:
    """A run in its folder."""

    state: TrainingState
    folder: RunFolder
    info: RunInfo
    settings: Settings
    hardware: Hardware
    checkpoint: Checkpoint | None
    """To go on from: the newest whole one."""
    damaged: list[str]
    """Newer checkpoints that were passed over."""
    losses: dict[str, float] = field(default_factory=dict)
    save_seconds: float = 0.0
    """Of the last checkpoint."""
    answering: Answering | None = None
    """Answers the sample questions at each checkpoint."""

    @classmethod
    def open(
        cls,
        settings: Settings,
        dataset: Dataset,
        plan: TrainingPlan,
        *,
        location: str,
        folder: RunFolder,
        console: Console,
    ) -> "Session":
        """Load the model, attach the adapter, build what the loop works on.

        Raises:
            UserError: model, adapter settings or memory do not fit.
        """
        hardware = detect_hardware(PartialState().local_process_index)
        accelerator = make_accelerator(settings, hardware, folder.path.name)
        sharded = is_sharded(accelerator)
        optimizer_name(settings, on_cuda=hardware.is_cuda, sharded=sharded)
        model = load_base_model(
            location,
            hardware,
            settings.quantization,
            sharded_over=accelerator.num_processes if sharded else 0,
        )
        model = TrainingModel(attach_adapter(model, settings))
        checkpoint, damaged = load_newest(folder.checkpoints)
        if checkpoint is not None:
            settings = with_its_token_budget(settings, checkpoint)
        state = build_state(model, plan, dataset, settings, accelerator, hardware, plainly(console))
        info = RunInfo(
            base_model=settings.base_model,
            quantization=settings.quantization,
            voice=dataset.voice,
            settings=folder.identity,
            data_fingerprint=folder.identity["data"],
            versions=library_versions(),
            steps_before=plan.skip_steps,
        )
        return cls(state, folder, info, settings, hardware, checkpoint, damaged)

    def run(self, console: Console) -> Path:
        """Go on from the newest whole checkpoint, or start; returns the adapter's folder.

        Raises:
            Interrupted: Ctrl+C or SIGTERM; everything is saved.
        """
        first_step = self.resume()
        name = self.folder.path.name
        log = RunLog(
            folder=self.settings.logs_dir,
            run=name,
            console=console,
            hardware=self.hardware,
            accelerator=self.state.accelerator,
            steps=self.state.plan.steps,
            first_step=first_step,
            log_every_steps=self.settings.log_every_steps,
        )
        is_main = self.state.accelerator.is_main_process
        report = report_at_the_end(self.history_folder, console, is_main_process=is_main)
        with report, log, stop_on_signal() as stop_requested:
            for checkpoint in self.damaged:
                log.say(f"checkpoint {checkpoint} is damaged and was passed over")
            log.say(
                f"{name} on {self.hardware.name}: "
                + (f"going on after step {first_step:,}" if first_step else "starting")
            )
            adapter = self.train(log, first_step, stop_requested)
        self.state.accelerator.end_training()
        return adapter

    @property
    def progress(self) -> dict[str, Any]:
        return {"losses": self.losses, "token_budget": self.state.token_budget}

    @property
    def history_folder(self) -> Path:
        """Of the run's history and report."""
        return self.settings.logs_dir / self.folder.path.name

    def resume(self) -> int:
        """Steps already done, restored from the newest whole checkpoint."""
        checkpoint, self.checkpoint = self.checkpoint, None  # its memory is wanted for training
        if checkpoint is None:
            return 0
        restore(self.state, checkpoint)
        self.losses.update(checkpoint.progress["losses"])
        return checkpoint.step

    def train(self, log: RunLog, first_step: int, stop_requested: Callable[[], bool]) -> Path:
        """Train to the end and write the adapter.

        Raises:
            Interrupted: a stop was asked for; everything is saved.
        """
        with log.aside():
            tokens = try_largest(self.state, log.budget_halved, first_step)
        log.say(f"the largest micro-batch, {tokens:,} tokens, fits: {log.memory}")
        start_up = seconds_since_start()
        if not first_step:
            self._note_answers(log, 0)
        if "base_nats_per_token" not in self.losses:
            self._measure(log, "base", 0, stop_requested)
        events = Events(
            stepped=log.stepped,
            save=lambda step: self._save(log, step),
            epoch_ended=lambda step: self._measure(log, "epoch", step, stop_requested),
            budget_halved=log.budget_halved,
            stop_requested=stop_requested,
            save_every_steps=self.settings.save_every_steps,
            read_every_steps=self.settings.log_every_steps if self.hardware.is_cuda else 1,
        )
        if not fit(self.state, events, first_step):
            raise Interrupted("Stopped and saved. Run the same command again to go on.")
        training_seconds = log.training_seconds
        self._measure(log, "trained", self.state.plan.steps, stop_requested)
        self.info.steps = self.state.plan.steps
        self.info.losses = self.losses
        weights = {
            name.removeprefix("model."): weight
            for name, weight in self.state.whole_weights().items()
        }
        if self.state.accelerator.is_main_process:
            save_adapter(self.state.training_model.model, weights, self.info, self.folder.path)
        self.state.accelerator.wait_for_everyone()
        # The adapter is safe: what goes wrong from here on may cost the next estimate, no more.
        with suppress(KeyError, TypeError, ValueError, ZeroDivisionError):
            self._keep_timing(training_seconds, first_step, tokens, start_up)
        return self.folder.path

    def _keep_timing(
        self, seconds: float, first_step: int, largest_row: int, start_up_seconds: float
    ) -> None:
        """What this run took, for the next estimate."""
        done = self.state.plan.steps - first_step
        if self.state.accelerator.num_processes > 1 or done < LEAST_STEPS_TIMED:
            return
        timing = timing_of_run(
            self.state,
            self.settings,
            self.hardware,
            seconds=seconds,
            first_step=first_step,
            largest_row=largest_row,
            start_up_seconds=start_up_seconds,
            save_seconds=self.save_seconds,
        )
        add_timing(self.settings.logs_dir, timing)

    def _save(self, log: RunLog, step: int) -> None:
        accelerator = self.state.accelerator
        began = time.perf_counter()
        with log.aside():
            checkpoint = snapshot(self.state, step, self.progress)
            if accelerator.is_main_process:
                save_checkpoint(self.folder.checkpoints, checkpoint)
            accelerator.wait_for_everyone()
        self.save_seconds = time.perf_counter() - began
        self._note_answers(log, step)

    def _note_answers(self, log: RunLog, step: int) -> None:
        """What the model says by now to the sample questions, and the report up to here."""
        with log.aside():
            if self.answering is not None:
                note_answers(self.state, self.answering, self.history_folder, step, log.say)
            if self.state.accelerator.is_main_process:
                write_report_or_say(self.history_folder, log.say)

    def _measure(
        self, log: RunLog, name: str, step: int, stop_requested: Callable[[], bool]
    ) -> None:
        """Measure the held-out loss. A stop that is asked for meanwhile loses nothing."""
        total = sum(example.targets for example in self.state.validation)
        bar = log.progress.add_task("measuring held-out loss", total=total)

        def watch(messages: int) -> None:
            log.progress.update(bar, completed=messages)
            alone = self.state.accelerator.num_processes == 1
            if stop_requested() and name != "epoch" and alone:
                raise Interrupted("Stopped. Run the same command again to go on.")

        with log.aside():
            loss = evaluate(self.state, watch, log.budget_halved)
        log.progress.remove_task(bar)
        if loss is not None:
            log.held_out(step, loss)
            self._note(name, loss)

    def _note(self, name: str, loss: HeldOutLoss) -> None:
        self.losses[f"{name}_nats_per_token"] = loss.nats_per_token
        self.losses[f"{name}_bits_per_character"] = loss.bits_per_character


def with_its_token_budget(settings: Settings, checkpoint: Checkpoint) -> Settings:
    """Where memory decides, the run goes on as it was decided then, whatever is free now.

    Other rows would sum in another order: with another program open, the same run would end with
    other bits. How many layers are checkpointed is decided anew: it changes none.
    """
    budget = checkpoint.progress.get("token_budget", "auto")
    if settings.max_tokens_per_microbatch != "auto":
        return settings
    return settings.model_copy(update={"max_tokens_per_microbatch": budget})


def join_processes() -> PartialState:
    """The processes that `accelerate launch` started, or the only one there is."""
    return PartialState(cpu=not torch.cuda.is_available())


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """First Ctrl+C or SIGTERM: finish the step, save, stop. A second Ctrl+C leaves at once."""
    requested: list[int] = []

    def handle(number: int, _frame: object) -> None:
        if requested:
            raise KeyboardInterrupt
        requested.append(number)
        # Not through the log or rich: the signal may have come while they were writing.
        os.write(2, b"\nStopping after this step and saving; Ctrl+C again leaves at once.\n")

    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    kinds = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {kind: signal.signal(kind, handle) for kind in kinds}
    try:
        yield lambda: bool(requested)
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
