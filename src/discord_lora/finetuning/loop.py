"""The training loop: `fit` -> `train_step` -> `evaluate`.

One optimizer step learns from about BATCH_SIZE x GRADIENT_ACCUMULATION_STEPS target messages. Its
examples are packed into as many micro-batches as the token budget asks for; the step's loss is
the sum over all its target tokens divided by their number, so the budget changes memory and speed
and never the result.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from discord_lora.console import UserError
from discord_lora.conversations.examples import TokenizedExample
from discord_lora.conversations.packing import MicroBatch, collate, divide
from discord_lora.finetuning.mishaps import BAD_STEPS_IN_A_ROW, Incident
from discord_lora.finetuning.out_of_memory import (
    NO_MEMORY_FOR_A_STEP,
    Row,
    accumulate_row_by_row,
    clipped_norm,
    in_rows_that_fit,
    largest_row,
    make_room,
    may_repeat,
    unless_memory_runs_out,
)
from discord_lora.finetuning.processes import anywhere, is_sharded, smallest
from discord_lora.finetuning.training_state import TrainingState
from discord_lora.hardware import memory_must_suffice, release_freed_ram

Ending = Literal["finished", "stopped", "early"]
"""The plan is done; a stop was asked for; the held-out loss gets no better."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did."""

    step: int
    """Steps done, this one included."""
    loss: float | None
    """Mean over the step's target tokens, nats; None where nothing was learned."""
    learning_rate: float
    messages: int
    tokens: int
    """All tokens that went through the model, context included."""


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """Loss on messages that the model never trains on."""

    nats_per_token: float
    bits_per_character: float
    """Compares across tokenizers and renderings, which nats a token do not."""
    messages: int

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.nats_per_token, 700.0))


@dataclass(slots=True)
class Events:
    """What the loop tells and asks the outside; each call but `measure` and `save` is quick."""

    stepped: Callable[[StepResult], None] = lambda _result: None
    save: Callable[[int], UserError | None] = lambda _step: None
    """Returns why there is no checkpoint; None: there is one."""
    measure: Callable[[int], bool] = lambda _step: False
    """Measures the held-out loss; True: it gets no better, train no further."""
    go_back: Callable[[], int] | None = None
    """To the last checkpoint, with a lower rate; returns its step. None: there is none. The run is
    saved again afterwards."""
    incident: Incident = lambda _what, _sentence: None
    stop_requested: Callable[[], bool] = lambda: False
    hurried: Callable[[], bool] = lambda: False
    """The program is about to be ended: there is no time for the rest of a step."""
    save_every_steps: int = 50
    eval_every_steps: int = 0
    """0: at the end of each epoch."""


class GivenUpError(Exception):
    """A step or a measurement was left in the middle: nothing of it is kept."""


def fit(state: TrainingState, events: Events, first_step: int = 0) -> Ending:
    """Train from `first_step` (steps already done) to the end of the plan.

    However it ends, all is saved. A checkpoint on the way that cannot be written is an incident.

    Raises:
        UserError: losses stay infinite, too many examples cannot be used, or what was done in the
            end cannot be saved.
    """
    done = first_step
    while done < state.plan.steps:
        ending, done = _walk(state, events, done)
        if ending:
            return ending
    return "finished"


