import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from discord_lora.console import UserError
from discord_lora.finetuning.training_state import foreign_content_explained
from discord_lora.hardware import (
    Hardware,
    _glibc,
    card_must_answer,
    detect_hardware,
    is_out_of_memory,
)


@pytest.mark.parametrize(
    ("capability", "precision", "dtype"),
    [
        ((7, 5), "fp16", torch.float16),  # Turing: says yes to bf16, by emulation
        ((7, 0), "fp16", torch.float16),
        ((8, 0), "bf16", torch.bfloat16),
        ((8, 6), "bf16", torch.bfloat16),
        ((12, 0), "bf16", torch.bfloat16),
    ],
)
def test_the_number_format_follows_the_compute_capability(
    monkeypatch, capability, precision, dtype
):
    card = SimpleNamespace(name="a card", total_memory=11 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 * 2**30, 11 * 2**30))
    hardware = detect_hardware()
    assert (hardware.precision, hardware.dtype) == (precision, dtype)
    assert (hardware.free_bytes(), hardware.used_bytes()) == (3 * 2**30, 8 * 2**30)


def test_without_a_card_everything_is_fp32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    hardware = detect_hardware()
    assert (hardware.device.type, hardware.precision, hardware.dtype) == (
        "cpu",
        "no",
        torch.float32,
    )
    assert 0 < hardware.used_bytes() < hardware.total_bytes


@pytest.mark.parametrize(
    ("system", "free", "share"),
    [
        ("nt", 8.3e9, 0.8),
        ("nt", 0.1e9, 0.0),
        ("posix", 8.3e9, None),  # there the driver says itself that memory is out
    ],
)
def test_on_windows_torch_keeps_to_the_memory_of_the_card(monkeypatch, system, free, share):
    asked = []
    monkeypatch.setattr("discord_lora.hardware.os", SimpleNamespace(name=system))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 10e9))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, _device: asked.append(share)
    )
    device = torch.device("cuda", 0)
    Hardware(device, "a card", torch.float16, "fp16", 10**10).stay_on_the_card()
    assert asked == ([] if share is None else [pytest.approx(share)])


def test_what_torch_holds_for_reuse_counts_as_free(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("emptied"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (calls.append("asked") or 5, 10))
    hardware = Hardware(torch.device("cuda", 0), "a card", torch.float16, "fp16", 10)
    assert hardware.free_bytes() == 5
    assert calls == ["emptied", "asked"]


@pytest.mark.parametrize(
    ("error", "out"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"
            ),
            True,
        ),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_every_way_of_running_out_of_memory_is_known(error, out):
    assert is_out_of_memory(error) == out


@pytest.mark.parametrize(
    ("words", "is_the_cards"),
    [
        ("CUDA error: unspecified launch failure", True),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", True),
        ("CUDA error: device-side assert triggered", False),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_a_card_that_fails_is_one_sentence_and_a_bug_is_not(words, is_the_cards):
    error = RuntimeError(f"{words}\nCUDA kernel errors might be asynchronously reported")
    with pytest.raises(UserError if is_the_cards else RuntimeError) as caught, card_must_answer():
        raise error
    assert words in str(caught.value)
    expected = RuntimeError if is_the_cards else UserError
    with pytest.raises(expected), foreign_content_explained(5):
        raise error


def test_an_unknown_card_is_measured_and_a_known_one_has_its_own_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    cpu = torch.device("cpu")  # where the products run that are timed

    class OnACard(Hardware):
        is_cuda = True

    unknown = OnACard(cpu, "NVIDIA RTX 4070 Laptop GPU", torch.float32, "no", 8 * 2**30).machine()
    assert (unknown.kind, unknown.memory_bytes) == ("cuda", 8 * 2**30)
    assert unknown.flops_per_second > 1e8
    assert unknown.bytes_per_second > 1e8
    known = OnACard(cpu, "NVIDIA GeForce RTX 4060 Ti", torch.float32, "no", 8 * 2**30).machine()
    assert (known.name, known.memory_bytes) == ("RTX 4060 Ti", 8 * 2**30)


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the system cannot forget a peak"
)
def test_a_peak_can_be_forgotten(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    hardware = detect_hardware()
    taken = torch.ones(50_000_000)
    high = hardware.peak_bytes()
    assert high >= taken.nbytes
    del taken
    hardware.forget_peak()
    assert hardware.peak_bytes() < high - 150_000_000


def test_a_new_process_has_not_held_what_its_parent_holds():
    taken = torch.ones(300_000_000)  # more than torch and all its libraries
    words = "from discord_lora.hardware import peak_rss; print(peak_rss())"
    made = subprocess.run([sys.executable, "-c", words], capture_output=True, check=True)
    assert 50_000_000 < int(made.stdout) < taken.nbytes


KEPT = """
import contextlib, sys
import torch
from discord_lora.hardware import detect_hardware, freed_at_once

hardware = detect_hardware()
torch.ones(7_000_000)  # from here on glibc keeps pieces of up to 30 MB
with freed_at_once() if sys.argv[1] == "after" else contextlib.nullcontext():
    pass
with freed_at_once() if sys.argv[1] == "inside" else contextlib.nullcontext():
    before = hardware.used_bytes()
    pieces = [(torch.ones(750_000), torch.ones(1_000)) for _ in range(100)]
    pins = [pin for _, pin in pieces]  # lie between the pieces, which cannot be cut off at the end
    del pieces
    print(hardware.used_bytes() - before)
with freed_at_once():
    print(hardware.used_bytes() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(_glibc() is None, reason="another C library has other ways")
def test_what_is_freed_goes_back_to_the_system_at_once(monkeypatch):
    for name in os.environ:
        if name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD"):
            monkeypatch.delenv(name)

    def kept(where):
        words = [sys.executable, "-c", KEPT, where]
        made = subprocess.run(words, capture_output=True, check=True, text=True)
        now, in_the_next = map(int, made.stdout.split())
        assert in_the_next < 50_000_000
        return now

    assert kept("outside") > 150_000_000
    assert kept("inside") < 50_000_000
    assert kept("after") > 150_000_000  # training is quicker that way


@pytest.mark.slow
def test_no_start_waits_for_a_compiler():
    words = (
        "import sys, discord_lora.base_model, bitsandbytes\n"
        "assert 'torch._inductor.compile_fx' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", words], check=True)
