"""Out of memory is no reason to lose a step: the same mathematics in smaller pieces."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar, cast

import torch
from torch import Tensor

from discord_lora.console import UserError
from discord_lora.conversations.examples import TokenizedExample
from discord_lora.conversations.packing import collate, pack, shares
from discord_lora.finetuning.activations import checkpoint_layers, checkpointing_layers
from discord_lora.finetuning.mishaps import LONGEST_PAUSE, TRIES_ALONE, Incident, name_of
from discord_lora.finetuning.processes import is_sharded, smallest
from discord_lora.finetuning.training_state import TrainingState
from discord_lora.hardware import is_out_of_memory, memory_must_suffice, release_freed_memory

Result = TypeVar("Result")
Row = list[TokenizedExample]

NO_MEMORY_FOR_A_STEP = (
    "Memory ran out while the optimizer took its step, which cannot be done in smaller pieces. "
    "Close other programs or set a smaller MAX_TOKENS_PER_MICROBATCH, then run the same command "
    "again: it goes on from the last checkpoint."
)


def try_largest(state: TrainingState, incident: Incident, first_step: int = 0) -> int:
    """Pass the largest micro-batch of the rest of the run forth and back, and learn nothing.

    What would run out of memory at hour nine does so now, in each process by itself; they go on
    with the smallest token budget that they found. Returns that micro-batch's tokens.

    Raises:
        UserError: examples do not fit into memory one by one.
    """
    steps = [state.usable(examples, incident) for examples in state.plan.walk(first_step)]
    taken = optimizer_states_to_come(state)
    failures = 0
    while row := largest_row(state, steps):
        if unless_memory_runs_out(partial(_forth_and_back, state, row)):
            break
        if is_sharded(state.accelerator):  # all processes meet in each pass
            raise _cannot_repeat(state)
        failures = failures + 1 if len(row) == 1 else 0
        if not make_room(state, row, failures, incident):
            steps = [state.usable(examples, incident) for examples in steps]
            failures = 0
    del taken
    state.optimizer.zero_grad(set_to_none=False)
    state.token_budget = smallest(state.accelerator, state.token_budget)
    return sum(map(len, row))


def _forth_and_back(state: TrainingState, row: Row) -> bool:
    # The model itself: no exchange of gradients in which the others would wait in vain.
    # (Sharded weights come in no other way; there memory that runs out ends the run.)
    model = state.training_model
    model.train()
    state.accelerator.backward(model(collate(row).to(state.accelerator.device)))
    return True


def optimizer_states_to_come(state: TrainingState) -> Tensor:
    """As much memory as the first optimizer step will take; nothing if the states exist already."""
    numbers = sum(parameter.numel() for parameter in state.trainable().values())
    if is_sharded(state.accelerator):
        numbers //= state.accelerator.num_processes
    size = 0 if state.optimizer.state else round(numbers * state.optimizer_bytes)
    return torch.empty(size, dtype=torch.uint8, device=state.accelerator.device)


def largest_row(state: TrainingState, steps: Sequence[Sequence[TokenizedExample]]) -> Row:
    """The micro-batch of most tokens that any process will meet in these steps; may be empty."""
    count = state.accelerator.num_processes
    rows = (
        row
        for step in steps
        for share in shares(step, count, state.token_budget, packing=state.packing)
        for row in share
    )
    return max(rows, key=lambda row: sum(map(len, row)), default=[])


def unless_memory_runs_out(attempt: Callable[[], Result]) -> Result | None:
    """What `attempt` returns, or None when memory ran out; it is free again then."""
    try:
        return attempt()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Only here, after the exception is gone, nothing holds the activations any more.
    release_freed_memory()
    return None


def clipped_norm(state: TrainingState) -> float:
    """Cut the gradient down to MAX_GRAD_NORM; returns its norm as it was.

    Raises:
        UserError: there is no memory for it, also when it is tried again.
    """
    accelerator = state.accelerator
    parameters = list(state.trainable().values())
    limit = state.max_grad_norm or math.inf  # without a limit it is the norm that is wanted
    with memory_must_suffice(NO_MEMORY_FOR_A_STEP):
        if accelerator.num_processes > 1:  # they meet in it, and one alone cannot do it again
            return float(accelerator.clip_grad_norm_(parameters, limit))
        accelerator.unscale_gradients()  # by itself: fp16's scaler refuses to do it twice
        clip = partial(torch.nn.utils.clip_grad_norm_, parameters, limit)
        norm = unless_memory_runs_out(clip)
        return float(clip() if norm is None else norm)


def accumulate_row_by_row(
    state: TrainingState,
    examples: Sequence[TokenizedExample],
    before_row: Callable[[], None],
    incident: Incident,
) -> Tensor | None:
    """Add the gradients of one step's loss; a row that fails in the middle leaves nothing behind.

    It takes a second set of gradients, which is why it is not the usual way. What `before_row`
    raises passes through. Returns None if all examples had to be set aside.

    `state` comes with gradients of zero. They take the sums, and stay where they are.
    """
    accelerator = state.accelerator
    targets = sum(example.trained_tokens for example in examples)
    sums = {p: cast(Tensor, p.grad) for p in state.trainable().values()}
    losses: list[Tensor] = []

    def run_row(row: Row) -> None:
        before_row()
        state.optimizer.zero_grad(set_to_none=True)
        loss = state.model(collate(row).to(accelerator.device)) * (1 / targets)
        accelerator.backward(loss)
        for parameter, total in sums.items():
            if parameter.grad is not None:
                total.add_(parameter.grad)
        losses.append(loss.detach())

    try:
        in_rows_that_fit(state, examples, run_row, incident)
    finally:
        for parameter, total in sums.items():
            parameter.grad = total
    if not losses:
        return None
    aside = state.mishaps.set_aside
    left = sum(e.trained_tokens for e in examples if name_of(e) not in aside)
    if left != targets:
        for total in sums.values():
            total.mul_(targets / left)
    return torch.stack(losses).sum() * (targets / left)


def in_rows_that_fit(
    state: TrainingState,
    examples: Sequence[TokenizedExample],
    run_row: Callable[[Row], object],
    incident: Incident,
) -> None:
    """Pack the examples and run each row; one for which memory runs out is run in smaller pieces.

    `run_row` leaves nothing behind when it fails.

    Raises:
        UserError: examples do not fit into memory one by one.
    """

    def packed(these: Sequence[TokenizedExample]) -> list[Row]:
        return pack(these, state.token_budget, packing=state.packing)

    waiting, failures = packed(examples), 0
    while waiting:
        row = waiting[0]
        if unless_memory_runs_out(partial(_done, run_row, row)):
            del waiting[0]
            failures = 0
            continue
        failures = failures + 1 if len(row) == 1 else 0
        if not make_room(state, row, failures, incident):
            del waiting[0]
            failures = 0
        elif len(row) > 1:
            waiting = packed([example for row in waiting for example in row])


def _done(run_row: Callable[[Row], object], row: Row) -> bool:
    run_row(row)
    return True


def make_room(state: TrainingState, row: Row, failures: int, incident: Incident) -> bool:
    """Memory ran out in this row; see to it that the next try needs less.

    A row of several examples is divided by a smaller token budget, which is kept. One example
    cannot be divided: its layers are checkpointed, it is tried a few times, and then set aside.

    Args:
        state: of the run.
        row: that was too much.
        failures: tries so far of its only example.
        incident: is told what was done.

    Returns:
        False if the row's only example was set aside.

    Raises:
        UserError: too many would have to be set aside, or several processes are one run.
    """
    tokens = sum(map(len, row))
    if len(row) > 1:
        state.token_budget = max(1, min(state.token_budget, tokens) // 2)
        incident(
            "out_of_memory",
            f"out of memory: going on with {state.token_budget:,} tokens a micro-batch",
        )
    elif state.memory.checkpointed < (layers := len(checkpointing_layers(state.training_model))):
        checkpoint_layers(state.training_model, layers)
        state.memory = replace(state.memory, checkpointed=layers)
        incident(
            "out_of_memory",
            f"out of memory in one example of {tokens:,} tokens: going on with "
            "all layers checkpointed",
        )
    elif state.accelerator.num_processes > 1:
        raise UserError(
            f"One example of {tokens:,} tokens does not fit into memory; set "
            "GRADIENT_CHECKPOINTING=true, lower MAX_SEQ_LENGTH, or choose a smaller BASE_MODEL."
        )
    elif failures >= TRIES_ALONE:
        reason = f"its {tokens:,} tokens do not fit into memory"
        state.mishaps.put_aside(row[0], reason, len(state.plan.examples), incident)
        return False
    else:
        time.sleep(min(0.05 * 2**failures, LONGEST_PAUSE))
    return True


def may_repeat(state: TrainingState) -> None:
    """Raises UserError: processes that exchange gradients in the middle of a step cannot begin it
    anew one by one."""
    if state.accelerator.num_processes > 1:
        raise _cannot_repeat(state)


def _cannot_repeat(state: TrainingState) -> UserError:
    return UserError(
        f"Memory ran out with {state.token_budget:,} tokens a micro-batch. Set "
        "MAX_TOKENS_PER_MICROBATCH to half of that and run the same command again."
    )