def _walk(state: TrainingState, events: Events, first_step: int) -> tuple[Ending | None, int]:
    """Train until something ends it or sends it back; returns also the step to go on after."""
    plan, saved = state.plan, first_step
    for step, examples in enumerate(plan.walk(first_step), start=first_step + 1):
        try:
            events.stepped(train_step(state, events, step, examples))
        except GivenUpError:
            if step - 1 > saved:
                _save(state, events, step - 1, surely=True)
            return "stopped", step - 1
        if state.mishaps.bad_steps_in_a_row >= BAD_STEPS_IN_A_ROW:
            return None, _go_back(state, events, step)
        last = step == plan.steps
        stop = anywhere(state.accelerator, events.stop_requested()) and not last
        # What was saved in the middle of trouble would be no place to go back to, and what was
        # measured there could not be had again.
        well = not state.mishaps.bad_steps_in_a_row
        due = _is_due(events.eval_every_steps, step, plan.ends_epoch(step))
        measure = due and well and not last
        done = measure and events.measure(step)
        save = measure or step % events.save_every_steps == 0
        ends = stop or done or last
        if (ends or (save and well)) and _save(state, events, step, surely=ends):
            saved = step
        if stop or done:
            return ("early" if done else "stopped"), step
    return "finished", plan.steps


def _is_due(every_steps: int, step: int, epoch_ends: bool) -> bool:
    return step % every_steps == 0 if every_steps else epoch_ends


def _save(state: TrainingState, events: Events, step: int, *, surely: bool) -> bool:
    """True if there is a checkpoint after `step`; without one, training goes on to the next.

    Raises:
        UserError: there is none, and `surely` there had to be one.
    """
    returns = state.mishaps.returns
    state.mishaps.note_checkpoint(step)  # before: it is part of what is saved
    error = events.save(step)
    if error is None:
        return True
    if surely:
        raise UserError(f"{error} The same command then goes on from the checkpoint before.")
    state.mishaps.returns = returns  # else returns to one and the same place had no end
    events.incident(
        "not_saved", f"no checkpoint after step {step:,}, training goes on without. {error}"
    )
    return False


def _go_back(state: TrainingState, events: Events, step: int) -> int:
    """Where to go on after too many bad steps; without a checkpoint, where the run is."""
    rate = state.scheduler.base_lrs[0]
    precision = state.accelerator.mixed_precision
    state.mishaps.note_return(rate, "fp32" if precision == "no" else precision)
    if events.go_back is None:
        return step
    step = events.go_back()
    _save(state, events, step, surely=False)  # a run that is killed now does not begin it anew
    return step


def train_step(
    state: TrainingState, events: Events, step: int, examples: Sequence[TokenizedExample]
) -> StepResult:
    """One optimizer step; what memory has no room for is done in smaller pieces.

    A step whose loss or gradient is not finite changes nothing, and the rate stays where it is.

    Raises:
        UserError: too many examples cannot be used, or the optimizer finds no memory.
        GivenUpError: `events` were in a hurry; the state is as it was before the step.
    """
    learning_rate = state.scheduler.get_last_lr()[0]
    examples = state.usable(examples, events.incident)
    loss = _gradients(state, events, step, examples) if examples else None
    if loss is None:
        return StepResult(step, None, learning_rate, 0, 0)
    accelerator = state.accelerator
    mean = float(accelerator.reduce(loss, reduction="sum"))
    norm = clipped_norm(state)
    bad = what_is_not_finite(state, mean, norm)
    if not bad:
        with memory_must_suffice(NO_MEMORY_FOR_A_STEP):  # half of one cannot be taken back
            state.optimizer.step()
    elif accelerator.scaler is not None:
        accelerator.scaler.update()  # it goes down if the gradients were infinite
    if bad:
        state.mishaps.note_bad_step(step, examples, bad, events.incident)
    elif accelerator.optimizer_step_was_skipped:  # fp16 found its scale too high
        state.mishaps.note_overflow(step, events.incident)
    else:
        state.mishaps.note_good_step()
        state.scheduler.step()
    state.optimizer.zero_grad(set_to_none=False)
    release_freed_ram()
    return StepResult(
        step=step,
        loss=None if bad else mean,
        learning_rate=learning_rate,
        messages=sum(example.targets for example in examples),
        tokens=sum(map(len, examples)),
    )


