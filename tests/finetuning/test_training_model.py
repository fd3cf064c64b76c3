"""Each fast piece gives the loss and the gradients of the general way, for every kind of model."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from discord_lora.base_model import load_base_model
from discord_lora.console import UserError
from discord_lora.conversations.examples import TokenizedExample
from discord_lora.conversations.packing import collate
from discord_lora.finetuning import fused_layers
from discord_lora.finetuning.fast_paths import choose_paths
from discord_lora.finetuning.training_model import TrainingModel
from discord_lora.hardware import detect_hardware
from fakes import make_model

VOCABULARY = 320
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
KINDS = {
    "llama": LlamaConfig(**SHAPE),
    "llama with biases": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "mistral with a window": MistralConfig(**SHAPE, sliding_window=6),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE),
    "gemma": GemmaConfig(**SHAPE),
    "gemma2": Gemma2Config(**SHAPE, sliding_window=8, query_pre_attn_scalar=16),
    "gemma3": Gemma3TextConfig(**SHAPE, sliding_window=8, query_pre_attn_scalar=16),
}
PIECES = {"attention", "head", "LoRA layers", "gated MLPs", "norms"}
# Gemma 2 caps its scores and its logits.
NEEDS_GENERAL = {"gemma2": {"attention", "head"}}
TARGETS = "all-linear"


def fixed(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights and biases of a size that a trained model has; norms that are not all ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_quantized and parameter.is_floating_point():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every kind, saved once with random weights."""
    root = tmp_path_factory.mktemp("models")
    for name, config in KINDS.items():
        fixed(Auto.from_config(config), 0).save_pretrained(root / name)
    return root


def training_model(folder, quantization, *, targets=TARGETS, dropout=0.0) -> TrainingModel:
    base = load_base_model(str(folder), detect_hardware(), quantization)
    torch.manual_seed(0)
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=6, lora_dropout=dropout, target_modules=targets
    )
    model = TrainingModel(get_peft_model(base, lora))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.trainable().items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def everywhere(_position):
    return True


def nowhere(_position):
    return False


def example(length, trained, seed=0) -> TokenizedExample:
    ids = np.random.default_rng([seed, length]).integers(0, VOCABULARY, length, dtype=np.int32)
    mask = np.array([trained(position) for position in range(length)])
    return TokenizedExample("c", ("m",), ids, mask, 1)


def loss_and_gradients(model, batches):
    model.zero_grad(set_to_none=True)
    loss = sum(model(batch) for batch in batches)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.trainable().items() if p.grad is not None}
    return loss.detach(), gradients


def assert_same(found, expected):
    assert found[0] == pytest.approx(float(expected[0]), rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    # A gradient that is zero in exact arithmetic is rounding alone, whichever way it was found.
    rounding = 1e-6 * torch.stack([it.norm() for it in expected[1].values()]).norm()
    for name, gradient in found[1].items():
        reference = expected[1][name]
        assert (gradient - reference).norm() <= 1e-4 * reference.norm() + rounding, name


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_piece_is_fast_where_it_can_be(folders, kind, quantization):
    general = training_model(folders / kind, quantization)
    fast = training_model(folders / kind, quantization)
    needed = NEEDS_GENERAL.get(kind, set())
    paths = choose_paths(fast)
    assert paths.packing
    assert set(paths.general) == needed
    assert set(paths.fast) == PIECES - needed
    rows = [example(length, lambda position: position % 3, seed=2) for length in (20, 17, 9, 3)]
    assert_same(
        loss_and_gradients(fast, [collate(rows)]),
        loss_and_gradients(general, [collate([row]) for row in rows]),
    )


@pytest.fixture(scope="module")
def pair(folders):
    """The same model twice: the general way and the fast one."""
    fast = training_model(folders / "mistral with a window", "nf4")
    assert set(choose_paths(fast).fast) == PIECES
    return training_model(folders / "mistral with a window", "nf4"), fast


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=8),
    masks=st.integers(0, 2**30 - 1),
    cut=st.integers(1, 8),
)
def test_lengths_packings_and_masks_do_not_matter(pair, lengths, masks, cut):
    general, fast = pair
    # At least one target, or there is no gradient to compare.
    rows = [
        example(length, lambda position: position == 1 or masks >> position & 1, seed=number)
        for number, length in enumerate(sorted(lengths, reverse=True))
    ]
    packed = [collate(part) for part in (rows[:cut], rows[cut:]) if part]
    assert_same(
        loss_and_gradients(fast, packed),
        loss_and_gradients(general, [collate([row]) for row in rows]),
    )


def test_examples_in_any_order_keep_to_themselves(pair):
    """Rows come longest first, which is quick; correctness does not hang on it."""
    general, fast = pair
    rows = [example(length, everywhere, seed=3) for length in (4, 19, 5, 12)]
    assert_same(
        loss_and_gradients(fast, [collate(rows)]),
        loss_and_gradients(general, [collate([row]) for row in rows]),
    )


