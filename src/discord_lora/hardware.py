"""The machine at hand: device, number format and free memory."""

from dataclasses import dataclass
from typing import Literal

import psutil
import torch

Precision = Literal["no", "fp16", "bf16"]

BF16_CAPABILITY = (8, 0)
"""Ampere. `torch.cuda.is_bf16_supported()` says yes on Turing as well, where it is emulated."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where the model runs and in which number format."""

    device: torch.device
    name: str
    dtype: torch.dtype
    """Of the activations and of weights that are not quantized."""
    precision: Precision
    """Mixed precision in accelerate's words."""
    total_bytes: int

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def free_bytes(self) -> int:
        """Memory that could be taken now, on the card or, without one, of the computer."""
        if self.is_cuda:
            return int(torch.cuda.mem_get_info(self.device)[0])
        return int(psutil.virtual_memory().available)

    def used_bytes(self) -> int:
        """Memory in use: on the card by anybody, without one by this process."""
        if self.is_cuda:
            free, total = torch.cuda.mem_get_info(self.device)
            return int(total - free)
        return int(psutil.Process().memory_info().rss)


def detect_hardware(index: int = 0) -> Hardware:
    """The CUDA card with this index, or the CPU."""
    if not torch.cuda.is_available():
        # bf16 exists on the CPU, but fp32 is faster there.
        total = psutil.virtual_memory().total
        return Hardware(torch.device("cpu"), "CPU", torch.float32, "no", total)
    device = torch.device("cuda", index)
    card = torch.cuda.get_device_properties(device)
    has_bf16 = torch.cuda.get_device_capability(device) >= BF16_CAPABILITY
    return Hardware(
        device=device,
        name=card.name,
        dtype=torch.bfloat16 if has_bf16 else torch.float16,
        precision="bf16" if has_bf16 else "fp16",
        total_bytes=card.total_memory,
    )
