"""Examples into optimizer steps, and one step's examples into packed micro-batches.

step     examples with about BATCH_SIZE x GRADIENT_ACCUMULATION_STEPS target messages
row      |  example A (5 tokens)  | example B (3) |  whole examples, up to the token budget
position    0  1  2  3  4           0  1  2          starts again: neighbours do not meet
trained     .  .  x  x  x           .  .  x
logits at      ^  ^  ^                 ^             only where the next token is trained
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from discord_lora.conversations.examples import TokenizedExample
from discord_lora.conversations.steps import steps_of_run, steps_per_epoch


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What goes through the model at once.

    `input_ids` and `position_ids`: int64 of shape (1, tokens); positions start again at each
    example, from which transformers builds the block-diagonal attention mask.
    `predictors`: int64 of shape (targets,), the positions whose logits predict a trained token.
    `labels`: int64 of shape (targets,), those tokens.
    `lengths`: tokens of each example, in the order of the row, longest first.
    """

    input_ids: Tensor
    position_ids: Tensor
    predictors: Tensor
    labels: Tensor
    lengths: tuple[int, ...]

    def to(self, device: torch.device) -> "MicroBatch":
        """On the device; the copies may still be under way."""
        return MicroBatch(
            to_device(self.input_ids, device),
            to_device(self.position_ids, device),
            to_device(self.predictors, device),
            to_device(self.labels, device),
            self.lengths,
        )


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy that may still be under way; from memory that is not pinned it would be waited for."""
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Which examples each optimizer step learns from: a pure function of seed and epoch."""

    examples: Sequence[TokenizedExample]
    messages_per_step: int
    seed: int
    steps: int
    """Optimizer steps of the whole run."""
    skip_steps: int = 0
    """Steps that an adapter which is trained further has already seen of this data."""

    @property
    def messages(self) -> int:
        """Target messages in one pass over the data."""
        return sum(example.targets for example in self.examples)

    @property
    def steps_per_epoch(self) -> int:
        """63,000 messages at 16 a step are 3,938 steps."""
        return steps_per_epoch(self.messages, self.messages_per_step)

    def walk(self, first_step: int = 0) -> Iterator[list[TokenizedExample]]:
        """The examples of each step from `first_step` (counted from 0) to the end of the run."""
        step = first_step
        while step < self.steps:
            epoch, offset = divmod(self.skip_steps + step, self.steps_per_epoch)
            for chosen in self._epoch(epoch)[offset : offset + self.steps - step]:
                yield [self.examples[index] for index in chosen]
                step += 1

    def ends_epoch(self, step: int) -> bool:
        """True if `step` (counted from 1) is the last one of a pass over the data."""
        return (self.skip_steps + step) % self.steps_per_epoch == 0

    def _epoch(self, epoch: int) -> list[list[int]]:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.examples))
        counts = np.array([self.examples[index].targets for index in order])
        bounds = _even_bounds(counts, self.steps_per_epoch)
        return [order[a:b].tolist() for a, b in itertools.pairwise(bounds)]


def plan_training(
    examples: Sequence[TokenizedExample],
    *,
    messages_per_step: int,
    epochs: float,
    max_steps: int,
    seed: int,
    skip_steps: int = 0,
) -> TrainingPlan:
    """Plan a run. `epochs` may be a fraction; `max_steps` > 0 ends it earlier."""
    messages = sum(example.targets for example in examples)
    steps = steps_of_run(messages, messages_per_step, epochs, max_steps)
    return TrainingPlan(examples, messages_per_step, seed, steps, skip_steps)


def _even_bounds(counts: np.ndarray, steps: int) -> list[int]:
    """Cut a sequence of counts into `steps` non-empty runs of nearly equal sums."""
    steps = min(steps, len(counts))
    ends = np.cumsum(counts)
    middles = ends - counts / 2
    ideal = np.searchsorted(middles, ends[-1] * np.arange(steps + 1) / steps)
    bounds = [0]
    for step in range(1, steps):
        lowest, highest = bounds[-1] + 1, len(counts) - (steps - step)
        bounds.append(int(min(max(ideal[step], lowest), highest)))
    return [*bounds, len(counts)]


def pack(
    examples: Sequence[TokenizedExample], token_budget: int, *, packing: bool = True
) -> list[list[TokenizedExample]]:
    """Distribute whole examples over rows of at most `token_budget` tokens.

    First-fit decreasing: the longest example first, each into the first row with room. An example
    longer than the budget has a row of its own. With `packing=False` every example has.
    """
    if not packing:
        return [[example] for example in examples]
    rows: list[list[TokenizedExample]] = []
    room: list[int] = []
    for example in sorted(examples, key=len, reverse=True):
        for row, free in enumerate(room):
            if len(example) <= free:
                rows[row].append(example)
                room[row] -= len(example)
                break
        else:
            rows.append([example])
            room.append(token_budget - len(example))
    return rows


def divide(examples: Sequence[TokenizedExample], shares: int) -> list[list[TokenizedExample]]:
    """Divide a step's examples among processes so that each has about as many tokens.

    Longest first, each to whoever has least; a share may be empty.
    """
    if shares == 1:
        return [list(examples)]
    parts: list[list[TokenizedExample]] = [[] for _ in range(shares)]
    tokens = [0] * shares
    for example in sorted(examples, key=len, reverse=True):
        least = tokens.index(min(tokens))
        parts[least].append(example)
        tokens[least] += len(example)
    return parts


def shares(
    examples: Sequence[TokenizedExample], count: int, token_budget: int, *, packing: bool = True
) -> list[list[list[TokenizedExample]]]:
    """The rows of each of `count` processes: a step divided, and each share packed."""
    return [pack(part, token_budget, packing=packing) for part in divide(examples, count)]


def collate(row: Sequence[TokenizedExample]) -> MicroBatch:
    """One row of examples as tensors; nothing is padded."""
    input_ids = np.concatenate([example.input_ids for example in row])
    positions = np.concatenate([np.arange(len(example)) for example in row])
    trained = np.concatenate([example.trained for example in row])
    # The first token of an example follows its neighbour's last one, which must not predict it.
    trained &= positions > 0
    labels = np.flatnonzero(trained)
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids.astype(np.int64))[None],
        position_ids=torch.from_numpy(positions.astype(np.int64))[None],
        predictors=torch.from_numpy(labels - 1),
        labels=torch.from_numpy(input_ids[labels].astype(np.int64)),
        lengths=tuple(map(len, row)),
    )


def idle_batch(examples: Sequence[TokenizedExample]) -> MicroBatch:
    """A micro-batch that teaches nothing, for a process that only keeps the others company."""
    batch = collate([min(examples, key=len)])
    return replace(batch, predictors=batch.predictors[:0], labels=batch.labels[:0])