def test_a_neighbour_changes_nothing(pair):
    _, fast = pair
    row = example(12, everywhere, seed=5)
    with torch.no_grad():
        alone = fast(collate([row]))
        for seed in (6, 7):
            neighbour = example(12, nowhere, seed=seed)
            assert fast(collate([row, neighbour])) == pytest.approx(float(alone), rel=1e-6)
            assert fast(collate([neighbour, row])) == pytest.approx(float(alone), rel=1e-6)


def test_only_some_layers_may_have_an_adapter(folders):
    rows = [example(10, everywhere)]
    for targets in (["q_proj", "v_proj"], ["down_proj"], ["gate_proj", "o_proj"]):
        general = training_model(folders / "llama", "none", targets=targets)
        fast = training_model(folders / "llama", "none", targets=targets)
        assert choose_paths(fast).general == ()
        assert_same(
            loss_and_gradients(fast, [collate(rows)]), loss_and_gradients(general, [collate(rows)])
        )


def test_dropout_drops_the_same_share_and_gradients_follow_it(folders):
    """With the same random numbers the fast layers drop the same inputs as peft's."""
    general = training_model(folders / "llama", "nf4", targets=["q_proj"], dropout=0.3)
    fast = training_model(folders / "llama", "nf4", targets=["q_proj"], dropout=0.3)
    choose_paths(fast)
    rows = [example(25, everywhere)]
    results = []
    for model in (fast, general):
        model.train()
        torch.manual_seed(11)
        results.append(loss_and_gradients(model, [collate(rows)]))
    assert_same(*results)


def test_checkpointing_changes_no_gradient(folders):
    fast = training_model(folders / "qwen3", "nf4")
    choose_paths(fast)
    rows = [collate([example(14, everywhere), example(9, everywhere)])]
    fast.train()
    plain = loss_and_gradients(fast, rows)
    fast.model.activation_checkpointing_enable(
        activation_checkpointing_kwargs={"use_reentrant": False}
    )
    assert_same(loss_and_gradients(fast, rows), plain)


def test_proving_leaves_no_trace(folders):
    model = training_model(folders / "llama", "none")
    before = {name: p.detach().clone() for name, p in model.trainable().items()}
    model.train()
    choose_paths(model)
    assert model.training
    for name, parameter in model.trainable().items():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_a_model_through_which_neighbours_meet_is_not_packed():
    class Leaking(torch.nn.Module):
        """Like a convolution or linear attention: what came before leaks into each position."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, hidden_states, *args, **options):
            return self.inner(hidden_states.cumsum(dim=1) * 0.1, *args, **options)

    base = make_model()
    base.model.layers[0] = Leaking(base.model.layers[0])
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "o_proj"])
    paths = choose_paths(TrainingModel(get_peft_model(base, lora)))
    assert not paths.packing
    assert "LoRA layers" in paths.fast  # one at a time, the rest may still be fast


def small_model(dtype=torch.float32):
    model = make_model(vocabulary=VOCABULARY)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    return TrainingModel(get_peft_model(fixed(model, 0).to(dtype), lora))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_16_bits_every_piece_proves_itself(dtype):
    with torch.autocast("cpu", dtype=dtype):
        paths = choose_paths(small_model(dtype))
    assert paths.packing
    assert set(paths.fast) == PIECES


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_wrong_gradient_of_one_kind_is_found(monkeypatch, dtype):
    """That of A is small beside that of B: one norm over both would hide it."""
    right = fused_layers._backward

    def wrong(*args, **options):
        gradients = right(*args, **options)
        return gradients._replace(a=-gradients.a)

    monkeypatch.setattr(fused_layers, "_backward", wrong)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        paths = choose_paths(small_model(dtype))
    assert {"LoRA layers", "gated MLPs"} <= set(paths.general)


@pytest.mark.parametrize(
    ("option", "value"), [("final_logit_softcapping", 1e6), ("logits_scaling", 1.0000001)]
)
def test_what_a_model_does_to_its_logits_needs_the_general_head(option, value):
    """Even where the numbers of a few tokens do not show it."""
    model = small_model()
    setattr(model.causal_model.config, option, value)
    assert choose_paths(model).general == ("head",)


def test_numbers_that_do_not_fit_fp16_end_in_one_sentence():
    model = small_model(torch.float16)
    with torch.no_grad():
        model.causal_model.get_output_embeddings().weight.fill_(6e4)
        model.causal_model.model.norm.weight.fill_(6e4)
    with (
        torch.autocast("cpu", dtype=torch.float16),
        pytest.raises(UserError, match=r"do not fit fp16.*choose another BASE_MODEL"),
    ):
        choose_paths(model)


@pytest.mark.parametrize("words", ["CUDA error: an illegal access", "DefaultCPUAllocator: no"])
def test_a_card_that_fails_is_not_a_model_that_computes_differently(monkeypatch, words):
    def fail(*_arguments):
        raise RuntimeError(words)

    monkeypatch.setattr("discord_lora.finetuning.training_model.head_loss", fail)
    with pytest.raises(RuntimeError, match=words):
        choose_paths(small_model())
