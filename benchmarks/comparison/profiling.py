"""Where the project's training spends its time, in words of the model instead of operators."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from comparison.data import Selection
from comparison.job import Job
from comparison.ours import prepare
from discord_lora.finetuning.loop import Events, train_step
from discord_lora.hardware import Hardware

STEPS = 4
WARM_UP_STEPS = 1
OPERATORS_SHOWN = 25
BASE, ATTENTION, HEAD, LORA = "base GEMMs", "attention", "head and loss", "LoRA"
UNPACKING, OPTIMIZER = "dequantization", "optimizer"
ELEMENTWISE, PYTHON = "elementwise and copies", "Python and other"
PRODUCTS = ("mm", "addmm", "linear", "matmul", "_addmm_activation", "mkldnn", "mul_mat")
ATTENTION_WORDS = ("attention", "flash", "bmm", "softmax", "flex")
OPTIMIZER_WORDS = ("adam", "_foreach", "optimizer", "clip_grad", "lerp", "addcdiv", "addcmul")


def profile(job: Job, selection: Selection, hardware: Hardware) -> dict[str, Any]:
    """Run a few steps under torch's profiler; returns seconds and shares by group."""
    state = prepare(job, selection, hardware, selection.examples())
    steps = list(enumerate(islice(state.plan.walk(), WARM_UP_STEPS + STEPS), start=1))
    for number, examples in steps[:WARM_UP_STEPS]:
        train_step(state, Events(), number, examples)
    activities = [ProfilerActivity.CPU]
    if hardware.is_cuda:
        activities.append(ProfilerActivity.CUDA)
    with torch_profile(activities=activities, record_shapes=True) as recorded:
        began = time.perf_counter()
        for number, examples in steps[WARM_UP_STEPS:]:
            train_step(state, Events(), number, examples)
        if hardware.is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    config = state.training_model.causal_model.config
    settings = selection.settings
    groups: defaultdict[str, float] = defaultdict(float)
    operators: defaultdict[str, float] = defaultdict(float)
    for name, shapes, spent in operator_times(recorded, hardware):
        group = group_of(name, shapes, rank=settings.lora_r, vocabulary=config.vocab_size)
        groups[group] += spent
        operators[f"{group}: {name}"] += spent
    groups[PYTHON] += max(0.0, seconds - sum(groups.values()))
    return {
        "seconds": seconds,
        "steps": len(steps) - WARM_UP_STEPS,
        "groups": costliest(groups),
        "operators": costliest(operators, OPERATORS_SHOWN),
    }


def costliest(seconds: Mapping[str, float], most: int | None = None) -> dict[str, float]:
    """The entries in falling order, `most` of them at most."""
    return dict(sorted(seconds.items(), key=lambda entry: -entry[1])[:most])


def operator_times(
    recorded: torch_profile, hardware: Hardware
) -> Iterator[tuple[str, Sequence[Any], float]]:
    """Name, input shapes and own seconds of each kind of operator.

    On a card that is the time of the kernels that an operator started; the kernels, which are
    listed once more by themselves, are left out.
    """
    for event in recorded.key_averages(group_by_input_shape=True):
        if event.device_type.name != "CPU":
            continue
        own = event.self_device_time_total if hardware.is_cuda else event.self_cpu_time_total
        yield event.key, event.input_shapes or (), own / 1e6


def group_of(name: str, shapes: Sequence[Any], *, rank: int, vocabulary: int) -> str:
    """Which part of the work an operator is, by its name and by the sizes that tell it.

    A size equal to the vocabulary is the head or its loss, a matrix with the LoRA's rank as one
    side is LoRA, and every other product of matrices is a layer of the base model.
    """
    word = name.rpartition("::")[2].lower()
    sizes = {size for shape in shapes if isinstance(shape, list | tuple) for size in shape}
    if any(part in name.lower() for part in OPTIMIZER_WORDS):
        return OPTIMIZER
    if "dequant" in word or "4bit" in word:
        return UNPACKING
    if "embedding" in word:
        return ELEMENTWISE
    if vocabulary in sizes or "log_softmax" in word or "nll_loss" in word or "cross_ent" in word:
        return HEAD
    if any(part in word for part in ATTENTION_WORDS):
        return ATTENTION
    if word.rstrip("_") in PRODUCTS or "gemm" in word:
        return LORA if rank in sizes else BASE
    return ELEMENTWISE if name.startswith(("aten::", "void ", "Memcpy", "Memset")) else PYTHON
