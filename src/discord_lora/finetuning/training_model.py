"""The model as training sees it: a micro-batch in, its summed loss out.

There are two ways to the same loss. The general one is transformers' own and serves any causal
language model. The fast ones replace pieces of it where that is possible, and each has to prove
itself on the loaded model before it is used: same loss, same gradients.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional

from discord_lora.conversations.examples import TokenizedExample
from discord_lora.conversations.packing import MicroBatch, collate
from discord_lora.finetuning import fused_layers
from discord_lora.finetuning.head_loss import head_loss
from discord_lora.finetuning.packed_attention import Segments, use_packed_attention
from discord_lora.finetuning.processes import sharded_like, whole

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Relative difference of losses and gradients that rounding explains, by number format."""

PROBE_LENGTHS = (13, 8, 7)
"""Examples of the proof: padding, a batch of several, and neighbours on both sides."""


class TrainingModel(nn.Module):
    """A causal language model whose output is the loss of a micro-batch."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.has_segments = False
        self.has_head_loss = False

    def forward(self, batch: MicroBatch) -> Tensor:
        """Cross-entropy summed over the micro-batch's target tokens, in nats.

        The head runs at the predicting positions only. No attention mask is passed: from
        positions that start again, and only then, transformers builds the block-diagonal mask
        that keeps packed neighbours apart; `segments` do the same without a mask.
        """
        inputs: dict[str, Any] = {
            "input_ids": batch.input_ids,
            "position_ids": batch.position_ids,
            "use_cache": False,
        }
        if self.has_segments:
            inputs["segments"] = Segments.of(batch.lengths, batch.input_ids.device)
        if self.has_head_loss:
            causal = self.causal_model
            hidden = causal.get_decoder()(**inputs).last_hidden_state[0]
            return head_loss(hidden[batch.predictors], causal.get_output_embeddings(), batch.labels)
        logits = self.model(**inputs, logits_to_keep=batch.predictors).logits[0].float()
        return functional.cross_entropy(logits, batch.labels, reduction="sum")

    @property
    def causal_model(self) -> Any:
        """The transformers model with the adapter in its layers."""
        return self.model.get_base_model()

    @property
    def _no_split_modules(self) -> list[str]:
        """The layers, by which accelerate shards a model (FSDP)."""
        here = {type(module).__name__ for module in self.model.modules()}
        return [name for name in self.causal_model._no_split_modules or () if name in here]

    def tie_weights(self) -> None:
        """Embedding and head are one again after accelerate moved them apart (FSDP)."""
        self.causal_model.tie_weights()

    def trainable(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}


@dataclass(frozen=True, slots=True)
class Paths:
    """What the proofs found."""

    packing: bool
    """False if packed examples reach each other through this model: one at a time then."""
    fast: tuple[str, ...]
    general: tuple[str, ...]
    """Pieces for which this model needs the general way."""


def choose_paths(model: TrainingModel) -> Paths:
    """Switch on every fast piece that gives this model's own loss and gradients.

    Positions that start again keep attention apart; convolutions and linear attention, which some
    models have, need more than that, so packing itself is proved first.
    """
    rows = [random_example(model, length) for length in PROBE_LENGTHS]
    single = [collate([example]) for example in rows]
    together = [collate(rows)]
    with _awake(model):
        expected = _loss_and_gradients(model, single)
        packing = _same(model, expected, together)
        batches = together if packing else single
        fast, general = [], []
        for name, switch_on in _pieces(model).items():
            take_back = switch_on()
            if _same(model, expected, batches):
                fast.append(name)
            else:
                take_back()
                general.append(name)
    return Paths(packing, tuple(fast), tuple(general))


def _pieces(model: TrainingModel) -> dict[str, Callable[[], Callable[[], None]]]:
    """What can be fast: name -> what switches it on and returns what takes it back."""

    def head() -> Callable[[], None]:
        model.has_head_loss = True
        return lambda: setattr(model, "has_head_loss", False)

    def attention() -> Callable[[], None]:
        before = model.causal_model.config._attn_implementation
        use_packed_attention(model.causal_model)
        model.has_segments = True

        def take_back() -> None:
            model.causal_model.set_attn_implementation(before)
            model.has_segments = False

        return take_back

    fused = {
        kind: lambda kind=kind: fused_layers.fuse(model.model, kind) for kind in fused_layers.KINDS
    }
    return {"attention": attention, "head": head, **fused}


def random_example(model: TrainingModel, length: int) -> TokenizedExample:
    """Tokens that mean nothing, nearly all of them trained."""
    vocabulary = model.causal_model.get_input_embeddings().num_embeddings
    random = np.random.default_rng(length)
    return TokenizedExample(
        conversation_id="random",
        message_ids=("random",),
        input_ids=random.integers(0, vocabulary, length, dtype=np.int32),
        trained=np.arange(length) >= 2,
        characters=0,
    )


@contextmanager
def _awake(model: TrainingModel) -> Iterator[None]:
    """LoRA's B matrices begin at zero, where no gradient would reach A: give them values."""
    sleeping = {n: p for n, p in model.trainable().items() if "lora_B" in n}
    before = {name: p.detach().clone() for name, p in sleeping.items()}
    generator = torch.Generator().manual_seed(0)
    was_training = model.training
    model.eval()  # without dropout
    try:
        with torch.no_grad():
            for p in sleeping.values():
                p.copy_(sharded_like(p, torch.randn(p.shape, generator=generator) * 0.02))
        yield
    finally:
        with torch.no_grad():
            for name, p in sleeping.items():
                p.copy_(before[name])
        model.zero_grad(set_to_none=True)
        model.train(was_training)


def _loss_and_gradients(model: TrainingModel, batches: list[MicroBatch]) -> tuple[Tensor, Tensor]:
    """Summed loss, and the gradients of all trainable weights in one vector."""
    parameters = list(model.trainable().values())
    device = parameters[0].device
    model.zero_grad(set_to_none=True)
    total = torch.zeros((), device=device)
    for batch in batches:
        loss = model(batch.to(device))
        loss.backward()
        total += loss.detach()
    zeros = (p.new_zeros(p.shape) if p.grad is None else p.grad for p in parameters)
    return total, torch.cat([whole(gradient).flatten().float() for gradient in zeros])


def _same(model: TrainingModel, expected: tuple[Tensor, Tensor], batches: list[MicroBatch]) -> bool:
    try:
        found = _loss_and_gradients(model, batches)
    except (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        if isinstance(model, FSDPModule):
            model.reset_iter_state()  # of the pass that broke off
        return False  # this model cannot be called in this way
    tolerance = TOLERANCE[model.causal_model.get_input_embeddings().weight.dtype]
    return all(
        bool((a - b).norm() <= tolerance * b.norm()) for a, b in zip(found, expected, strict=True)
    )
