"""How long the steps to come take, said when the model is loaded and before the first of them."""

from dataclasses import replace
from datetime import datetime
from typing import Any

from torch import Tensor

from discord_lora.analysis.plan.fights import doubts_of_time
from discord_lora.analysis.plan.memory import RESERVE_BYTES
from discord_lora.analysis.plan.night import NightPlan, RunTime
from discord_lora.analysis.plan.timings import newest_timing
from discord_lora.base_model import shape_of
from discord_lora.finetuning.calibration import seconds_since_start
from discord_lora.finetuning.forecast import night_of
from discord_lora.finetuning.preflight_page import end_sentence
from discord_lora.finetuning.run_log import RunLog
from discord_lora.finetuning.training_state import TrainingState
from discord_lora.hardware import Hardware, is_out_of_memory
from discord_lora.settings import Settings


def foresee(
    state: TrainingState, settings: Settings, hardware: Hardware, first_step: int = 0
) -> NightPlan | None:
    """The plan of the steps to come, the start-up as it was; None if they cannot be predicted.

    That is so for several processes and for models of an unusual kind.
    """
    if state.accelerator.num_processes > 1:
        return None
    try:
        shape = shape_of(state.training_model.causal_model, settings.base_model)
        machine = hardware.machine()
    except (KeyError, TypeError, ValueError):
        return None
    except RuntimeError as error:  # what an unknown card is timed with found no room
        if not is_out_of_memory(error):
            raise
        return None
    night = night_of(
        settings.model_copy(update={"packing": state.packing}),
        state.plan,
        state.validation,
        shape,
        machine,
        timing=newest_timing(settings.logs_dir, hardware.description, settings),
        memory=replace(state.memory, token_budget=state.token_budget),
        first_step=first_step,
    )
    return replace(night, prices=replace(night.prices, start_up_seconds=seconds_since_start()))


def announce(
    state: TrainingState,
    settings: Settings,
    hardware: Hardware,
    log: RunLog,
    *,
    voice: str,
    first_step: int,
    largest_row: int,
) -> None:
    """Say when the run ends, and write what is predicted into its history."""
    run, taken = log.history.name, None
    predicted: dict[str, Any] = {}
    night = foresee(state, settings, hardware, first_step)
    if night is not None:
        taken = night.as_set_time
        log.say(f"{run} {end_sentence(taken, datetime.now())}")
        predicted = {
            "seconds": taken.total,
            "label": taken.source,
            "peak_bytes": night.peak_bytes,
            "peak_label": night.peak_source,
        }
    for doubt in doubts_when_loaded(state, settings, hardware, taken, largest_row):
        log.say(f"warning: {doubt}")
    log.event(
        "plan",
        run=run,
        steps=state.plan.steps,
        steps_per_epoch=state.plan.steps_per_epoch,
        base_model=settings.base_model,
        voice=voice,
        hardware=hardware.name,
        command=log.go_on,
        **predicted,
    )


def doubts_when_loaded(
    state: TrainingState,
    settings: Settings,
    hardware: Hardware,
    taken: RunTime | None,
    largest_row: int,
) -> list[str]:
    """What only the loaded model and the largest micro-batch tell."""
    doubts = [] if taken is None else doubts_of_time(settings, taken, state.plan.steps)
    activations, device = state.memory.activations, hardware.device.type
    needed = activations.needed(largest_row, checkpointed=0) - bytes_held_already(state)
    without = needed + RESERVE_BYTES[device]
    if settings.gradient_checkpointing == "true" and without <= hardware.free_bytes():
        doubts.append(
            "GRADIENT_CHECKPOINTING=true costs about a third of the time, and the memory would do "
            "without; set GRADIENT_CHECKPOINTING=auto."
        )
    return doubts


def bytes_held_already(state: TrainingState) -> int:
    """Gradients after the largest micro-batch, and in a run that goes on the optimizer's states:
    what a step needs, and the free memory has lost already."""
    gradients = (p.grad for p in state.trainable().values() if p.grad is not None)
    kept = (value for values in state.optimizer.state.values() for value in values.values())
    return sum(it.nbytes for it in (*gradients, *kept) if isinstance(it, Tensor))
