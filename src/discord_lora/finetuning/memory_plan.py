"""How much goes through the model at once, and how many layers are checkpointed: memory decides.

What a token costs is measured on the loaded model: the bytes that its forward pass keeps for the
backward pass. A checkpointed layer keeps only its input and computes the rest again. The plan is
whatever lets an optimizer step take the least work:

    work of a step = its tokens x (1 + checkpointed share / 2) + its micro-batches x FIXED_TOKENS

A frozen weight costs 2 FLOPs a token forward and 2 backward; checkpointing repeats the forward
pass, which is half of that again. A micro-batch costs a fixed price besides: each unpacks all
4-bit weights anew and starts every kernel.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from discord_lora.conversations.packing import collate
from discord_lora.finetuning.head_loss import LOGITS_AT_ONCE
from discord_lora.finetuning.training_model import TrainingModel, random_example

FIXED_TOKENS = 100
"""Price of a micro-batch in tokens. Modelled for a 7B model on a 2080 Ti: unpacking its weights
twice moves 34 GB at 616 GB/s (56 ms), a token takes 28 GFLOP at 40 TFLOPS (0.7 ms)."""

RESERVE_BYTES = {"cuda": 1.0e9, "cpu": 2.0e9}
"""Stays free: for the desktop, for fragments, for what the model of memory does not know."""

PROBE_TOKENS = 96


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
    layers: int
    expected_bytes: float

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
) -> MemoryPlan:
    """Choose token budget and checkpointed layers.

    Args:
        activations: what a token costs.
        free: bytes that may be taken.
        step_tokens: tokens of each optimizer step; no micro-batch needs to be larger than a step.
        longest: tokens of the longest example, which is never cut for memory.
        token_budget: what the user set; None: choose.
        checkpointing: what the user set; None: choose.
    """
    layers = activations.layers
    choices = range(layers + 1) if checkpointing is None else [layers * checkpointing]
    largest = max(*step_tokens, longest)
    options = []
    for checkpointed in choices:
        fits = activations.tokens_that_fit(free, checkpointed)
        budget = token_budget or min(largest, fits)
        if budget >= longest and (token_budget or 0) <= fits:
            options.append(
                (_work(step_tokens, budget, checkpointed / layers), checkpointed, budget)
            )
    # Where nothing seems to fit, the smallest way is tried all the same: the estimate may be wrong.
    _, checkpointed, budget = min(options, default=(0.0, choices[-1], token_budget or longest))
    return MemoryPlan(
        token_budget=budget,
        checkpointed=checkpointed,
        layers=layers,
        expected_bytes=activations.needed(min(budget, largest), checkpointed),
    )


def _work(step_tokens: Sequence[int], budget: int, checkpointed_share: float) -> float:
    """Of all steps, in tokens without checkpointing."""
    passes = sum(math.ceil(tokens / budget) for tokens in step_tokens)
    return sum(step_tokens) * (1 + checkpointed_share / 2) + passes * FIXED_TOKENS


def checkpointing_layers(model: nn.Module) -> list[Any]:
    """The layers that transformers can checkpoint one by one."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def checkpoint_layers(model: TrainingModel, count: int) -> None:
    """Checkpoint the first `count` layers and no other."""
    if not count:
        return
    model.causal_model.activation_checkpointing_enable(
        activation_checkpointing_kwargs={"use_reentrant": False}
    )
    for layer in checkpointing_layers(model)[count:]:
        layer.gradient_checkpointing = False


def measure_activations(model: TrainingModel, optimizer_bytes: float) -> ActivationBytes:
    """Run a short row through the model and count what it keeps.

    Args:
        model: as it will be trained, on its device, without checkpointing.
        optimizer_bytes: that the optimizer keeps for each trainable number.
    """
    layers = checkpointing_layers(model)
    batch = collate([random_example(model, PROBE_TOKENS)])
    embedding = model.causal_model.get_input_embeddings().weight
    inside, outside = _kept_bytes(model, layers, lambda: model(batch.to(embedding.device)))
    hidden = model.causal_model.get_output_embeddings().weight.shape[-1]
    trainable = sum(parameter.numel() for parameter in model.trainable().values())
    largest = max(p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in model.parameters())
    vocabulary = embedding.shape[0]
    return ActivationBytes(
        layers=max(1, len(layers)),
        layer=inside / PROBE_TOKENS / max(1, len(layers)),
        layer_input=hidden * embedding.element_size(),
        outside=outside / PROBE_TOKENS,
        fixed=(
            max(LOGITS_AT_ONCE, vocabulary) * (4.0 + embedding.element_size())
            + 2 * largest * embedding.element_size()
            + trainable * (4.0 + optimizer_bytes)
        ),
    )


def _kept_bytes(
    model: nn.Module, layers: Sequence[nn.Module], forward: Callable[[], Tensor]
) -> tuple[int, int]:
    """Bytes that autograd keeps, inside the layers and outside; weights do not count."""
    weights = {it.untyped_storage().data_ptr() for it in (*model.parameters(), *model.buffers())}
    seen: dict[int, int] = {}
    bytes_inside = 0
    with _depth_of(layers) as depth:

        def keep(tensor: Tensor) -> Tensor:
            nonlocal bytes_inside
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights and storage.data_ptr() not in seen:
                seen[storage.data_ptr()] = storage.nbytes()
                bytes_inside += storage.nbytes() if depth() else 0
            return tensor

        was_training = model.training
        model.train()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = forward()
        model.train(was_training)
    del loss  # until here everything that was seen had to stay alive: no address came twice
    return bytes_inside, sum(seen.values()) - bytes_inside


@contextmanager
def _depth_of(layers: Sequence[nn.Module]) -> Iterator[Callable[[], int]]:
    """Tells how many of the layers are being run at the moment."""
    depth = 0

    def change(by: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            nonlocal depth
            depth += by

        return hook

    hooks = [layer.register_forward_pre_hook(change(1)) for layer in layers]
    hooks += [layer.register_forward_hook(change(-1)) for layer in layers]
    try:
        yield lambda: depth
    finally:
        for hook in hooks:
            hook.remove()
