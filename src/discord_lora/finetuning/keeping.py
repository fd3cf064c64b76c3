"""What a run writes into its folder as it goes, and how it finds it again: in the main process,
waiting for room on a full disk, while the others wait for it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from discord_lora.adapter_folder import RunInfo
from discord_lora.console import UserError
from discord_lora.finetuning.adapter import save_adapter
from discord_lora.finetuning.checkpoints import (
    Checkpoint,
    drop_oldest,
    load_newest,
    save_checkpoint,
)
from discord_lora.finetuning.disk_room import NoRoom, WaitForRoom
from discord_lora.finetuning.for_the_morning import (
    Answering,
    note_answers,
    write_report_or_say,
)
from discord_lora.finetuning.processes import (
    anywhere,
    is_sharded,
    keep_others_waiting,
    smallest,
    wait_for_main_process,
)
from discord_lora.finetuning.run_folder import RunFolder
from discord_lora.finetuning.run_log import RunLog
from discord_lora.finetuning.stopping import StopRequest
from discord_lora.finetuning.training_state import TrainingState, snapshot

PAUSES = (1.0, 5.0)
"""Seconds between the tries to write."""


@dataclass(slots=True)
class Keeper:
    """Of one run."""

    state: TrainingState
    folder: RunFolder
    log: RunLog
    stop: StopRequest
    checkpoints_kept: int
    answering: Answering | None = None
    """Answers the sample questions at each checkpoint."""
    save_seconds: float = 0.0
    """Of the last checkpoint that did not wait for room."""

    def save(self, step: int, progress: dict[str, Any], best_step: int) -> UserError | None:
        """A checkpoint after `step`, and what the morning is to read about it.

        Returns why there is none; those before are untouched.

        Raises:
            Interrupted: a stop was asked for while the disk was full.
        """
        began = time.perf_counter()
        saved: list[Path] = []
        with self.log.aside("the save"):
            copy = partial(snapshot, self.state, step, progress)
            # Sharded, all processes take part; else it is tried again as writing is.
            gathered = copy() if is_sharded(self.state.accelerator) else None

            def write(no_room: NoRoom) -> None:
                saved.append(
                    save_checkpoint(
                        self.folder.checkpoints,
                        gathered or copy(),
                        keep=self.checkpoints_kept,
                        best_step=best_step,
                        no_room=no_room,
                    )
                )

            try:
                waited = self._write(write)
            except UserError as error:
                return error
        seconds = time.perf_counter() - began - waited
        if not waited:
            self.save_seconds = seconds
        for path in saved:
            self.log.saved(step, seconds, path)
        with self.log.aside("the sample answers"):
            if self.answering is not None and not self.stop.in_a_hurry:
                note_answers(self.state, self.answering, step, self.log.say, self.log.event)
            if self.state.accelerator.is_main_process:
                write_report_or_say(self.folder.logs, self.log.say)
        return None

    def write_adapter(self, weights: dict[str, Tensor], info: RunInfo, best_step: int) -> None:
        """The finished adapter; a full disk costs old checkpoints first, but never the best one.

        Raises:
            UserError, Interrupted: as for `save`.
        """
        named = {name.removeprefix("model."): weight for name, weight in weights.items()}
        self._write(
            lambda no_room: save_adapter(
                self.state.training_model.model,
                named,
                info,
                self.folder.path,
                make_room=lambda: drop_oldest(self.folder.checkpoints, best_step),
                no_room=no_room,
            )
        )

    def _write(self, write: Callable[[NoRoom], object]) -> float:
        """Seconds that it had to wait for room.

        Raises:
            UserError: it cannot be written; in all processes.
            Interrupted: a stop was asked for while the disk was full.
        """
        accelerator = self.state.accelerator

        def still_waiting() -> None:
            self.log.beat()
            keep_others_waiting(accelerator)

        wait = WaitForRoom(
            lambda sentence: self.log.incident("full_disk", sentence),
            self.stop.made,
            still_waiting,
            self.log.interrupted,
        )
        failure: UserError | None = None
        if accelerator.is_main_process:
            try:
                self._patiently(partial(write, wait))
            except UserError as error:
                failure = error
        wait_for_main_process(accelerator)
        if anywhere(accelerator, failure is not None):
            raise failure or UserError("The first of the processes could not write; see there.")
        return wait.over()

    def _patiently(self, write: Callable[[], object]) -> None:
        """What is in the way may be gone a moment later: a virus scanner, a drive that wakes up.

        Raises:
            UserError: of `write`.
        """
        for pause in PAUSES:
            try:
                write()
            except UserError:
                time.sleep(0.0 if self.stop.in_a_hurry else pause)
            else:
                return
        write()


def newest_for_all(
    accelerator: Accelerator, folder: Path, trainable: Mapping[str, Tensor]
) -> tuple[Checkpoint | None, list[str]]:
    """`load_newest` where several processes read the same folder.

    Raises:
        UserError: none can be used, or the processes do not find the same one.
    """
    with accelerator.main_process_first():  # it sets aside what is damaged
        checkpoint, passed_over = load_newest(folder, trainable)
    step = -1 if checkpoint is None else checkpoint.step
    # Nobody writes there before all have read.
    if anywhere(accelerator, step != smallest(accelerator, step)):
        raise UserError(
            f"The processes do not find the same newest checkpoint in {folder}: all of them must "
            "see that folder, and nothing else may write into it. Run the same command again."
        )
    return checkpoint, passed_over
