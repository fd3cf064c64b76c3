"""One training run from start or checkpoint to the finished adapter."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from torch import Tensor

from discord_lora.adapter_folder import RunInfo
from discord_lora.base_model import fetch_weights, load_base_model
from discord_lora.console import UserError, plainly
from discord_lora.conversations.dataset import Dataset
from discord_lora.conversations.packing import TrainingPlan
from discord_lora.finetuning.adapter import attach_adapter, library_versions
from discord_lora.finetuning.calibration import keep_timing, seconds_since_start
from discord_lora.finetuning.checkpoints import Checkpoint, load_step
from discord_lora.finetuning.continuing import check_identity, settings_of_run
from discord_lora.finetuning.for_the_morning import Answering, report_at_the_end, what_failed
from discord_lora.finetuning.keep_awake import kept_awake
from discord_lora.finetuning.keeping import Keeper, newest_for_all
from discord_lora.finetuning.loop import Ending, Events, fit
from discord_lora.finetuning.measured import HeldOut, Moment
from discord_lora.finetuning.mishaps import BAD_STEPS_IN_A_ROW
from discord_lora.finetuning.out_of_memory import try_largest
from discord_lora.finetuning.prediction import announce
from discord_lora.finetuning.processes import is_sharded
from discord_lora.finetuning.run_folder import RunFolder
from discord_lora.finetuning.run_log import RunLog
from discord_lora.finetuning.stopping import stop_on_signal
from discord_lora.finetuning.training_model import TrainingModel
from discord_lora.finetuning.training_state import (
    TrainingState,
    build_state,
    foreign_content_explained,
    lower_rate,
    make_accelerator,
    optimizer_name,
    restore,
)
from discord_lora.hardware import (
    Hardware,
    card_must_answer,
    detect_hardware,
    release_freed_memory,
)
from discord_lora.settings import Settings
from discord_lora.typed_command import script_command, typed_command


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
    """Newer checkpoints that were passed over, and why."""
    identity_hash: str
    """Ties checkpoints to the folder's identity."""
    fetching_seconds: float = 0.0
    """For the model's weights, which the next start will find on this computer."""
    held_out: HeldOut = field(default_factory=HeldOut)
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
        sharded_over = accelerator.num_processes if sharded else 0
        weights = location, hardware, settings.quantization
        fetching_seconds = fetch_weights(*weights, sharded_over=sharded_over)
        model = load_base_model(*weights, sharded_over=sharded_over)
        model = TrainingModel(attach_adapter(model, settings))
        checkpoint, damaged = newest_for_all(accelerator, folder.checkpoints, model.trainable())
        progress = {} if checkpoint is None else checkpoint.progress
        check_identity(folder, progress)
        state = build_state(
            model,
            plan,
            dataset,
            settings_of_run(settings, progress, on_cuda=hardware.is_cuda, sharded=sharded),
            accelerator,
            hardware,
            plainly(console),
        )
        info = RunInfo(
            base_model=settings.base_model,
            quantization=settings.quantization,
            voice=dataset.voice,
            settings=folder.identity,
            data_fingerprint=folder.identity["data"],
            versions=library_versions(),
            steps_before=plan.skip_steps,
        )
        return cls(
            state,
            folder,
            info,
            settings,
            hardware,
            checkpoint,
            damaged,
            folder.identity_hash,
            fetching_seconds,
        )

    def run(self, console: Console) -> Path:
        """Go on from the newest whole checkpoint, or start; returns the adapter's folder.

        Raises:
            Interrupted: a stop was asked for; it says what is saved.
        """
        first_step = self.resume()
        name = self.folder.path.name
        log = RunLog(
            logs=self.folder.logs,
            console=console,
            hardware=self.hardware,
            accelerator=self.state.accelerator,
            steps=self.state.plan.steps,
            first_step=first_step,
            log_every_steps=self.settings.log_every_steps,
            go_on=typed_command(),
            talk=script_command("scripts/chat.py", "--adapter", self.folder.path),
            left_out=lambda: self.state.mishaps.left_out,
        )
        is_main = self.state.accelerator.is_main_process
        report = report_at_the_end(self.folder.logs, console, is_main_process=is_main)
        stopping = stop_on_signal(self.folder.path if is_main else None, log.say)
        awake = kept_awake(log.say, wanted=self.settings.keep_awake)
        # All within the stopping: a closing window waits until the end is told.
        with stopping as stop, report, log, awake, card_must_answer():
            name_damaged(self.damaged, log)
            log.say(
                f"{name} on {self.hardware.name}: "
                + (f"going on after step {first_step:,}" if first_step else "starting")
            )
            keeper = Keeper(
                self.state, self.folder, log, stop, self.settings.save_total_limit, self.answering
            )
            adapter = self.train(keeper, first_step)
        with suppress(OSError):  # of TensorBoard on a full disk: the adapter is safe
            self.state.accelerator.end_training()
        return adapter

    @property
    def progress(self) -> dict[str, Any]:
        return {
            **self.held_out.as_progress(),
            "token_budget": self.state.token_budget,
            "token_budget_set": self.settings.max_tokens_per_microbatch,
            "identity": self.identity_hash,
            "optimizer": self.state.optimizer_name,
            "device": self.hardware.name,
            **self.state.mishaps.as_progress(),
        }

    def resume(self) -> int:
        """Steps already done, restored from the newest whole checkpoint.

        Raises:
            UserError: it was written by another version.
        """
        checkpoint, self.checkpoint = self.checkpoint, None  # its memory is wanted for training
        return 0 if checkpoint is None else self._restore(checkpoint)

    def _restore(self, checkpoint: Checkpoint) -> int:
        with foreign_content_explained(checkpoint.step):
            restore(self.state, checkpoint)
            self.held_out = HeldOut.of(checkpoint.progress)
        return checkpoint.step

    def train(self, keeper: Keeper, first_step: int) -> Path:
        """Train to the end and write the adapter.

        Raises:
            Interrupted: a stop was asked for; it says what is saved.
        """
        log = keeper.log
        largest_row = self._look_ahead(log, first_step)
        start_up = seconds_since_start() - self.fetching_seconds
        self.state.model.register_forward_pre_hook(lambda *_: log.beat())  # each micro-batch
        self._measure_what_is_due(keeper, first_step)
        events = Events(
            stepped=log.stepped,
            save=lambda step: self._save(keeper, step),
            measure=lambda step: self._measure(keeper, "epoch", step),
            go_back=lambda: self._go_back(keeper),
            incident=log.incident,
            stop_requested=keeper.stop.made,
            hurried=lambda: keeper.stop.in_a_hurry,
            save_every_steps=self.settings.save_every_steps,
            eval_every_steps=self.settings.eval_every_steps,
        )
        patience = self.settings.early_stopping_patience
        ending: Ending = "early"
        if not self.held_out.measured.is_out_of_patience(patience):  # it may be killed after that
            ending = fit(self.state, events, first_step)
        if ending == "stopped":
            raise log.interrupted("Everything is saved.")
        training_seconds = log.training_seconds
        last_step, early = self.state.plan.steps, ""
        if ending == "finished":
            self._measure(keeper, "trained", last_step)
        else:
            last_step = self.held_out.measured.last_step
            early = f"stopping early: no lower held-out loss in {patience} measurements"
            log.say(early)
        self._write_adapter(keeper, last_step, early)
        if ending == "finished":
            try:
                keep_timing(
                    self.state,
                    self.settings,
                    self.hardware,
                    seconds=training_seconds,
                    first_step=first_step,
                    largest_row=largest_row,
                    start_up_seconds=start_up,
                    save_seconds=keeper.save_seconds,
                )
            except Exception as error:  # the adapter is safe: this costs the next estimate, no more
                log.say(f"no timing for the next estimate: {what_failed(error)}")
        return self.folder.path

    def _look_ahead(self, log: RunLog, first_step: int) -> int:
        """Try the largest micro-batch and say when the run ends; returns that one's tokens."""
        with log.aside("the try of the largest micro-batch"):
            tokens = try_largest(self.state, log.incident, first_step)
        if tokens:  # else all steps were done before
            log.say(f"the largest micro-batch, {tokens:,} tokens, fits: {log.memory}")
        release_freed_memory()
        with log.aside("the prediction"):
            announce(
                self.state,
                self.settings,
                self.hardware,
                log,
                voice=self.info.voice.name,
                first_step=first_step,
                largest_row=tokens,
            )
        return tokens

    def _measure_what_is_due(self, keeper: Keeper, step: int) -> None:
        """Before the first step, and where a window that closed left no time for it.

        Raises:
            Interrupted: a stop was asked for before the first step.
            UserError: the checkpoint before the first step cannot be written.
        """
        if "base_nats_per_token" not in self.held_out.losses and not step:
            self._measure(keeper, "base", 0)
            # A place to go back to, and the proof that there is room for it.
            if error := self._save(keeper, 0):
                raise error
        was_due = self.held_out.due
        if was_due:
            self._measure(keeper, "epoch", step)
        # At once: a run that is killed before the next checkpoint need not measure it again.
        if was_due and not self.held_out.due and (error := self._save(keeper, step)):
            keeper.log.incident(
                "not_saved", f"what was measured after step {step:,} is not saved. {error}"
            )

    def _save(self, keeper: Keeper, step: int) -> UserError | None:
        """Returns why there is no checkpoint."""
        error = keeper.save(step, self.progress, self.held_out.measured.best_step)
        self.held_out.note_save(failed=error is not None)
        return error

    def _go_back(self, keeper: Keeper) -> int:
        """To the newest whole checkpoint, with a lower rate; returns its step.

        Raises:
            UserError: there is none.
        """
        state = self.state
        checkpoint, damaged = newest_for_all(
            state.accelerator, self.folder.checkpoints, state.trainable()
        )
        name_damaged(damaged, keeper.log)
        if checkpoint is None:
            raise UserError(
                f"Losses are not finite, and {self.folder.checkpoints} holds no whole checkpoint "
                "to go back to; start over with --fresh and a lower LEARNING_RATE."
            )
        mishaps = state.mishaps  # newer than those of the checkpoint
        step = self._restore(checkpoint)
        state.mishaps = mishaps
        rate = lower_rate(state)
        keeper.log.went_back(
            step,
            f"{BAD_STEPS_IN_A_ROW} steps in a row were not finite: going on from step {step:,} "
            f"with a learning rate of {rate:.1e}",
        )
        if self.held_out.due:
            self._measure(keeper, "epoch", step)
        return step

    def _write_adapter(self, keeper: Keeper, last_step: int, early: str) -> None:
        weights = self._chosen_weights(keeper.log, last_step)
        keeper.write_adapter(weights, self.info, self.held_out.measured.best_step)
        # At once: whoever is killed from here on finds a run that has ended.
        chosen = f"the adapter is that of step {self.info.steps:,}"
        keeper.log.ended("finished", f"{early}; {chosen}" if early else chosen)

    def _chosen_weights(self, log: RunLog, last_step: int) -> dict[str, Tensor]:
        """Those with the lowest held-out loss; where no others had a lower one, the last."""
        held_out, measured, state = self.held_out, self.held_out.measured, self.state
        weights, self.info.steps = state.whole_weights(), last_step
        held_out.note("trained", measured.last)
        if measured.best_step not in (0, last_step):
            best = load_step(self.folder.checkpoints, measured.best_step, state.trainable())
            if best is not None:
                weights, self.info.steps = best.weights, best.step
                held_out.note("last", measured.last)
                held_out.note("trained", measured.best)
                log.say(f"the adapter is that of step {best.step:,}, with the lowest held-out loss")
            else:
                log.incident(
                    "best_lost",
                    f"the checkpoint of step {measured.best_step:,}, with the lowest held-out "
                    "loss, is gone or damaged: the adapter is that of the last step",
                )
        self.info.losses = held_out.losses
        return weights

    def _measure(self, keeper: Keeper, moment: Moment, step: int) -> bool:
        """True when the loss has not become better for as long as the settings say."""
        self.held_out.measure(self.state, keeper, moment, step)
        patience = self.settings.early_stopping_patience
        return self.held_out.measured.is_out_of_patience(patience)


def name_damaged(checkpoints: list[str], log: RunLog) -> None:
    for checkpoint in checkpoints:
        log.incident("damaged_checkpoint", f"checkpoint passed over: {checkpoint}")
