"""The page of `--check` on a card that is not here: everything it says is handed to it."""

import io
from datetime import datetime

import pytest
import torch
from rich.console import Console

from discord_lora.analysis.plan.night import RunTime
from discord_lora.console import make_console
from discord_lora.finetuning.preflight_page import (
    Memory,
    clock,
    end_sentence,
    machine_rows,
    show,
    size,
    time_text,
)
from discord_lora.hardware import Hardware

TURING = Hardware(
    torch.device("cuda", 0), "NVIDIA GeForce RTX 2080 Ti", torch.float16, "fp16", 11_811_160_064,
    (7, 5),
)  # fmt: skip
AMPERE = Hardware(
    torch.device("cuda", 0), "NVIDIA GeForce RTX 3090", torch.bfloat16, "bf16", 25 * 10**9, (8, 6)
)
CPU = Hardware(torch.device("cpu"), "CPU", torch.float32, "no", 16 * 10**9)
VRAM, RAM = Memory(10.9e9, 11.8e9), Memory(20e9, 32e9)
TAKEN = RunTime(60, 3_000, 60, 30, "calibrated", answers=30)


def page(hardware, capsys, *, on_windows=False, driver="551.23"):
    console = make_console()
    for label, text in machine_rows(hardware, driver, VRAM, RAM, on_windows=on_windows):
        show(console, label, text)
    text = capsys.readouterr().out
    text.encode("cp1252")
    return " ".join(text.split())


def test_a_turing_card_is_shown_with_the_reason_for_fp16(capsys):
    text = page(TURING, capsys)
    assert "RTX 2080 Ti, driver 551.23, compute capability 7.5" in text
    assert "fp16: compute capability 7.5 (Turing) is below 8.0, and bf16 only emulated" in text
    assert "10.9 of 11.8 GB free on the card; 20.0 of 32.0 GB RAM free" in text
    assert "Sysmem" not in text


def test_a_row_is_wrapped_within_its_column_on_a_terminal():
    console = Console(width=40, file=io.StringIO(), force_terminal=True)
    show(console, "memory", "10.9 of 11.8 GB free on the card; 20.0 of 32.0 GB RAM [free]")
    first, *rest = console.file.getvalue().splitlines()
    assert first.startswith("memory      10.9 of")
    assert rest and all(line.startswith(" " * 12) for line in rest)
    assert "[free]" in rest[-1]


def test_on_windows_it_says_what_is_done_about_spilling(capsys):
    assert "Sysmem Fallback" in page(TURING, capsys, on_windows=True)
    assert "Sysmem Fallback" not in page(CPU, capsys, on_windows=True)


def test_other_machines_have_their_own_reason(capsys):
    assert "bf16: compute capability 8.6 is at least 8.0" in page(AMPERE, capsys)
    assert "driver unknown" in page(AMPERE, capsys, driver="")
    assert "fp32: a CPU" in page(CPU, capsys)


def test_the_end_is_a_time_of_day():
    evening = datetime(2026, 3, 2, 22, 30)
    assert clock(evening, 3_600) == "23:30"
    assert clock(evening, 6 * 3_600) == "Tue 04:30"
    assert clock(evening, 100 * 3_600) == "Sat 02:30"
    assert clock(evening, 240 * 3_600) == "2026-03-12 22:30"
    said = time_text(TAKEN, 650, evening)
    assert "650 steps in 53 min (calibrated: 48 min to 58 min)" in said
    assert said.endswith("ends about 23:23")


def test_what_has_started_up_already_ends_the_earlier():
    said = end_sentence(TAKEN, datetime(2026, 3, 2, 22, 30))
    assert "ends about 23:22, at the latest about 23:27 (calibrated)" in said
    assert "start-up 60 s + training 50 min + held-out loss 60 s" in said
    assert "sample answers 30 s" in said


@pytest.mark.parametrize(
    ("number", "words"), [(900, "1 kB"), (58.6e6, "59 MB"), (412.04e9, "412.0 GB")]
)
def test_sizes_read_like_people_say_them(number, words):
    assert size(number) == words
