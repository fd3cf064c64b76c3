"""Cross-entropy behind a frozen head, with its gradient found on the way forward.

The head does not learn, so the only gradient is the one for the hidden states, and it needs the
logits just once: softmax minus the label's one, times the head's weights. Done chunk by chunk,
the whole matrix of logits (targets x vocabulary) never exists and nothing is recomputed. The idea
is that of Liger-Kernel's fused linear cross-entropy (Hsu et al. 2024, arXiv:2410.10989) in plain
torch, so it runs on every device.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from discord_lora.analysis.plan.memory import LOGITS_AT_ONCE

FP16_GAIN = 2.0**8
"""fp16 has no numbers below 6e-8, and before the loss scale is applied most gradients are small."""


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        ctx.gain = FP16_GAIN if weight.dtype == torch.float16 else 1.0
        gradient = torch.empty_like(hidden) if wanted else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        rows = max(1, LOGITS_AT_ONCE // weight.shape[0])
        buffer = _place_for_logits(rows, weight.shape[0], hidden.dtype, hidden.device)
        for start in range(0, len(labels), rows):
            chunk = slice(start, start + rows)
            label = labels[chunk, None]
            logits = torch.mm(hidden[chunk], weight.T, out=buffer[: len(label)])
            if bias is not None:
                logits += bias
            highest, of_label = logits.amax(1).float(), logits.gather(1, label)[:, 0].float()
            likely = _softmax(logits)
            # The likeliest token is never too unlikely for a logarithm; the label may be.
            total += (highest - likely.amax(1).log() - of_label).sum()
            if gradient is not None:
                likely.scatter_add_(1, label, likely.new_full(label.shape, -1.0))
                if ctx.gain != 1.0:
                    likely *= ctx.gain
                torch.mm(likely.to(weight.dtype), weight, out=gradient[chunk])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        scaled = gradient.float() * (scale / ctx.gain)
        return scaled.to(gradient.dtype), None, None, None


@lru_cache(maxsize=1)
def _place_for_logits(rows: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Where all logits are written, chunk by chunk and micro-batch by micro-batch.

    Fresh pages for so much memory cost more than the softmax, and pieces of as many sizes as there
    are micro-batches leave gaps in a heap that nothing else fits (benchmarks/LOG.md). Rows that no
    chunk was long enough for are not written, and so take none of the computer's memory.
    """
    return torch.empty(rows, size, dtype=dtype, device=device)


_loss: Any = _HeadLoss.apply


def _softmax(logits: Tensor) -> Tensor:
    """Over the vocabulary, in fp32; in place of the logits if they are fp32 already."""
    out = logits if logits.dtype == torch.float32 else None
    return torch.softmax(logits, dim=1, dtype=torch.float32, out=out)


def head_loss(hidden: Tensor, head: torch.nn.Linear, labels: Tensor) -> Tensor:
    """Cross-entropy summed over the targets, in nats, fp32.

    Args:
        hidden: (targets, size), the last hidden states where a target is predicted.
        head: (vocabulary, size), frozen.
        labels: int64 of shape (targets,).
    """
    dtype = head.weight.dtype
    result: Tensor = _loss(hidden.to(dtype), head.weight, head.bias, labels)
    return result
