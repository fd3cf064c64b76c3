"""The models of time and memory, held against published figures and against counted bytes."""

import pytest
from peft import LoraConfig, get_peft_model

from discord_lora.analysis.estimates import (
    CARDS,
    MODELS,
    ModelShape,
    Workload,
    activation_bytes,
    estimate,
)
from discord_lora.finetuning.activations import measure_activations
from discord_lora.finetuning.fast_paths import choose_paths
from discord_lora.finetuning.training_model import TrainingModel
from fakes import make_model

BY_NAME = {model.name.rpartition("/")[2]: model for model in MODELS}
TURING_11 = next(card for card in CARDS if card.name == "RTX 2080 Ti")


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    # Sizes of the nf4 files with double quantization that are published for these models.
    [
        ("Mistral-7B-Instruct-v0.3", 4.1),
        ("Llama-3.1-8B-Instruct", 5.7),
        ("Qwen2.5-7B-Instruct", 5.6),
    ],
)
def test_weights_take_what_is_published(name, gigabytes):
    made = estimate(BY_NAME[name], TURING_11, Workload())
    assert made.weight_bytes / 1e9 == pytest.approx(gigabytes, rel=0.03)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("SmolLM2-135M-Instruct", 0.1345),
        ("Qwen2.5-1.5B-Instruct", 1.54),
        ("Mistral-7B-Instruct-v0.3", 7.25),
        ("Llama-3.1-8B-Instruct", 8.03),
        ("Mistral-Nemo-Instruct-2407", 12.2),
        ("Qwen2.5-14B-Instruct", 14.8),
    ],
)
def test_shapes_have_the_published_number_of_weights(name, billions):
    model = BY_NAME[name]
    total = model.linear_weights + model.embedding_weights
    assert total / 1e9 == pytest.approx(billions, rel=0.01)


def test_the_classic_card_keeps_a_gigabyte_free():
    made = estimate(BY_NAME["Mistral-7B-Instruct-v0.3"], TURING_11, Workload())
    assert made.fits
    assert made.peak_bytes <= 11 * 2**30 - 1e9
    assert made.plan.token_budget >= 1024


def test_a_card_that_is_too_small_is_said():
    small = next(card for card in CARDS if card.memory_gb == 6)
    assert not estimate(BY_NAME["Qwen2.5-14B-Instruct"], small, Workload()).fits


def test_twice_the_messages_take_twice_the_time():
    model = BY_NAME["Mistral-7B-Instruct-v0.3"]
    once, twice = (estimate(model, TURING_11, Workload(messages=n)) for n in (63_000, 126_000))
    assert twice.seconds == pytest.approx(2 * once.seconds)
    assert twice.peak_bytes == once.peak_bytes


def test_modelled_activations_are_the_counted_ones():
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    model = TrainingModel(get_peft_model(make_model(hidden=128), lora))
    choose_paths(model)
    counted = measure_activations(model, optimizer_bytes=2.0)
    shape = ModelShape("tiny", 2, 128, 256, 128, 64, 400)
    modelled = activation_bytes(shape, 4)
    # Counted in fp32, modelled in 16 bit.
    assert modelled.layer == pytest.approx(counted.layer / 2, rel=0.05)
    assert modelled.layer_input == counted.layer_input / 2
    assert shape.lora_weights(4) == sum(p.numel() for p in model.trainable().values())
