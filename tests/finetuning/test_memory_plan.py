"""Memory decides the pieces, and the plan of it is arithmetic on what was measured."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from discord_lora.conversations.packing import collate
from discord_lora.finetuning.memory_plan import (
    PROBE_TOKENS,
    ActivationBytes,
    checkpoint_layers,
    checkpointing_layers,
    measure_activations,
    plan_memory,
)
from discord_lora.finetuning.training_model import TrainingModel, choose_paths, random_example
from fakes import make_model

KNOWN = ActivationBytes(layers=10, layer=100.0, layer_input=10.0, outside=50.0, fixed=1000.0)


def plan(free, steps=(500,) * 9, longest=100, budget=None, checkpointing=None):
    return plan_memory(
        KNOWN, free, steps, longest, token_budget=budget, checkpointing=checkpointing
    )


def small_model(fast=True):
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
    model = TrainingModel(get_peft_model(make_model(hidden=64), lora))
    if fast:
        choose_paths(model)
    return model


def test_with_room_a_step_is_one_micro_batch_and_nothing_is_checkpointed():
    made = plan(free=1e9)
    assert (made.token_budget, made.checkpointed) == (500, 0)
    assert made.expected_bytes == 1000 + 500 * (10 * 100 + 50 + 200)


def test_only_as_many_layers_as_needed_are_checkpointed():
    # 500 tokens need 626,000 bytes; each checkpointed layer saves 45,000.
    made = plan(free=500_000)
    assert made.token_budget == 500
    assert 0 < made.checkpointed == 3
    assert made.expected_bytes <= 500_000 < KNOWN.needed(500, 2)


def test_with_little_room_pieces_are_small_and_all_layers_checkpointed():
    made = plan(free=50_000)
    assert made.token_budget == KNOWN.tokens_that_fit(50_000, made.checkpointed) >= 100
    assert made.checkpointed == 10


def test_what_the_user_sets_is_kept():
    assert plan(1e9, budget=64, longest=60).token_budget == 64
    assert plan(1e9, checkpointing=True).checkpointed == 10
    assert plan(1e3, checkpointing=False).checkpointed == 0


def test_where_nothing_seems_to_fit_the_smallest_way_is_tried():
    made = plan(free=0)
    assert (made.token_budget, made.checkpointed) == (100, 10)


@given(
    free=st.floats(0, 1e7),
    steps=st.lists(st.integers(1, 5000), min_size=1, max_size=20),
    longest=st.integers(1, 1000),
)
def test_a_plan_fits_or_is_the_smallest_there_is(free, steps, longest):
    longest = min(longest, max(steps))
    made = plan(free, steps, longest)
    assert longest <= made.token_budget <= max(steps)
    smallest = KNOWN.needed(longest, 10)
    assert made.expected_bytes <= max(free, smallest) + 1e-3


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
