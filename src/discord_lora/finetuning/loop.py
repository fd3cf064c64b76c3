"""The training loop: `fit` -> `train_step` -> `evaluate`.

One optimizer step learns from about BATCH_SIZE x GRADIENT_ACCUMULATION_STEPS target messages. Its
examples are packed into as many micro-batches as the token budget asks for; the step's loss is
the sum over all its target tokens divided by their number, so the budget changes memory and speed
and never the result.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional

from discord_lora.console import UserError
from discord_lora.conversations.examples import TokenizedExample
from discord_lora.conversations.packing import MicroBatch, TrainingPlan, collate, pack
from discord_lora.finetuning.checkpoints import Checkpoint

Result = TypeVar("Result")


@dataclass(slots=True)
class TrainingState:
    """What one run works on."""

    accelerator: Accelerator
    model: Any
    optimizer: Any
    scheduler: Any
    plan: TrainingPlan
    validation: Sequence[TokenizedExample]
    token_budget: int
    """Tokens a micro-batch; halved when memory runs out."""
    packing: bool = True
    max_grad_norm: float = 1.0

    def trainable(self) -> dict[str, Tensor]:
        named = self.accelerator.unwrap_model(self.model).named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did."""

    step: int
    """Steps done, this one included."""
    loss: float
    """Mean over the step's target tokens, nats."""
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

    stepped: Callable[[StepResult], None] = lambda _result: None
    save: Callable[[int], None] = lambda _step: None
    epoch_ended: Callable[[int], None] = lambda _step: None
    budget_halved: Callable[[int], None] = lambda _tokens: None
    stop_requested: Callable[[], bool] = lambda: False
    save_every_steps: int = 50


def fit(state: TrainingState, events: Events, first_step: int = 0) -> bool:
    """Train from `first_step` (steps already done) to the end of the plan.

    Returns True when the plan is finished, False when a stop was asked for; all is saved then.
    """
    plan = state.plan
    for step, examples in enumerate(plan.walk(first_step), start=first_step + 1):
        events.stepped(train_step(state, events, step, examples))
        epoch_ends = plan.ends_epoch(step) and step < plan.steps
        stop = events.stop_requested() and step < plan.steps
        if epoch_ends:
            events.epoch_ended(step)
        if stop or epoch_ends or step == plan.steps or step % events.save_every_steps == 0:
            events.save(step)
        if stop:
            return False
    return True


def train_step(
    state: TrainingState, events: Events, step: int, examples: Sequence[TokenizedExample]
) -> StepResult:
    """One optimizer step. Out of memory repeats it in half as large pieces.

    Raises:
        UserError: a single example does not fit into memory, or the loss is not finite.
    """
    learning_rate = state.scheduler.get_last_lr()[0]

    def attempt() -> float:
        # Dropout is a function of seed and step, so a resumed run repeats it without saved state.
        torch.manual_seed(state.plan.seed * 1_000_003 + step)
        state.optimizer.zero_grad(set_to_none=True)
        return accumulate_gradients(state, examples)

    loss = in_pieces_that_fit(state, examples, attempt, events.budget_halved)
    if not math.isfinite(loss):
        raise UserError(
            f"The loss of step {step} is {loss}, and nothing can be learned from that. Start over "
            "with a lower LEARNING_RATE (--fresh, or another RUN_NAME to keep this run)."
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


def accumulate_gradients(state: TrainingState, examples: Sequence[TokenizedExample]) -> float:
    """Add the gradients of one step's loss; returns that loss."""
    state.model.train()
    rows = pack(examples, state.token_budget, packing=state.packing)
    batches = [collate(row) for row in rows]
    targets = sum(len(batch.labels) for batch in batches)
    total = torch.zeros((), device=state.accelerator.device)
    for batch in batches:
        loss = summed_loss(state.model, batch.to(state.accelerator.device)) / targets
        state.accelerator.backward(loss)
        total += loss.detach()
    return float(total)


def summed_loss(model: Any, batch: MicroBatch) -> Tensor:
    """Cross-entropy summed over the target tokens of a micro-batch, in nats.

    The head runs at the predicting positions only. No attention mask is passed: from positions
    that start again, and only then, transformers builds the block-diagonal mask that keeps packed
    neighbours apart.
    """
    output = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        use_cache=False,
        logits_to_keep=batch.predictors,
    )
    logits = output.logits[0].float()
    return functional.cross_entropy(logits, batch.labels, reduction="sum")


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
    return in_pieces_that_fit(
        state, state.validation, lambda: _evaluate(state, watch), budget_halved
    )


def _evaluate(state: TrainingState, watch: Callable[[int], None]) -> HeldOutLoss:
    state.model.eval()
    nats, tokens, messages = 0.0, 0, 0
    for row in pack(state.validation, state.token_budget, packing=state.packing):
        batch = collate(row).to(state.accelerator.device)
        with torch.no_grad():
            nats += float(summed_loss(state.model, batch))
        tokens += len(batch.labels)
        messages += sum(example.targets for example in row)
        watch(messages)
    characters = sum(example.characters for example in state.validation)
    return HeldOutLoss(
        nats_per_token=nats / max(tokens, 1),
        bits_per_character=nats / math.log(2) / max(characters, 1),
        messages=messages,
    )


def snapshot(state: TrainingState, step: int, progress: dict[str, Any]) -> Checkpoint:
    """Everything that `restore` needs to go on after `step`."""
    scaler = state.accelerator.scaler
    if torch.cuda.is_available():
        # Paged optimizer states live in memory that the host may read only while the card rests.
        torch.cuda.synchronize()
    return Checkpoint(
        step=step,
        weights={name: p.detach().cpu().contiguous() for name, p in state.trainable().items()},
        optimizer=state.optimizer.state_dict(),
        scheduler=state.scheduler.state_dict(),
        scaler=scaler.state_dict() if scaler is not None else {},
        progress=progress,
    )


def restore(state: TrainingState, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's state into a freshly built run."""
    with torch.no_grad():
        for name, parameter in state.trainable().items():
            parameter.copy_(checkpoint.weights[name])
    state.optimizer.load_state_dict(checkpoint.optimizer)
    state.scheduler.load_state_dict(checkpoint.scheduler)
    if state.accelerator.scaler is not None and checkpoint.scaler:
        state.accelerator.scaler.load_state_dict(checkpoint.scaler)


def in_pieces_that_fit(
    state: TrainingState,
    examples: Sequence[TokenizedExample],
    attempt: Callable[[], Result],
    budget_halved: Callable[[int], None],
) -> Result:
    """Repeat `attempt` with half the token budget each time that memory runs out.

    Raises:
        UserError: the pieces are single examples already.
    """
    while True:
        try:
            return attempt()
        except torch.OutOfMemoryError:
            pass
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


def neighbours_meet(model: Any, vocabulary: int, device: torch.device) -> bool:
    """True if packed examples reach each other through this model.

    Positions that start again keep attention apart; convolutions and linear attention, which some
    models have, need more than that. Two rows differ in their first example only: if the second
    one notices, packing would train something else.
    """
    length = 8
    ids = torch.arange(2 * length, device=device) % vocabulary
    other = torch.cat([(ids[:length] + vocabulary // 2) % vocabulary, ids[length:]])
    positions = torch.arange(2 * length, device=device)[None] % length
    model.eval()
    with torch.no_grad():
        one, two = (
            model(input_ids=row[None], position_ids=positions, use_cache=False).logits[0, length:]
            for row in (ids, other)
        )
    return bool((one - two).abs().max() > 1e-2 * one.abs().max())
