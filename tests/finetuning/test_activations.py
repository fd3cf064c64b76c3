"""What a token costs is counted, not guessed."""

import gc
import weakref

import pytest
import torch
from peft import LoraConfig, get_peft_model

from discord_lora.conversations.packing import collate
from discord_lora.finetuning.activations import (
    PROBE_TOKENS,
    checkpoint_layers,
    checkpointing_layers,
    decide_memory,
    measure_activations,
)
from discord_lora.finetuning.fast_paths import choose_paths, random_example
from discord_lora.finetuning.training_model import TrainingModel
from discord_lora.hardware import detect_hardware
from discord_lora.settings import load_settings
from fakes import make_model
from finetuning_state import make_state


def small_model(fast=True):
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
    model = TrainingModel(get_peft_model(make_model(hidden=64), lora))
    if fast:
        choose_paths(model)
    return model


def test_measured_bytes_are_what_autograd_keeps():
    """The fast pieces keep less than the general ones, and nothing that is not known."""
    fast, general = small_model(), small_model(fast=False)
    measured = [measure_activations(model, 8.0) for model in (fast, general)]
    assert measured[0].layers == 2
    assert measured[0].layer < 0.8 * measured[1].layer
    # Known by hand: input, normed input, query, key, value, output, its sum, normed, gate, up
    # in fp32, and per token two norms' scale, attention's normalizer and seven x A'.
    kept = 64 + 64 + 64 + 32 + 32 + 64 + 64 + 64 + 128 + 128
    assert measured[0].layer / 4 == pytest.approx(kept, rel=0.15)
    assert measured[0].layer_input == 4 * 64


def test_checkpointing_some_layers_keeps_less_and_learns_the_same():
    model = small_model()
    batch = collate([random_example(model, PROBE_TOKENS)])
    model.train()
    gradients = []
    for count in (0, 1, 2):
        checkpoint_layers(model, count)
        flags = [layer.gradient_checkpointing for layer in checkpointing_layers(model)]
        assert flags == [number < count for number in range(2)]
        model.zero_grad()
        model(batch).backward()
        gradients.append([p.grad.clone() for p in model.trainable().values()])
    for other in gradients[1:]:
        assert all(
            torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients[0], other, strict=True)
        )


def test_measuring_leaves_nothing_behind():
    """A graph that holds itself would take its memory for the whole night."""
    model = small_model()
    outputs = []

    def watch(_layer, _inputs, output):
        outputs.append(weakref.ref(output))

    hooks = [layer.register_forward_hook(watch) for layer in checkpointing_layers(model)]
    measure_activations(model, 8.0)
    for hook in hooks:
        hook.remove()
    gc.collect()
    assert len(outputs) == 2
    assert all(output() is None for output in outputs)


def test_without_packing_the_largest_row_is_the_longest_example():
    state = make_state(max_targets=2)

    def budget(packing):
        return decide_memory(
            state.training_model, state.plan, load_settings(env_file=None), state.accelerator,
            detect_hardware(), "adamw", packing=packing,
        ).token_budget  # fmt: skip

    assert budget(False) == max(map(len, state.plan.examples)) < budget(True)
