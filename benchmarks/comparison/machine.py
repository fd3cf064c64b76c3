"""The machine at hand: what it is, and how fast it multiplies matrices."""

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from discord_lora.hardware import Hardware

SIZES = (1024, 2048, 4096)
SECONDS_A_SIZE = 1.0
LIBRARIES = ("discord-lora", "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")


def describe_machine(hardware: Hardware) -> dict[str, Any]:
    """Name, driver and versions: what a figure is worth nothing without."""
    described: dict[str, Any] = {
        "device": hardware.name if hardware.is_cuda else cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": hardware.total_bytes,
        "precision": str(hardware.dtype).removeprefix("torch."),
        "system": platform.platform(),
        "versions": {"python": platform.python_version()} | {n: version(n) for n in LIBRARIES},
    }
    if hardware.is_cuda:
        described["compute_capability"] = list(torch.cuda.get_device_capability(hardware.device))
        described["driver"] = driver_version()
        described["cuda"] = torch.version.cuda
    return described


def cpu_name() -> str:
    """As the system calls it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def driver_version() -> str:
    question = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(question, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.split("\n")[0].strip()


def gemm_rate(hardware: Hardware) -> float:
    """Best FLOP/s of a square matrix product in the number format of the training."""
    return max(_rate(size, hardware) for size in SIZES)


def _rate(size: int, hardware: Hardware) -> float:
    one, other = torch.randn(2, size, size, device=hardware.device, dtype=hardware.dtype)
    fastest = float("inf")
    ends = time.perf_counter() + SECONDS_A_SIZE
    while time.perf_counter() < ends or fastest == float("inf"):
        _wait(hardware)
        began = time.perf_counter()
        torch.mm(one, other)
        _wait(hardware)
        fastest = min(fastest, time.perf_counter() - began)
    return 2 * size**3 / fastest


def _wait(hardware: Hardware) -> None:
    if hardware.is_cuda:
        torch.cuda.synchronize()
