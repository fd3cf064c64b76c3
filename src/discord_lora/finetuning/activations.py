"""What a token costs, measured on the loaded model, and what is decided on it: how many go through
at once, and how many layers are checkpointed.

The bytes that the forward pass keeps for the backward pass are counted as autograd keeps them, so
the figure holds for any model, with or without the fast pieces. What follows from it is decided
in `analysis/plan/memory.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from discord_lora.analysis.plan.memory import (
    LOGITS_AT_ONCE,
    RESERVE_BYTES,
    ActivationBytes,
    MemoryPlan,
    optimizer_bytes,
    plan_memory,
)
from discord_lora.conversations.packing import TrainingPlan, collate, divide
from discord_lora.finetuning.fast_paths import random_example
from discord_lora.finetuning.processes import is_sharded, smallest
from discord_lora.finetuning.training_model import TrainingModel
from discord_lora.hardware import Hardware
from discord_lora.settings import Settings

PROBE_TOKENS = 96


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


def decide_memory(
    model: TrainingModel,
    plan: TrainingPlan,
    settings: Settings,
    accelerator: Accelerator,
    hardware: Hardware,
    optimizer_kind: str,
    *,
    packing: bool,
) -> MemoryPlan:
    """Token budget and checkpointed layers, as set or as the free memory allows.

    The same for all processes: that of the one with the least memory, and of the largest share
    of each step.
    """
    activations = measure_activations(model, optimizer_bytes(optimizer_kind))
    budget, checkpointing = settings.max_tokens_per_microbatch, settings.gradient_checkpointing
    gathered = 0
    if is_sharded(accelerator):
        cast(FSDPModule, model).reshard()  # of what was gathered to be measured
        gathered = gathered_bytes(model)
    free = smallest(accelerator, hardware.free_bytes() - gathered)
    return plan_memory(
        activations,
        free - RESERVE_BYTES[hardware.device.type],
        [
            max(sum(map(len, part)) for part in divide(examples, accelerator.num_processes))
            for examples in plan.walk()
        ],
        max(map(len, plan.examples)),
        token_budget=None if budget == "auto" else budget,
        checkpointing=None if checkpointing == "auto" else checkpointing == "true",
        packing=packing,
    )


def measure_activations(model: TrainingModel, moment_bytes: float) -> ActivationBytes:
    """Run a short row through the model and count what it keeps.

    Args:
        model: as it will be trained, on its device, without checkpointing.
        moment_bytes: that the optimizer keeps for each trainable number.
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
            + trainable * (4.0 + moment_bytes)
        ),
    )


def gathered_bytes(model: TrainingModel) -> int:
    """Bytes of weights that are whole in each process at one time, when they are sharded.

    What lies outside the layers (embedding, head) stays from a pass's start to its end; of the
    layers there is the one that is computed, and the next on its way.
    """
    size = model.causal_model.get_input_embeddings().weight.element_size()
    numbers = [sum(p.numel() for p in layer.parameters()) for layer in checkpointing_layers(model)]
    outside = sum(p.numel() for p in model.parameters()) - sum(numbers)
    return int(size * (outside + 2 * max(numbers, default=0)))


def _kept_bytes(
    model: nn.Module, layers: Sequence[nn.Module], forward: Callable[[], Tensor]
) -> tuple[int, int]:
    """Bytes that autograd keeps, inside the layers and outside; weights do not count."""
    here = [it for it in (*model.parameters(), *model.buffers()) if not isinstance(it, DTensor)]
    weights = {it.untyped_storage().data_ptr() for it in here}
    seen: dict[int, int] = {}
    bytes_inside = 0
    with _depth_of(layers) as depth:

        def keep(tensor: Tensor) -> Tensor:
            nonlocal bytes_inside
            storage = tensor.untyped_storage()
            address = storage.data_ptr()
            if address not in weights and address not in seen and not _is_weight(tensor):
                seen[address] = storage.nbytes()
                bytes_inside += storage.nbytes() if depth() else 0
            # Not the tensor itself: what an operator keeps of its own output would hold the
            # operator, which holds it, and the probe's graph would never be freed.
            return tensor.detach()

        was_training = model.training
        model.train()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = forward()
        model.train(was_training)
    del loss  # until here everything that was seen had to stay alive: no address came twice
    return bytes_inside, sum(seen.values()) - bytes_inside


def _is_weight(tensor: Tensor) -> bool:
    """Sharded weights are gathered for the moment, so their addresses do not tell."""
    return isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)


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
