"""Attention inside the examples of a packed row, at the cost of the examples and not of the row.

A dense mask over a row of 1,024 tokens computes a million scores a head, although each token may
look at its own example only. Here the examples of a row, longest first, are padded to batches of
nearly equal length, and each batch is plain causal attention: padding stands at the end, where
causality hides it, so no mask is needed and SDPA may choose its fastest kernel.

row      | example A (5 tokens) | example B (4) | C (2) |
batches  [ a a a a a ]              [ c c ]
         [ b b b b . ]
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.backends import cuda as kernels
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from discord_lora.conversations.packing import to_device

NAME = "packed"
"""The implementation's name in transformers. It has no mask function there, so none is built."""

MOST_PADDING = 0.25
"""Share of a batch that may be padding: more batches are more calls, more padding more work."""


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Examples of nearly equal length, a contiguous stretch of the row."""

    start: int
    end: int
    count: int
    length: int
    slots: Tensor | None
    """Where each token stands in the padded batch: int64 of shape (end - start,); None if nothing
    is padded."""


@dataclass(frozen=True, slots=True)
class Segments:
    """How a row is cut into examples."""

    batches: tuple[PaddedBatch, ...]

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Segments":
        """Plan the batches of a row whose examples have these lengths, in this order."""
        ends = [0, *accumulate(lengths)]
        batches = []
        first = 0
        for last in range(1, len(lengths) + 1):
            longest = max(lengths[first : last + 1])
            padded = longest * (last + 1 - first)
            if last == len(lengths) or ends[last + 1] - ends[first] < (1 - MOST_PADDING) * padded:
                batches.append(_batch(lengths[first:last], ends[first], device))
                first = last
        return cls(tuple(batches))


def _batch(lengths: Sequence[int], start: int, device: torch.device) -> PaddedBatch:
    longest = max(lengths)
    slots = None
    if min(lengths) < longest:
        rows = [torch.arange(length) + row * longest for row, length in enumerate(lengths)]
        slots = to_device(torch.cat(rows), device)
    return PaddedBatch(start, start + sum(lengths), len(lengths), longest, slots)


class _Pad(torch.autograd.Function):
    """(tokens, heads, size) -> (slots, heads, size), zeros where nothing stands."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, slots: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(slots)
        return tokens.new_zeros(size, *tokens.shape[1:]).index_copy_(0, slots, tokens)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slots,) = ctx.saved_tensors
        return gradient.index_select(0, slots), None, None


class _Unpad(torch.autograd.Function):
    """The way back. Each slot is read once, so its gradient is copied: cheaper than added."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.size = padded.shape[0]
        return padded.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slots,) = ctx.saved_tensors
        padded = gradient.new_zeros(ctx.size, *gradient.shape[1:])
        return padded.index_copy_(0, slots, gradient), None


_pad: Any = _Pad.apply
_unpad: Any = _Unpad.apply


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention of one row, each example by itself.

    Args:
        module: the attention layer; not used.
        query: (1, heads, tokens, size).
        key: (1, key heads, tokens, size); with fewer heads than `query`, each serves several.
        value: as `key`.
        attention_mask: must be None when there are segments.
        segments: the row's examples; without them this is transformers' own SDPA.
        scaling: of the scores; None: 1 / sqrt(size).
        dropout: share of the attention weights dropped.
        sliding_window: how far back a token looks, in tokens; None: to its example's start.
        options: what this kind of model passes besides.

    Returns:
        (1, tokens, heads, size), and no attention weights.

    Raises:
        ValueError: the model wants more from its attention than this does (soft-capped scores).
    """
    if segments is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    if options.get("softcap") is not None or options.get("position_bias") is not None:
        raise ValueError("packed attention has neither soft-capped nor biased scores")
    rows = tuple(states[0].transpose(0, 1) for states in (query, key, value))
    outputs = [
        _attend(
            tuple(row[batch.start : batch.end] for row in rows),
            batch,
            scaling,
            dropout,
            sliding_window,
        )
        for batch in segments.batches
    ]
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None], None


def _attend(
    states: tuple[Tensor, ...],
    batch: PaddedBatch,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> Tensor:
    """Attention of one batch; `states` are query, key and value of (tokens, heads, size)."""
    query, key, value = (_heads(rows, batch) for rows in states)
    groups = query.shape[1] // key.shape[1]
    banded = window is not None and window < batch.length
    mask = _band(batch.length, window, query.device) if banded else None
    if groups > 1 and not _groups_are_fast(query, key, value, mask, dropout):
        key, value = (rows.repeat_interleave(groups, dim=1) for rows in (key, value))
    output = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=not banded,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    tokens = output.transpose(1, 2).flatten(0, 1)
    if batch.slots is not None:
        tokens = _unpad(tokens, batch.slots)
    return tokens


def _heads(states: Tensor, batch: PaddedBatch) -> Tensor:
    """(tokens, heads, size) -> (examples, heads, length, size)."""
    if batch.slots is not None:
        states = _pad(states, batch.slots, batch.count * batch.length)
    return states.view(batch.count, batch.length, *states.shape[1:]).transpose(1, 2)


def _groups_are_fast(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float
) -> bool:
    """Whether a fast kernel of this card takes grouped heads.

    If none does, as before Ampere, with a mask, or with large or unequal sizes, SDPA would fall
    back to the slow reference, which writes all scores down. Torch knows its own rules best.
    """
    if query.device.type != "cuda":
        return True
    asked = kernels.SDPAParams(query, key, value, mask, dropout, mask is None, True)
    return kernels.can_use_flash_attention(asked) or kernels.can_use_efficient_attention(asked)


def _band(length: int, window: int | None, device: torch.device) -> Tensor:
    """True where a token looks: at itself and the `window` - 1 before it."""
    back = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (back >= 0) & (back < (window or length))


def use_packed_attention(model: Any) -> None:
    """Let a transformers model attend inside the `segments` that its forward is given."""
    AttentionInterface.register(NAME, packed_attention)
    model.set_attn_implementation(NAME)


@contextmanager
def usual_attention(model: Any) -> Iterator[None]:
    """Inside, a transformers model attends as if `use_packed_attention` had never been: it obeys
    attention masks and windows, which it must where it writes."""
    if model.config._attn_implementation != NAME:
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(NAME)
