"""Which build of torch this computer needs.

Standard library only: it is asked before torch is there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess

# PyPI's torch for Windows has no CUDA. PyTorch publishes cu126, cu130 and cu132 for 2.13 (cu128
# ended with 2.11). cu130 serves Turing (RTX 20) to Blackwell (RTX 50) from driver 580 on; cu126
# is for older drivers and for cards before Turing.
# Source: PyTorch's RELEASE.md, "PyTorch CUDA Support Matrix"; NVIDIA's CUDA 13.0 release notes.
TORCH_INDEX = "https://download.pytorch.org/whl/"
OLDEST_DRIVER_FOR_CUDA_13 = 580
TURING = (7, 5)
BLACKWELL = (10, 0)


def wants_cuda_wheel() -> bool:
    return os.name == "nt" and shutil.which("nvidia-smi") is not None


def nvidia_card() -> tuple[int, tuple[int, int]]:
    """Driver major version and compute capability of the first card; (0, (0, 0)) if unknown."""
    question = ["nvidia-smi", "--query-gpu=driver_version,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(
            question, capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return 0, (0, 0)
    found = re.match(r"\s*(\d+)[\d.]*\s*,\s*(\d+)\.(\d+)", answer)
    return (int(found[1]), (int(found[2]), int(found[3]))) if found else (0, (0, 0))


def cuda_build(driver: int, capability: tuple[int, int]) -> str:
    """Which CUDA build of torch this card and this driver can run."""
    if capability >= BLACKWELL:
        return "cu130"  # the only one with kernels for it; an old driver has to be updated
    if capability < TURING or driver < OLDEST_DRIVER_FOR_CUDA_13:
        return "cu126"
    return "cu130"
