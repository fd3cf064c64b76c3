"""The machine at hand: device, number format and free memory."""

import gc
import os
from dataclasses import dataclass
from typing import Literal

import psutil
import torch

Precision = Literal["no", "fp16", "bf16"]

BF16_CAPABILITY = (8, 0)
"""Ampere. `torch.cuda.is_bf16_supported()` says yes on Turing as well, where it is emulated."""

DRIVER_BYTES = 0.3e9
"""Stays free for what takes memory on the card without asking torch."""


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
            gc.collect()
            torch.cuda.empty_cache()  # what torch holds for reuse is free as well
            return int(torch.cuda.mem_get_info(self.device)[0])
        return int(psutil.virtual_memory().available)

    def used_bytes(self) -> int:
        """Memory in use: on the card by anybody, without one by this process."""
        if self.is_cuda:
            free, total = torch.cuda.mem_get_info(self.device)
            return int(total - free)
        return int(psutil.Process().memory_info().rss)

    def stay_on_the_card(self) -> None:
        """Let torch run out of memory where Windows would go on in the computer's, many times
        slower ("Sysmem Fallback"): running out is what finds the size that fits."""
        if self.is_cuda and os.name == "nt":
            share = (self.free_bytes() - DRIVER_BYTES) / self.total_bytes
            torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, share)), self.device)


OUT_OF_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: Exception) -> bool:
    """True for the ways in which torch says so: only its own allocator on the card has an
    exception for it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in OUT_OF_MEMORY)


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
