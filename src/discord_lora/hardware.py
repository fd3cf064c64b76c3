"""The machine at hand: device, number format and free memory."""

import ctypes
import gc
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import psutil
import pynvml
import torch

from discord_lora.analysis.plan.cards import find_card
from discord_lora.analysis.plan.estimates import CONTEXT_BYTES, Machine
from discord_lora.console import UserError

Precision = Literal["no", "fp16", "bf16"]

GEMM_SIZE = {"cpu": 1024, "cuda": 2048}
GEMM_TIMES = 24
"""A third of a second on two cores. Too few may all meet a slow moment (benchmarks/LOG.md)."""

COPY_BYTES, COPY_TIMES = 256 * 2**20, 4

MEASURED_UTILISATION = 0.65
"""Share of a card's own rate in large products that training is assumed to reach; not measured."""

BF16_CAPABILITY = (8, 0)
"""Ampere. `torch.cuda.is_bf16_supported()` says yes on Turing as well, where it is emulated."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""

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
    capability: tuple[int, int] | None = None
    """CUDA's compute capability; None without a card."""

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def why_dtype(self) -> str:
        """Why the numbers have the format that they have."""
        if self.capability is None:
            return "fp32: a CPU computes in it faster than in 16 bits"
        of_the_card = "compute capability {}.{}".format(*self.capability)
        if self.capability >= BF16_CAPABILITY:
            return f"bf16: {of_the_card} is at least 8.0"
        turing = " (Turing)" if self.capability == (7, 5) else ""
        return f"fp16: {of_the_card}{turing} is below 8.0, and bf16 only emulated there"

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

    def forget_peak(self) -> None:
        """Let `peak_bytes` count from now on, where the system can do that."""
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        elif sys.platform == "linux":
            with suppress(OSError):  # some containers do not let us
                Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM

    def peak_bytes(self) -> int:
        """Most memory that this process has held so far."""
        if self.is_cuda:
            return int(torch.cuda.max_memory_reserved(self.device) + CONTEXT_BYTES["cuda"])
        return peak_rss()

    @property
    def description(self) -> str:
        """By which timings are found again."""
        return self.name if self.is_cuda else f"{self.name} x {torch.get_num_threads()}"

    def machine(self) -> Machine:
        """For estimates: a card by its name if it is a known one, else by a short measurement."""
        if not self.is_cuda:
            return Machine.of_cpu(self.gemm_flops_per_second(), self.free_bytes())
        card = find_card(self.name)
        if card is not None:  # cards of one name come with different memory
            return replace(Machine.of_card(card), memory_bytes=self.total_bytes)
        rate = MEASURED_UTILISATION * self.gemm_flops_per_second()
        bandwidth = self._copy_bytes_per_second()
        return Machine(self.name, "cuda", self.total_bytes, rate, bandwidth)

    def gemm_flops_per_second(self) -> float:
        """The best rate of a few square matrix products in the model's number format."""
        size = GEMM_SIZE[self.device.type]
        a = torch.randn(size, size, device=self.device, dtype=self.dtype)
        best = min(self._product_seconds(a) for _ in range(GEMM_TIMES))
        return float(2 * size**3 / best)

    def _copy_bytes_per_second(self) -> float:
        """Read and written."""
        numbers = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=self.device)
        began = self.now()
        for _ in range(COPY_TIMES):
            numbers.clone()
        return 2.0 * COPY_TIMES * COPY_BYTES / (self.now() - began)

    def _product_seconds(self, a: torch.Tensor) -> float:
        began = self.now()
        a @ a
        return self.now() - began

    def now(self) -> float:
        """A clock that waits for the card."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    # Mapping a file, as the systems say it in their languages.
    "Cannot allocate memory",
    "os error 1455",
    "WinError 1455",
)


CARD_FAILURES = (
    "unspecified launch failure",
    "the launch timed out",
    "unknown error",
    "uncorrectable ECC error",
    "hardware error",
    "busy or unavailable",
    "no CUDA-capable device",
    "driver shutting down",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUBLAS_STATUS_EXECUTION_FAILED",
)


def is_out_of_memory(error: Exception) -> bool:
    """True for the ways in which torch says so: only its own allocator on the card has an
    exception for it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in OUT_OF_MEMORY)


