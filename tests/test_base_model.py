from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from discord_lora.analysis.plan.model_shapes import ModelShape
from discord_lora.base_model import (
    load_base_model,
    load_tokenizer,
    model_shape,
    shape_of,
    weight_bytes,
)
from discord_lora.console import UserError
from discord_lora.conversations.prompt_format import PromptFormat, persona_voice
from discord_lora.finetuning.adapter import attach_adapter
from discord_lora.finetuning.fast_paths import choose_paths, random_example
from discord_lora.finetuning.training_model import TrainingModel
from discord_lora.hardware import detect_hardware
from discord_lora.model_location import locate_base_model
from discord_lora.settings import load_settings
from fakes import conversation, make_model, say
from run_scripts import ROOT, tiny_model_folder


def bytes_of(model):
    tensors = {t.data_ptr(): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def test_the_weights_take_what_was_foretold(tmp_path):
    folder = str(tiny_model_folder(tmp_path))
    model = load_base_model(folder, detect_hardware(), "none")
    assert weight_bytes(folder, detect_hardware(), "none") == pytest.approx(
        bytes_of(model), rel=0.01
    )
    assert not any(parameter.requires_grad for parameter in model.parameters())


SMALL = {"vocab_size": 400, "num_hidden_layers": 3, "num_attention_heads": 4}
FAMILIES = {
    "llama": {"hidden_size": 32, "intermediate_size": 64, "num_key_value_heads": 2},
    "phi3": {"hidden_size": 32, "intermediate_size": 64, "num_key_value_heads": 2},
    "gpt_neox": {"hidden_size": 32, "intermediate_size": 128},
    "phi": {"hidden_size": 32, "intermediate_size": 128},
    "starcoder2": {"hidden_size": 32, "intermediate_size": 128, "num_key_value_heads": 2},
    "gpt2": {"hidden_size": 32},
    "opt": {"hidden_size": 32, "ffn_dim": 128, "word_embed_proj_dim": 32},
}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")  # peft, of GPT-2
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_any_kind_is_measured_without_its_weights(family, tmp_path):
    """Also where MLPs are not gated, where layers are fused, and where sizes have other names."""
    config = CONFIG_MAPPING[family](**SMALL, **FAMILIES[family], pad_token_id=0)
    config.save_pretrained(tmp_path)
    shape = model_shape("mine", str(tmp_path))
    model = AutoModelForCausalLM.from_config(config)
    assert shape_of(model, "mine") == shape
    embeddings = [it for it in model.modules() if isinstance(it, torch.nn.Embedding)]
    outside = {id(it.weight) for it in (*embeddings, model.get_output_embeddings())}
    matrices = [p for p in model.parameters() if p.dim() == 2 and id(p) not in outside]
    assert shape.linear_weights == sum(p.numel() for p in matrices)
    assert shape.intermediate == max(FAMILIES[family].get("intermediate_size", 128), 32)
    adapted = attach_adapter(model, load_settings({"lora_r": 4}, env_file=None))
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert shape.lora_weights(4) == trainable
    assert shape_of(adapted.get_base_model(), "mine") == shape


def test_counting_finds_what_a_usual_config_says(tmp_path):
    make_model().save_pretrained(tmp_path)
    shape = model_shape("mine", str(tmp_path))
    config = AutoModelForCausalLM.from_pretrained(tmp_path).config.to_dict()
    said = ModelShape.from_config(config, "mine")
    assert sorted(shape.linear_layers) == sorted(said.linear_layers)
    assert replace(shape, counted=()) == said


def test_a_folder_and_a_hub_name_are_told_apart(tmp_path):
    assert locate_base_model(str(tmp_path), print) == str(tmp_path)
    name = "mistralai/Mistral-7B-Instruct-v0.3"
    assert locate_base_model(name, print) == name
    with pytest.raises(UserError, match="there is no folder"):
        locate_base_model(str(tmp_path / "gone"), print)


@pytest.mark.slow
def test_the_sample_model_in_nf4(monkeypatch):
    """Memory as foretold, and a prompt that its own chat template would have written."""
    monkeypatch.chdir(ROOT)
    location = locate_base_model("sample", print)
    model = load_base_model(location, detect_hardware(), "nf4")
    foretold = weight_bytes(location, detect_hardware(), "nf4")
    states = sum(
        state.absmax.numel() + 4 * state.state2.absmax.numel()
        for module in model.modules()
        if (state := getattr(getattr(module, "weight", None), "quant_state", None)) is not None
    )
    assert foretold == pytest.approx(bytes_of(model) + states, rel=0.02)
    known, counted = model_shape("sample", location), shape_of(model, "sample")
    assert known.linear_weights == counted.linear_weights
    assert replace(counted, counted=known.counted) == known

    tokenizer = load_tokenizer(location)
    prompt_format = PromptFormat(tokenizer, persona_voice("Ada", "id-Ada"))
    talk = conversation(say("Bob", "hi, what's up?"), say("Ada", "not much :)", minute=1))
    chat = [
        {"role": "system", "content": "You are Ada, chatting on Discord."},
        {"role": "user", "content": "Bob: hi, what's up?"},
        {"role": "assistant", "content": "not much :)"},
    ]
    expected = tokenizer.apply_chat_template(chat)["input_ids"]
    ours = prompt_format.encode(talk).input_ids
    assert expected[: len(ours)] == ours
    assert Path(location).is_dir()


def test_evaluating_a_4bit_model_leaves_it_trainable(tmp_path, monkeypatch):
    """On CPUs with AVX512-BF16, bitsandbytes repacks evaluated weights: no gradient passes then."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    make_model(hidden=64).save_pretrained(tmp_path)
    model = load_base_model(str(tmp_path), detect_hardware(), "nf4")
    embeddings = torch.randn(1, 5, 64, requires_grad=True)

    def gradient():
        logits = model(inputs_embeds=embeddings, use_cache=False).logits
        return torch.autograd.grad(logits.square().sum(), embeddings)[0]

    model.train()
    before = gradient()
    model.eval()
    with torch.no_grad():
        model(inputs_embeds=embeddings.detach(), use_cache=False)
    model.train()
    assert torch.equal(gradient(), before)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(), (40, 60, 80)], ids=["random", "examples"])
def test_every_fast_piece_serves_the_sample_model(monkeypatch, lengths):
    """A real model's rounding is larger than a tiny one's: it must not count as another way."""
    monkeypatch.chdir(ROOT)
    model = load_base_model(locate_base_model("sample", print), detect_hardware(), "nf4")
    model = TrainingModel(attach_adapter(model, load_settings(env_file=None)))
    paths = choose_paths(model, [random_example(model, length) for length in lengths])
    assert paths.packing
    assert paths.general == ()
