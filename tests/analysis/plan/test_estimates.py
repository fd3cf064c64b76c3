"""The models of time and memory, held against published figures and against counted bytes."""

import pytest
from peft import LoraConfig, get_peft_model

from discord_lora.analysis.plan.cards import CARDS, find_card, near_names
from discord_lora.analysis.plan.estimates import (
    Machine,
    Workload,
    activation_bytes,
    epoch_of,
    fit_into,
)
from discord_lora.analysis.plan.model_shapes import MODELS, ModelShape
from discord_lora.finetuning.activations import measure_activations
from discord_lora.finetuning.fast_paths import choose_paths
from discord_lora.finetuning.training_model import TrainingModel
from fakes import make_model

BY_NAME = {model.name.rpartition("/")[2]: model for model in MODELS}
TURING_11 = find_card("RTX 2080 Ti")


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
    made, _ = epoch_of(BY_NAME[name], TURING_11, Workload())
    assert (made.use.weights + made.use.embedding) / 1e9 == pytest.approx(gigabytes, rel=0.03)


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
    made, _ = epoch_of(BY_NAME["Mistral-7B-Instruct-v0.3"], TURING_11, Workload())
    assert made.fits
    assert made.margin >= 1e9
    assert made.plan.token_budget >= 1024


def test_a_card_that_is_too_small_is_said():
    made, _ = epoch_of(BY_NAME["Qwen2.5-14B-Instruct"], find_card("RTX 2060"), Workload())
    assert not made.fits


def test_twice_the_messages_take_twice_the_time():
    model = BY_NAME["Mistral-7B-Instruct-v0.3"]
    (one, once), (two, twice) = (
        epoch_of(model, TURING_11, Workload(messages=n)) for n in (63_000, 126_000)
    )
    assert twice == pytest.approx(2 * once)
    assert one.use == two.use


def test_the_parts_of_memory_are_the_whole():
    for model in MODELS:
        for card in CARDS:
            made = fit_into(model, Machine.of_card(card), [600], 300, lora_r=16)
            free = made.machine.memory_bytes - made.use.total
            assert made.margin == free
            assert made.fits == (free >= 1e9)  # the reserve


@pytest.mark.parametrize(
    "name", ["2080ti", "rtx 2080 ti", "NVIDIA GeForce RTX 2080 Ti", "RTX-2080-Ti"]
)
def test_a_card_is_found_by_any_of_its_names(name):
    assert find_card(name).name == "RTX 2080 Ti"


def test_the_names_of_drivers_are_known():
    assert find_card("NVIDIA A100-PCIE-40GB").name == "A100"
    assert find_card("Tesla V100-SXM2-16GB").name == "Tesla V100"
    assert find_card("NVIDIA H100 80GB HBM3").name == "H100"
    assert find_card("Voodoo 2") is None
    assert near_names("RTX 3091")[0] == "RTX 3090"


def test_a_shape_is_read_from_a_config():
    llama = {
        "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "tie_word_embeddings": False,
    }  # fmt: skip
    name = "meta-llama/Llama-3.1-8B-Instruct"
    assert ModelShape.from_config(llama, name) == BY_NAME["Llama-3.1-8B-Instruct"]
    gemma = {
        "model_type": "gemma3",
        "text_config": {
            "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "head_dim": 32,
            "num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size": 1000,
        },
    }  # fmt: skip
    assert ModelShape.from_config(gemma, "g") == ModelShape(
        "g", 2, 64, 128, 128, 32, 1000, tied=True
    )
    with pytest.raises(KeyError):
        ModelShape.from_config({"d_model": 1}, "other")
    with pytest.raises(ValueError, match="experts"):
        ModelShape.from_config(llama | {"num_local_experts": 8}, "mixtral")
    with pytest.raises(ValueError, match="different sizes"):
        ModelShape.from_config(llama | {"intermediate_size": [1, 2]}, "gemma3n")


def test_modelled_activations_are_the_counted_ones():
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    model = TrainingModel(get_peft_model(make_model(hidden=128), lora))
    choose_paths(model)
    counted = measure_activations(model, optimizer_bytes=2.0)
    shape = ModelShape("tiny", 2, 128, 256, 128, 64, 400)
    modelled = activation_bytes(shape, Machine.of_card(TURING_11), 4)
    # Counted in fp32, modelled in 16 bit.
    assert modelled.layer == pytest.approx(counted.layer / 2, rel=0.05)
    assert modelled.layer_input == counted.layer_input / 2
    assert shape.lora_weights(4) == sum(p.numel() for p in model.trainable().values())