@contextmanager
def memory_must_suffice(otherwise: str) -> Iterator[None]:
    """For work that cannot be done in smaller pieces.

    Raises:
        UserError: `otherwise`, where memory runs out inside.
    """
    try:
        yield
    except Exception as error:  # also safetensors' own
        if not is_out_of_memory(error):
            raise
        raise UserError(otherwise) from error


@contextmanager
def card_must_answer() -> Iterator[None]:
    """Raises UserError where the card or its driver fails inside: that is no fault of the run's."""
    try:
        yield
    except RuntimeError as error:
        if not is_card_failure(error):
            raise
        words = str(error).splitlines()[0]
        raise UserError(
            f"The card failed ({words}). Look at it with nvidia-smi: overclocking, heat, power, or "
            "a driver that was updated meanwhile. Restart the computer, then run the same command "
            "again: it goes on from the last checkpoint."
        ) from error


def is_card_failure(error: Exception) -> bool:
    """True for CUDA's errors (cudaGetErrorString) that are the machine's, as far as one can tell.

    Not for those of a kernel that is called wrongly: those are bugs.
    """
    text = str(error)
    return ("CUDA" in text or "CUBLAS" in text) and any(words in text for words in CARD_FAILURES)


def release_freed_memory() -> None:
    """Hand freed memory back, wherever work of one kind ends and another begins.

    torch keeps that of a card, and glibc that of the computer: some hundred MB that quantizing or
    the try of the largest micro-batch took, in pieces that fit nothing else, more or less from run
    to run, so that no plan of memory could be right.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    release_freed_ram()


def release_freed_ram() -> None:
    """Hand back what glibc keeps of the computer's memory, and leave a card's where it is.

    Training does it after each step: what one micro-batch frees fits the next, of another length,
    only in part, and left as it is the process grows by chance (benchmarks/LOG.md).
    """
    if libc := _glibc():
        libc.malloc_trim(0)


@contextmanager
def freed_at_once() -> Iterator[None]:
    """Large pieces that are freed inside go back to the system at once, as `release_freed_memory`
    does it before and afterwards: what is done inside then peaks lower, and nearly as high each
    time (benchmarks/LOG.md).

    It costs new pages for each piece, so it is nothing for training. For pieces of 2 MiB and more,
    which the sample model's larger weights are, that is about 0.3 s in loading, and as much in the
    proof of the fast paths.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.malloc_trim(0)
    libc.mallopt(M_MMAP_THRESHOLD, 2 * 2**20)
    try:
        yield
    finally:
        # The most that glibc's own thresholds come to, which stop moving once they are set.
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(M_TRIM_THRESHOLD, 64 * 2**20)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """None with another C library."""
    if sys.platform != "linux":
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


def peak_rss() -> int:
    """Most bytes of RAM that this process held so far."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "linux":
        # Not `ru_maxrss`: a new process inherits it from the one that started it (getrusage(2)).
        with suppress(OSError, StopIteration):
            lines = Path("/proc/self/status").read_text().splitlines()
            return 1024 * next(int(it.split()[1]) for it in lines if it.startswith("VmHWM:"))
    import resource  # noqa: PLC0415 - there is none on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def the_cpu() -> Hardware:
    """bf16 exists on the CPU, but fp32 is faster there."""
    total = psutil.virtual_memory().total
    return Hardware(torch.device("cpu"), "CPU", torch.float32, "no", total)


def detect_hardware(index: int = 0) -> Hardware:
    """The CUDA card with this index, or the CPU."""
    if not torch.cuda.is_available():
        return the_cpu()
    device = torch.device("cuda", index)
    card = torch.cuda.get_device_properties(device)
    capability = torch.cuda.get_device_capability(device)
    has_bf16 = capability >= BF16_CAPABILITY
    return Hardware(
        device=device,
        name=card.name,
        dtype=torch.bfloat16 if has_bf16 else torch.float16,
        precision="bf16" if has_bf16 else "fp16",
        total_bytes=card.total_memory,
        capability=capability,
    )


def driver_version() -> str:
    """Of NVIDIA's driver; empty where there is none to ask."""
    try:
        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return ""