def what_is_not_finite(state: TrainingState, loss: float, norm: float) -> str:
    """In words, or empty. (With fp16, infinite gradients are how the scale is found.)"""
    if not math.isfinite(loss):
        return f"its loss is {loss}"
    scaler = state.accelerator.scaler
    if not math.isfinite(norm) and (scaler is None or scaler.get_scale() <= 1):
        return f"its gradient's norm is {norm}"
    return ""


def _gradients(
    state: TrainingState, events: Events, step: int, examples: Sequence[TokenizedExample]
) -> Tensor | None:
    """The step's gradients; returns this process's share of its loss, None if all was set aside."""

    def begin() -> None:
        # Dropout is a function of seed and step, so a resumed run repeats it without saved state.
        torch.manual_seed(
            (state.plan.seed * 1_000_003 + step) * state.accelerator.num_processes
            + state.accelerator.process_index
        )
        state.optimizer.zero_grad(set_to_none=False)
        state.model.train()

    begin()
    try:
        loss = unless_memory_runs_out(lambda: accumulate_gradients(state, examples, events))
        if loss is None:
            may_repeat(state)
            make_room(state, largest_row(state, [examples]), 1, events.incident)
            begin()
            give_up = partial(_give_up_in_a_hurry, state, events)
            loss = accumulate_row_by_row(state, examples, give_up, events.incident)
    except GivenUpError:
        state.optimizer.zero_grad(set_to_none=False)
        raise
    return loss


def _give_up_in_a_hurry(state: TrainingState, events: Events) -> None:
    """Raises GivenUpError; never where other processes would wait in the middle of the step."""
    if state.accelerator.num_processes == 1 and events.hurried():
        raise GivenUpError


def accumulate_gradients(
    state: TrainingState, examples: Sequence[TokenizedExample], events: Events
) -> Tensor:
    """Add the gradients of one step's loss; returns this process's share of that loss."""
    accelerator = state.accelerator
    targets = sum(example.trained_tokens for example in examples)
    batches = state.micro_batches(examples)
    total = torch.zeros((), device=accelerator.device)
    for batch in batches:
        _give_up_in_a_hurry(state, events)
        last = batch is batches[-1]
        with nullcontext() if last else accelerator.no_sync(state.model):
            loss = state.model(batch) * (1 / targets)
            # Gradients are averaged over the processes; what is wanted is their sum.
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
    return total


def evaluate(
    state: TrainingState,
    watch: Callable[[int], None] = lambda _messages: None,
    incident: Incident = lambda _what, _sentence: None,
) -> HeldOutLoss | None:
    """Loss on the held-out examples; None if there are none, or all had to be set aside.

    `watch` is called with the number of messages measured so far; what it raises passes through.
    """
    examples = state.usable(state.validation, incident)
    if not examples:
        return None
    state.model.eval()
    accelerator = state.accelerator
    nats = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    tokens = sum(example.trained_tokens for example in examples)
    messages = sum(example.targets for example in examples)
    measured = 0

    def run_row(row: Row) -> None:
        measure(collate(row).to(accelerator.device))

    def measure(batch: MicroBatch) -> None:
        nonlocal measured
        with torch.no_grad():
            nats.add_(state.training_model(batch))
        measured += len(batch.labels)
        watch(round(messages * measured * accelerator.num_processes / tokens))

    if is_sharded(accelerator):  # all processes meet in each pass, so that none can be repeated
        for batch in state.micro_batches(examples):
            measure(batch)
    else:
        part = divide(examples, accelerator.num_processes)[accelerator.process_index]
        in_rows_that_fit(state, part, run_row, incident)
    state.token_budget = smallest(accelerator, state.token_budget)
    total = float(accelerator.reduce(nats, reduction="sum"))
    kept = state.usable(examples, incident)
    if not kept:
        return None
    return HeldOutLoss(
        nats_per_token=total / sum(example.trained_tokens for example in kept),
        bits_per_character=total / math.log(2) / max(sum(e.characters for e in kept), 1),
        messages=sum(example.targets for example in kept),
    )
