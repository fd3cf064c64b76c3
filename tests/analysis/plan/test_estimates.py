"""The models of time and memory, held against published figures and against counted bytes."""

import pytest
from peft import LoraConfig, get_peft_model

from discord_lora.analysis.plan.cards import CARDS, find_card, near_names
from discord_lora.analysis.plan.estimates import (
    Machine,
    activation_bytes,
    fit_data,
    fit_into,
    time_model_of,
)
from discord_lora.analysis.plan.model_shapes import MODELS, NF4_BYTES, ModelShape
from discord_lora.finetuning.activations import measure_activations
from discord_lora.finetuning.fast_paths import choose_paths
from discord_lora.finetuning.training_model import TrainingModel
from discord_lora.settings import load_settings
from fakes import make_model
from hardware_table import Workload, epoch_of

BY_NAME = {model.name.rpartition("/")[2]: model for model in MODELS}
TURING_11 = find_card("RTX 2080 Ti")


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    # Sizes of `model.safetensors`, nf4 with double quantization, of
    # unsloth/mistral-7b-instruct-v0.3-bnb-4bit, unsloth/Llama-3.1-8B and unsloth/Qwen2.5-7B (these
    # two are fetched in 4 bits), as the downloads say in the outputs of three notebooks of
    # github.com/unslothai/notebooks: nb/Mistral_v0.3_(7B)-Conversational, nb/Llama3.1_(8B)-Alpaca
    # and nb/Qwen2.5_(7B)-Alpaca.
    [
        ("Mistral-7B-Instruct-v0.3", 4.138),
        ("Llama-3.1-8B-Instruct", 5.70),
        ("Qwen2.5-7B-Instruct", 5.55),
    ],
)
def test_weights_take_what_is_published(name, gigabytes):
    made, _ = epoch_of(BY_NAME[name], TURING_11, Workload())
    assert (made.use.weights + made.use.embedding) / 1e9 == pytest.approx(gigabytes, rel=0.005)


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


@pytest.mark.parametrize(
    ("name", "gibibytes"),
    # What torch had of them, as logs that people published say (see `cards.OF_TORCH`).
    [
        ("RTX 2080 Ti", 10.75),
        ("RTX 4090", 23.53),
        ("NVIDIA L4", 22.16),
        ("Tesla T4", 14.56),
        ("A100", 39.49),
    ],
)
def test_a_card_has_the_memory_that_torch_finds_on_it(name, gibibytes):
    machine = Machine.of_card(find_card(name))
    assert machine.memory_bytes / 2**30 == pytest.approx(gibibytes, rel=0.011)


def test_what_is_planned_for_a_t4_fits_into_what_it_has():
    """On its box stand 17.2 GB, and with those 14 billion weights would take 16.2."""
    made, _ = epoch_of(BY_NAME["Qwen2.5-14B-Instruct"], find_card("T4"), Workload())
    assert made.use.total < 14.56 * 2**30 - 0.8e9


@pytest.mark.parametrize(
    ("name", "memory", "found"),
    [
        ("A100 80GB", 80, "A100 80 GB"),
        ("NVIDIA A100-SXM4-80GB", 80, "A100 80 GB"),
        ("v100 32 gb", 32, "Tesla V100 32 GB"),
        ("RTX 3060 8GB", 8, "RTX 3060 8 GB"),
        ("RTX 3060 12GB", 12, "RTX 3060"),
        ("RTX 3060", 12, "RTX 3060"),
    ],
)
def test_a_size_in_the_name_is_the_memory(name, memory, found):
    card = find_card(name)
    assert (card.memory_gb, card.name) == (memory, found)
    assert find_card(card.name) == card


@pytest.mark.parametrize(
    "name", ["RTX 4060", "3060ti", "RTX 3070 Ti", "NVIDIA GeForce RTX 4070 Ti SUPER"]
)
def test_the_usual_cards_are_there(name):
    assert find_card(name) is not None


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
    counted = measure_activations(model, moment_bytes=2.0)
    shape = ModelShape("tiny", 2, 128, 256, 128, 64, 400)
    modelled = activation_bytes(shape, Machine.of_card(TURING_11), 4)
    # Counted in fp32, modelled in 16 bit.
    assert modelled.layer == pytest.approx(counted.layer / 2, rel=0.05)
    assert modelled.layer_input == counted.layer_input / 2
    assert shape.lora_weights(4) == sum(p.numel() for p in model.trainable().values())


def fit_of(**settings):
    card, settings = Machine.of_card(TURING_11), load_settings(settings, env_file=None)
    return fit_data(BY_NAME["Mistral-7B-Instruct-v0.3"], card, settings, [3000], 300)


def test_the_optimizer_and_the_layers_of_the_adapter_are_those_that_are_set():
    usual, all_of_it = fit_of().use.adapter, BY_NAME["Mistral-7B-Instruct-v0.3"].lora_weights(16)
    assert usual == all_of_it * (4 + 4 + 2)
    assert fit_of(optimizer="paged_adamw_8bit").use.adapter == usual
    assert fit_of(optimizer="adamw").use.adapter == all_of_it * (4 + 4 + 8)
    two = fit_of(lora_target_modules="q_proj, self_attn.v_proj").use.adapter
    assert two == 32 * 16 * (4096 + 4096 + 4096 + 1024) * 10


def test_without_packing_there_are_no_full_rows_to_make_room_for():
    assert fit_of().plan.token_budget > 1000
    alone = fit_of(packing="false")
    assert (alone.plan.token_budget, alone.plan.checkpointed) == (300, 0)
    assert alone.use.activations < fit_of().use.activations


def test_an_adapter_on_some_layers_has_the_weights_that_peft_gives_it():
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "down_proj"])
    model = TrainingModel(get_peft_model(make_model(hidden=128), lora))
    shape = ModelShape("tiny", 2, 128, 256, 128, 64, 400)
    trainable = sum(p.numel() for p in model.trainable().values())
    assert shape.lora_weights(4, "q_proj,down_proj") == trainable


def test_a_card_also_takes_the_time_of_launching_its_kernels():
    """The sample model on an RTX 4090 moves its weights in about a millisecond, and no launch is
    hidden behind that."""
    shape, card = BY_NAME["SmolLM2-135M-Instruct"], Machine.of_card(find_card("RTX 4090"))
    price = time_model_of(shape, card, lora_r=16, checkpointed_share=0.0).micro_batch
    assert 0.03 < price < 0.12
    cpu = Machine.of_cpu(2e11, 1e10)
    bytes_moved = 2 * shape.linear_weights * (NF4_BYTES + 8)
    price = time_model_of(shape, cpu, lora_r=16, checkpointed_share=0.0).micro_batch
    assert price == bytes_moved / cpu.bytes_per_second
