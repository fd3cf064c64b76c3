"""Out of memory is no reason to lose a step: the same mathematics in smaller pieces."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from discord_lora.console import UserError
from discord_lora.conversations.examples import TokenizedExample
from discord_lora.conversations.packing import collate, shares
from discord_lora.finetuning.processes import is_sharded, smallest
from discord_lora.finetuning.training_state import TrainingState
from discord_lora.hardware import is_out_of_memory

Result = TypeVar("Result")


def try_largest(
    state: TrainingState, budget_halved: Callable[[int], None], first_step: int = 0
) -> int:
    """Pass the largest micro-batch of the rest of the run forth and back, and learn nothing.

    What would run out of memory at hour nine does so now, in each process by itself; they go on
    with the smallest token budget that they found. Returns that micro-batch's tokens.

    Raises:
        UserError: a single example does not fit into memory.
    """
    steps = list(state.plan.walk(first_step))

    def attempt() -> int:
        row = largest_row(state, steps)
        # The model itself: no exchange of gradients in which the others would wait in vain.
        # (Sharded weights come in no other way; there memory that runs out ends the run.)
        model = state.training_model
        model.train()
        state.accelerator.backward(model(collate(row).to(state.accelerator.device)))
        return sum(map(len, row))

    taken = optimizer_states_to_come(state)
    longest = [max((example for step in steps for example in step), key=len)] if steps else []
    alone = not is_sharded(state.accelerator)
    tokens = (
        in_pieces_that_fit(state, longest, attempt, budget_halved, may_repeat=alone) if steps else 0
    )
    del taken
    state.optimizer.zero_grad(set_to_none=True)
    state.token_budget = smallest(state.accelerator, state.token_budget)
    return tokens


def optimizer_states_to_come(state: TrainingState) -> Tensor:
    """As much memory as the first optimizer step will take; nothing if the states exist already."""
    numbers = sum(parameter.numel() for parameter in state.trainable().values())
    if is_sharded(state.accelerator):
        numbers //= state.accelerator.num_processes
    size = 0 if state.optimizer.state else round(numbers * state.optimizer_bytes)
    return torch.empty(size, dtype=torch.uint8, device=state.accelerator.device)


def largest_row(
    state: TrainingState, steps: Sequence[Sequence[TokenizedExample]]
) -> list[TokenizedExample]:
    """The micro-batch of most tokens that any process will meet in these steps."""
    count = state.accelerator.num_processes
    rows = (
        row
        for step in steps
        for share in shares(step, count, state.token_budget, packing=state.packing)
        for row in share
    )
    return max(rows, key=lambda row: sum(map(len, row)))


def in_pieces_that_fit(
    state: TrainingState,
    examples: Sequence[TokenizedExample],
    attempt: Callable[[], Result],
    budget_halved: Callable[[int], None],
    *,
    may_repeat: bool = True,
) -> Result:
    """Repeat `attempt` with half the token budget each time that memory runs out.

    Raises:
        UserError: the pieces are single examples already, or nothing may be repeated.
    """
    while True:
        try:
            return attempt()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if not may_repeat:
            raise UserError(
                f"Memory ran out with {state.token_budget:,} tokens a micro-batch. Set "
                "MAX_TOKENS_PER_MICROBATCH to half of that and run the same command again."
            )
        # Only here, after the exception is gone, nothing holds the activations any more.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        longest = max(map(len, examples))
        if state.token_budget <= longest // 2 or not state.packing:
            raise UserError(
                f"One example of {longest:,} tokens does not fit into memory; set "
                "GRADIENT_CHECKPOINTING=true, lower MAX_SEQ_LENGTH, or choose a smaller BASE_MODEL."
            )
        state.token_budget = max(1, state.token_budget // 2)
        budget_halved(state.token_budget)
