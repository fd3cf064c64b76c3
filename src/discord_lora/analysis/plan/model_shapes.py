"""What of a model's `config.json` decides about time and memory, for any model and offline ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes a quantized weight takes: 4 bits, an 8-bit scale a block of 64 (double quantization:
Dettmers et al. 2023, section 3), a 32-bit scale for 256 of those."""

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")

ALL_LINEAR = "all-linear"
"""What LORA_TARGET_MODULES calls all linear layers but the head."""


class Linear(NamedTuple):
    """A linear layer, by the last part of its name."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a decoder."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    query: int
    """Query heads x head size."""
    key: int
    """Key heads x head size."""
    vocabulary: int
    tied: bool = False
    """True if the head is the embedding."""
    counted: tuple[Linear, ...] = ()
    """The linear layers of a model, but its head, where they were counted on it; empty: as Llama,
    Mistral, Qwen and Gemma have them."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], name: str) -> "ModelShape":
        """Of a Hugging Face `config.json`.

        Raises:
            KeyError: it does not describe a decoder of this kind.
            ValueError: it is a mixture of experts, or its layers differ in size.
        """
        text: Mapping[str, Any] = config.get("text_config", config)
        if any((text.get(name) or 0) > 1 for name in EXPERTS):
            raise ValueError("a mixture of experts")
        if not isinstance(text["intermediate_size"], int):
            raise ValueError("layers of different sizes")
        heads = text["num_attention_heads"]
        size = text.get("head_dim") or text["hidden_size"] // heads
        # Gemma ties the two and does not write it down; everybody else does.
        tied = "gemma" in str(text.get("model_type", config.get("model_type", "")))
        return cls(
            name=name,
            layers=text["num_hidden_layers"],
            hidden=text["hidden_size"],
            intermediate=text["intermediate_size"],
            query=heads * size,
            key=(text.get("num_key_value_heads") or heads) * size,
            vocabulary=text["vocab_size"],
            tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", tied))),
        )

    @property
    def linear_layers(self) -> tuple[Linear, ...]:
        """All of the model but the head: those that quantization packs."""
        hidden, query, key, wide = self.hidden, self.query, self.key, self.intermediate
        return self.counted or self.layers * (
            Linear("q_proj", hidden, query),
            Linear("k_proj", hidden, key),
            Linear("v_proj", hidden, key),
            Linear("o_proj", query, hidden),
            Linear("gate_proj", hidden, wide),
            Linear("up_proj", hidden, wide),
            Linear("down_proj", wide, hidden),
        )

    @property
    def linear_weights(self) -> int:
        return sum(layer.inputs * layer.outputs for layer in self.linear_layers)

    @property
    def embedding_weights(self) -> int:
        """Embedding and head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def weights(self) -> int:
        return self.linear_weights + self.embedding_weights

    def lora_weights(self, r: int, targets: str = ALL_LINEAR) -> int:
        """Of an adapter: r (in + out) for each layer that `targets` (LORA_TARGET_MODULES) names.

        Where nothing is called so, training will refuse; all of them count.
        """
        names = {name.strip().rpartition(".")[2] for name in targets.split(",")}
        named = [layer for layer in self.linear_layers if layer.name in names]
        return r * sum(layer.inputs + layer.outputs for layer in named or self.linear_layers)


MODELS = (
    ModelShape("HuggingFaceTB/SmolLM2-135M-Instruct", 30, 576, 1536, 576, 192, 49152, tied=True),
    ModelShape("meta-llama/Llama-3.2-1B-Instruct", 16, 2048, 8192, 2048, 512, 128256, tied=True),
    ModelShape("Qwen/Qwen2.5-1.5B-Instruct", 28, 1536, 8960, 1536, 256, 151936, tied=True),
    ModelShape("Qwen/Qwen2.5-3B-Instruct", 36, 2048, 11008, 2048, 256, 151936, tied=True),
    ModelShape("meta-llama/Llama-3.2-3B-Instruct", 28, 3072, 8192, 3072, 1024, 128256, tied=True),
    ModelShape("Qwen/Qwen3-4B", 36, 2560, 9728, 4096, 1024, 151936, tied=True),
    ModelShape("mistralai/Mistral-7B-Instruct-v0.3", 32, 4096, 14336, 4096, 1024, 32768),
    ModelShape("Qwen/Qwen2.5-7B-Instruct", 28, 3584, 18944, 3584, 512, 152064),
    ModelShape("meta-llama/Llama-3.1-8B-Instruct", 32, 4096, 14336, 4096, 1024, 128256),
    ModelShape("mistralai/Mistral-Nemo-Instruct-2407", 40, 5120, 14336, 4096, 1024, 131072),
    ModelShape("Qwen/Qwen2.5-14B-Instruct", 48, 5120, 13824, 5120, 1024, 152064),
)
"""The usual ones of 0.1B to 14B weights, from their `config.json`, so that nothing is fetched."""
