"""Seconds that training takes, as a sum of what it does.

    seconds = steps x step + micro-batches x micro_batch
            + tokens x token + (tokens of an example)^2 x squared_token + targets x target

What the work is, is known exactly before the start: the order of the data is a pure function of
the seed. What each part costs is modelled from FLOPs and bytes, or fitted to timings:

    token          2 FLOPs a weight forward, 2 backward (frozen: no gradient for the weights), 2
                   more where a layer is checkpointed; LoRA 6 a weight (Hoffmann et al. 2022,
                   appendix F)
    target         4 FLOPs a weight of the head, which runs at target tokens only
    squared_token  4 x query size forward, halved by causality; 3.5 times that with the backward
                   pass (Dao 2023, FlashAttention-2, section 4.1)
    micro_batch    4-bit weights read, unpacked ones written and read, for each pass; on a card
                   also KERNELS launches a layer and pass
    step           the optimizer reads and writes the adapter's weights and moments
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from discord_lora.analysis.plan.model_shapes import ALL_LINEAR, NF4_BYTES, ModelShape

Source = Literal["measured here", "calibrated", "modelled"]

BANDS = {"measured here": 1.1, "calibrated": 1.1, "modelled": 1.5}
"""Within which factor the truth is expected, by source: benchmarks/prediction.py."""

UNMEASURED_BAND = 2.0
"""The same for what is modelled for a card: nothing has been measured on one yet."""

KERNELS = 130
"""Kernels that a decoder layer launches in a pass, counted in this trainer's own layers. Forward
about 100: 7 LoRA layers at 8 (unpacking 3, the product, A and B cast and multiplied), 2 norms at
8, rotary embedding and attention 20, activation, product and sums 6. Backward about 165: 7 at 16
(unpacking and five products, casts, gradients added up), 2 norms at 10, attention and rotary
embedding 20, the rest 10. Not measured on a card."""

LAUNCH_SECONDS = 7.5e-6
"""Of one kernel, assumed: the driver takes 4 to 6 us of it (measured on an RTX 5070 Ti:
susun-blog.com, "From Launch Overhead to CUDA Graph"), PyTorch's own work is the rest. A card that
is busy hides launches behind its work, so for large models this says rather too much."""

LEARNING_BYTES = 40
"""Bytes an optimizer step moves for each trainable number: weight, gradient and two moments in
fp32, most of them read and written, and the gradient read once more for its norm."""


class Sized(Protocol):
    """An example, as far as time is concerned."""

    @property
    def trained_tokens(self) -> int: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Work:
    """How much there is to do."""

    steps: float = 0.0
    micro_batches: float = 0.0
    tokens: float = 0.0
    squared_tokens: float = 0.0
    """Sum over the examples of their squared lengths."""
    targets: float = 0.0
    """Trained tokens."""

    @classmethod
    def of(cls, rows: Iterable[Sequence[Sized]], steps: float = 0.0) -> "Work":
        """Of micro-batches, each a row of examples."""
        micro_batches, tokens, squared, targets = 0, 0, 0, 0
        for row in rows:
            micro_batches += 1
            for example in row:
                tokens += len(example)
                squared += len(example) ** 2
                targets += example.trained_tokens
        return cls(steps, micro_batches, tokens, squared, targets)

    def times(self, factor: float) -> "Work":
        return Work(*(factor * value for value in self.as_tuple()))

    def as_tuple(self) -> tuple[float, ...]:
        return (
            self.steps,
            self.micro_batches,
            self.tokens,
            self.squared_tokens,
            self.targets,
        )


@dataclass(frozen=True, slots=True)
class TimeModel:
    """Seconds that each unit of `Work` costs."""

    step: float
    micro_batch: float
    token: float
    squared_token: float
    target: float
    source: Source = "modelled"
    forward: float | None = None
    """Of `micro_batch`, what a pass that only goes forward takes; None: its share of the passes."""

    def seconds(self, work: Work) -> float:
        """Of training."""
        return float(np.dot(self.as_tuple(), work.as_tuple()))

    def evaluation_seconds(self, work: Work, checkpointed_share: float) -> float:
        """The way forward only, of the two that training goes, or with checkpointing three.

        What a micro-batch costs whatever its tokens is timed by itself where it can be: it is most
        of an answer's price, and in training mostly the way back's.
        """
        share = 1 / (2 + checkpointed_share)
        forward = self.micro_batch * share if self.forward is None else self.forward
        tokens = replace(work, steps=0.0, micro_batches=0.0)
        return self.seconds(tokens) * share + forward * work.micro_batches

    def as_tuple(self) -> tuple[float, ...]:
        return (self.step, self.micro_batch, self.token, self.squared_token, self.target)

    def scaled(self, factor: float, source: Source) -> "TimeModel":
        """Everything `factor` times as slow: what a finished run teaches."""
        step, micro_batch, token, squared_token, target = (factor * it for it in self.as_tuple())
        forward = None if self.forward is None else factor * self.forward
        return TimeModel(step, micro_batch, token, squared_token, target, source, forward)


def modelled(
    shape: ModelShape,
    *,
    flops_per_second: float,
    bytes_per_second: float,
    lora_r: int,
    checkpointed_share: float,
    number_bytes: int,
    lora_targets: str = ALL_LINEAR,
    launch_seconds: float = 0.0,
    quantized: bool = True,
) -> TimeModel:
    """From the model's sizes and the rates of the machine.

    Args:
        shape: the model.
        flops_per_second: that training reaches in matrix products, not the data sheet's peak.
        bytes_per_second: to and from memory.
        lora_r: rank of the adapter.
        checkpointed_share: of the layers.
        number_bytes: of an activation and an unpacked weight: 2 on a card, 4 on a CPU.
        lora_targets: which layers the adapter is on, as LORA_TARGET_MODULES says.
        launch_seconds: of a kernel.
        quantized: False if nothing has to be unpacked; weights are read all the same.
    """
    passes = 2 + checkpointed_share
    lora = shape.lora_weights(lora_r, lora_targets)
    launches = passes * shape.layers * KERNELS
    unpacked = NF4_BYTES + 2 * number_bytes if quantized else number_bytes
    return TimeModel(
        step=lora * LEARNING_BYTES / bytes_per_second,
        micro_batch=passes * shape.linear_weights * unpacked / bytes_per_second
        + launches * launch_seconds,
        token=(2 * passes * shape.linear_weights + 6 * lora) / flops_per_second,
        squared_token=shape.layers * 2 * shape.query * (1.5 + passes) / flops_per_second,
        target=4 * shape.vocabulary * shape.hidden / flops_per_second,
    )


def fit(
    samples: Sequence[tuple[Work, float]],
    step_seconds: float,
    before: TimeModel,
    forward_seconds: float | None = None,
) -> TimeModel:
    """Fit what a micro-batch and what its tokens cost to timed micro-batches.

    Two numbers are fitted, the price of a micro-batch and how much slower than modelled the tokens
    are, both at least zero, for the smallest sum of squared relative errors. How tokens, attention
    and head share the rest stays as modelled: a few rows cannot tell them apart.

    Args:
        samples: the work of one micro-batch each (its `steps` do not count), and its seconds.
        step_seconds: of the optimizer.
        before: the modelled prices.
        forward_seconds: of a pass forward over next to no tokens; None: not timed.
    """
    seconds = np.array([spent for _, spent in samples])
    tokens = replace(before, step=0.0, micro_batch=0.0)
    columns = np.array([[work.micro_batches, tokens.seconds(work)] for work, _ in samples])
    price, factor = _non_negative(columns / seconds[:, None], np.ones(len(seconds)))
    return TimeModel(
        step=step_seconds,
        micro_batch=price,
        token=factor * before.token,
        squared_token=factor * before.squared_token,
        target=factor * before.target,
        source="calibrated",
        forward=forward_seconds,
    )


def _non_negative(columns: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """Least squares of two columns with coefficients of at least zero."""
    best, *_ = np.linalg.lstsq(columns, wanted, rcond=None)
    if (best >= 0).all():
        return float(best[0]), float(best[1])
    alone = [max(0.0, float(column @ wanted / (column @ column))) for column in columns.T]
    candidates = [(alone[0], 0.0), (0.0, alone[1])]
    return min(candidates, key=lambda pair: float(((columns @ pair - wanted) ** 2).sum()))
