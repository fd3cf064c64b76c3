"""The training loop: `fit` -> `train_step` -> `evaluate`.

One optimizer step learns from about BATCH_SIZE x GRADIENT_ACCUMULATION_STEPS target messages. Its
examples are packed into as many micro-batches as the token budget asks for; the step's loss is
the sum over all its target tokens divided by their number, so the budget changes memory and speed
and never the result.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor

from discord_lora.console import UserError
from discord_lora.conversations.examples import TokenizedExample
from discord_lora.finetuning.out_of_memory import in_pieces_that_fit
from discord_lora.finetuning.processes import anywhere, is_sharded, smallest
from discord_lora.finetuning.training_state import TrainingState


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did."""

    step: int
    """Steps done, this one included."""
    loss: Tensor
    """Mean over the step's target tokens, nats; this process's share of it. On the device still:
    reading it makes the card wait."""
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
    """What the loop tells the outside; each call returns quickly."""

    stepped: Callable[[StepResult, float | None], None] = lambda _result, _loss: None
    """After each step, with its loss where it was read."""
    save: Callable[[int], None] = lambda _step: None
    epoch_ended: Callable[[int], None] = lambda _step: None
    budget_halved: Callable[[int], None] = lambda _tokens: None
    stop_requested: Callable[[], bool] = lambda: False
    save_every_steps: int = 50
    read_every_steps: int = 1
    """How often the losses are read from the device."""


def fit(state: TrainingState, events: Events, first_step: int = 0) -> bool:
    """Train from `first_step` (steps already done) to the end of the plan.

    Returns True when the plan is finished, False when a stop was asked for; all is saved then.

    Raises:
        UserError: a loss is not finite, or an example does not fit into memory.
    """
    plan = state.plan
    losses = _UnreadLosses(state.accelerator)
    for step, examples in enumerate(plan.walk(first_step), start=first_step + 1):
        result = train_step(state, events, step, examples)
        losses.add(result)
        epoch_ends = plan.ends_epoch(step) and step < plan.steps
        stop = anywhere(state.accelerator, events.stop_requested()) and step < plan.steps
        save = stop or epoch_ends or step == plan.steps or step % events.save_every_steps == 0
        # Before anything is saved, too: no checkpoint may hold what a bad loss did.
        due = save or step % events.read_every_steps == 0
        events.stepped(result, losses.read() if due else None)
        if epoch_ends:
            events.epoch_ended(step)
        if save:
            events.save(step)
        if stop:
            return False
    return True


@dataclass(slots=True)
class _UnreadLosses:
    """Losses that are still on the device."""

    accelerator: Accelerator
    results: list[StepResult] = field(default_factory=list)

    def add(self, result: StepResult) -> None:
        self.results.append(result)

    def read(self) -> float:
        """The newest loss, of all processes together.

        Raises:
            UserError: one of the losses since the last reading is not finite.
        """
        parts = torch.stack([result.loss for result in self.results])
        losses = self.accelerator.reduce(parts, reduction="sum").tolist()
        for result, loss in zip(self.results, losses, strict=True):
            if not math.isfinite(loss):
                raise UserError(
                    f"The loss of step {result.step} is {loss}, and nothing can be learned from "
                    "that. Start over with a lower LEARNING_RATE (--fresh, or another RUN_NAME to "
                    "keep this run)."
                )
        self.results.clear()
        return float(losses[-1])


def train_step(
    state: TrainingState, events: Events, step: int, examples: Sequence[TokenizedExample]
) -> StepResult:
    """One optimizer step. Out of memory repeats it in half as large pieces.

    Raises:
        UserError: a single example does not fit into memory.
    """
    learning_rate = state.scheduler.get_last_lr()[0]

    def attempt() -> Tensor:
        # Dropout is a function of seed and step, so a resumed run repeats it without saved state.
        torch.manual_seed(
            (state.plan.seed * 1_000_003 + step) * state.accelerator.num_processes
            + state.accelerator.process_index
        )
        state.optimizer.zero_grad(set_to_none=True)
        return accumulate_gradients(state, examples)

    loss = in_pieces_that_fit(
        state,
        examples,
        attempt,
        events.budget_halved,
        # Processes that exchange gradients in the middle of it cannot begin it anew one by one.
        may_repeat=state.accelerator.num_processes == 1,
    )
    if state.max_grad_norm:
        state.accelerator.clip_grad_norm_(state.trainable().values(), state.max_grad_norm)
    state.optimizer.step()
    if not state.accelerator.optimizer_step_was_skipped:  # fp16 found its scale too high
        state.scheduler.step()
    state.optimizer.zero_grad(set_to_none=True)
    return StepResult(
        step=step,
        loss=loss,
        learning_rate=learning_rate,
        messages=sum(example.targets for example in examples),
        tokens=sum(map(len, examples)),
    )


def accumulate_gradients(state: TrainingState, examples: Sequence[TokenizedExample]) -> Tensor:
    """Add the gradients of one step's loss; returns this process's share of that loss."""
    state.model.train()
    accelerator = state.accelerator
    targets = sum(example.trained_tokens for example in examples)
    batches = state.micro_batches(examples)
    total = torch.zeros((), device=accelerator.device)
    for batch in batches:
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
    budget_halved: Callable[[int], None] = lambda _tokens: None,
) -> HeldOutLoss | None:
    """Loss on the held-out examples; None if there are none.

    `watch` is called with the number of messages measured so far; what it raises passes through.
    """
    if not state.validation:
        return None
    loss = in_pieces_that_fit(
        state,
        state.validation,
        lambda: _evaluate(state, watch),
        budget_halved,
        may_repeat=not is_sharded(state.accelerator),
    )
    state.token_budget = smallest(state.accelerator, state.token_budget)
    return loss


def _evaluate(state: TrainingState, watch: Callable[[int], None]) -> HeldOutLoss:
    state.model.eval()
    nats = torch.zeros((), dtype=torch.float64, device=state.accelerator.device)
    measured = 0.0
    messages = sum(example.targets for example in state.validation)
    batches = state.micro_batches(state.validation)
    tokens = sum(example.trained_tokens for example in state.validation)
    for batch in batches:
        with torch.no_grad():
            nats += state.training_model(batch)
        measured += len(batch.labels)
        watch(round(messages * measured * state.accelerator.num_processes / tokens))
    total = float(state.accelerator.reduce(nats, reduction="sum"))
    characters = sum(example.characters for example in state.validation)
    return HeldOutLoss(
        nats_per_token=total / max(tokens, 1),
        bits_per_character=total / math.log(2) / max(characters, 1),
        messages=messages,
    )
