"""How much goes through the model at once, and how many layers are checkpointed: memory decides.

A checkpointed layer keeps only its input and computes the rest again. The plan is whatever lets
an optimizer step take the least work:

    work of a step = its tokens x (1 + checkpointed share / 2) + its micro-batches x FIXED_TOKENS

A frozen weight costs 2 FLOPs a token forward and 2 backward; checkpointing repeats the forward
pass, which is half of that again. A micro-batch costs a fixed price besides: each unpacks all
4-bit weights anew and starts every kernel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

FIXED_TOKENS = 100
"""Price of a micro-batch in tokens. Modelled for a 7B model on a 2080 Ti: unpacking its weights
twice moves 34 GB at 616 GB/s (56 ms), a token takes 28 GFLOP at 40 TFLOPS (0.7 ms)."""

RESERVE_BYTES = {"cuda": 1.0e9, "cpu": 2.0e9}
"""Stays free: for the desktop, for fragments, for what the model of memory does not know."""

LOGITS_AT_ONCE = 32 * 2**20
"""Logits that exist at one time: 128 MiB in fp32, whatever the vocabulary."""


@dataclass(frozen=True, slots=True)
class ActivationBytes:
    """What the forward pass keeps, in bytes a token."""

    layers: int
    layer: float
    """One layer that keeps everything."""
    layer_input: float
    """One layer that is checkpointed."""
    outside: float
    """Embedding, last norm and head."""
    fixed: float = 0.0
    """Bytes whatever the tokens: logits of one chunk, unpacked weights, gradients, optimizer."""

    def needed(self, tokens: int, checkpointed: int) -> float:
        """Most bytes a micro-batch takes at one time.

        Besides what is kept, one layer's gradients and its repeated activations exist at a time.
        """
        kept = (self.layers - checkpointed) * self.layer + checkpointed * self.layer_input
        return self.fixed + tokens * (kept + self.outside + 2 * self.layer)

    def tokens_that_fit(self, free: float, checkpointed: int) -> int:
        a_token = self.needed(1, checkpointed) - self.fixed
        return max(0, int((free - self.fixed) / a_token))


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The decision."""

    token_budget: int
    checkpointed: int
    """Layers, from the first: they would keep their activations longest."""
    expected_bytes: float
    activations: ActivationBytes
    """What it was decided from."""

    @property
    def layers(self) -> int:
        return self.activations.layers

    @property
    def checkpointed_share(self) -> float:
        return self.checkpointed / self.layers

    def __str__(self) -> str:
        return (
            f"micro-batches of up to {self.token_budget:,} tokens, {self.checkpointed} of "
            f"{self.layers} layers checkpointed, about {self.expected_bytes / 1e9:.1f} GB for them"
        )


def plan_memory(
    activations: ActivationBytes,
    free: float,
    step_tokens: Sequence[int],
    longest: int,
    *,
    token_budget: int | None,
    checkpointing: bool | None,
    packing: bool = True,
) -> MemoryPlan:
    """Choose token budget and checkpointed layers.

    Args:
        activations: what a token costs.
        free: bytes that may be taken.
        step_tokens: tokens of each optimizer step; no micro-batch needs to be larger than a step.
        longest: tokens of the longest example, which is never cut for memory.
        token_budget: what the user set; None: choose.
        checkpointing: what the user set; None: choose.
        packing: several examples in one micro-batch; else none is larger than the longest.
    """
    layers = activations.layers
    choices = range(layers + 1) if checkpointing is None else [layers * checkpointing]
    largest = max(*step_tokens, longest) if packing else longest
    options = []
    for checkpointed in choices:
        fits = activations.tokens_that_fit(free, checkpointed)
        budget = token_budget or min(largest, fits)
        if budget >= (0 if token_budget else longest) and _row(budget, largest, longest) <= fits:
            options.append(
                (_work(step_tokens, budget, checkpointed / layers), checkpointed, budget)
            )
    # Where nothing seems to fit, the smallest way is tried all the same: the estimate may be wrong.
    _, checkpointed, budget = min(options, default=(0.0, choices[-1], token_budget or longest))
    return MemoryPlan(
        token_budget=budget,
        checkpointed=checkpointed,
        expected_bytes=activations.needed(_row(budget, largest, longest), checkpointed),
        activations=activations,
    )


def usual_optimizer(*, on_cuda: bool) -> str:
    """What OPTIMIZER=auto means."""
    return "paged_adamw_8bit" if on_cuda else "adamw"


def optimizer_bytes(name: str) -> float:
    """That an optimizer keeps for each trainable number: two of one byte, or of four."""
    return 2.0 if "8bit" in name else 8.0


def _row(budget: int, largest: int, longest: int) -> int:
    """Tokens of the largest micro-batch: no longer than a step, and never cutting an example."""
    return max(min(budget, largest), longest)


def _work(step_tokens: Sequence[int], budget: int, checkpointed_share: float) -> float:
    """Of all steps, in tokens without checkpointing."""
    passes = sum(math.ceil(tokens / budget) for tokens in step_tokens)
    return sum(step_tokens) * (1 + checkpointed_share / 2) + passes * FIXED_TOKENS
