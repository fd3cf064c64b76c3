from types import SimpleNamespace

import pytest
import torch

from discord_lora.hardware import detect_hardware


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
