"""Held-out losses of a run: which adapter is the best one, and whether to go on at all."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from discord_lora.finetuning.keeping import Keeper
from discord_lora.finetuning.loop import GivenUpError, HeldOutLoss, evaluate
from discord_lora.finetuning.run_folder import fingerprint
from discord_lora.finetuning.training_state import TrainingState
from discord_lora.hardware import release_freed_memory

Moment = Literal["base", "epoch", "trained"]
"""Before the first step, on the way, and after the last step."""


@dataclass(slots=True)
class Measured:
    """What was measured after training had begun."""

    last_step: int = 0
    """0: nothing was."""
    last: dict[str, float] = field(default_factory=dict)
    """`nats_per_token` and `bits_per_character`."""
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    worse: int = 0
    """Measurements since the best one."""
    messages: int = 0
    """That were measured."""
    data: str = ""
    """Fingerprint of the examples that they are in; empty of runs that did not note it."""

    def note(self, step: int, figures: dict[str, float], messages: int, data: str) -> None:
        """A measurement after `step`: `figures` as in `last`, over so many messages of `data`."""
        if messages != self.messages or self.data not in ("", data):
            # Some were set aside, or others are held out now: what was before compares no more.
            self.best_step, self.best, self.worse = 0, {}, 0
        self.messages, self.data = messages, data
        self.last_step, self.last = step, figures
        if figures["nats_per_token"] < self.best.get("nats_per_token", math.inf):
            self.best_step, self.best, self.worse = step, figures, 0
        else:
            self.worse += 1

    def lose_best(self, saved: "Measured") -> None:
        """No checkpoint could be written here: the best one is as it was `saved` the last time.

        What counts for patience stays: the loss did get better.
        """
        comparable = saved.messages == self.messages and saved.data in ("", self.data)
        self.best_step, self.best = (saved.best_step, saved.best) if comparable else (0, {})

    def is_out_of_patience(self, patience: int) -> bool:
        """EARLY_STOPPING_PATIENCE measurements without a better one; 0 never is."""
        return 0 < patience <= self.worse


@dataclass(slots=True)
class HeldOut:
    """What a run has measured so far, as its checkpoints hold it."""

    losses: dict[str, float] = field(default_factory=dict)
    """By moment and figure, for `run.json`."""
    measured: Measured = field(default_factory=Measured)
    measured_when_saved: Measured = field(default_factory=Measured)
    due: bool = False
    """Of the step that the run is at: there was no time for it."""

    @classmethod
    def of(cls, progress: Mapping[str, Any]) -> "HeldOut":
        """As a checkpoint's progress holds it."""
        measured = Measured(**progress["measured"])
        return cls(
            losses=dict(progress["losses"]),
            measured=measured,
            measured_when_saved=replace(measured),
            due=bool(progress.get("measurement_due")),
        )

    def as_progress(self) -> dict[str, Any]:
        return {
            "losses": self.losses,
            "measured": asdict(self.measured),
            "measurement_due": self.due,
        }

    def note_save(self, *, failed: bool) -> None:
        """A checkpoint of the step that the run is at was written, or could not be."""
        if failed:
            self.measured.lose_best(self.measured_when_saved)
        else:
            self.measured_when_saved = replace(self.measured)

    def note(self, moment: str, figures: Mapping[str, float]) -> None:
        self.losses |= {f"{moment}_{figure}": value for figure, value in figures.items()}

    def measure(self, state: TrainingState, keeper: Keeper, moment: Moment, step: int) -> None:
        """Measure the loss after `step`. A stop that is asked for meanwhile loses nothing: within
        an epoch it waits, and where there is no time for that, the measurement is due later.

        Raises:
            Interrupted: a stop was asked for before the first step, or after the last.
        """
        try:
            with keeper.log.aside("the measurement of the held-out loss"):
                loss = _watched(state, keeper, moment, step)
        except GivenUpError:
            self.due = True
            return
        self.due = False
        if loss is None:
            return
        if not math.isfinite(loss.nats_per_token):
            keeper.log.incident(
                "not_finite",
                f"the held-out loss after step {step:,} is {loss.nats_per_token}: it counts "
                "neither for the best adapter nor for stopping early",
            )
            return
        keeper.log.held_out(step, loss)
        figures = {
            "nats_per_token": loss.nats_per_token,
            "bits_per_character": loss.bits_per_character,
        }
        self.note(moment, figures)
        if step:
            self.measured.note(step, figures, loss.messages, fingerprint(state.validation))


def _watched(state: TrainingState, keeper: Keeper, moment: Moment, step: int) -> HeldOutLoss | None:
    """`evaluate` with a bar, signs of life, and an ear for a stop.

    Raises:
        GivenUpError: within an epoch, the program is about to be ended.
        Interrupted: before the first step or after the last, a stop was asked for.
    """
    log, stop = keeper.log, keeper.stop
    total = sum(example.targets for example in state.validation)
    bar = log.progress.add_task("measuring held-out loss", total=total)

    def watch(messages: int) -> None:
        log.progress.update(bar, completed=messages)
        log.beat()
        if state.accelerator.num_processes > 1:
            return
        if moment == "epoch" and stop.in_a_hurry:
            raise GivenUpError
        if moment != "epoch" and stop.made():
            raise log.interrupted(
                "Everything is saved." if step else "Nothing was learned yet, so nothing is lost."
            )

    try:
        return evaluate(state, watch, log.incident)
    finally:
        log.progress.remove_task(bar)
        release_freed_memory()
