"""Time and memory of a training run on a card that is not here: modelled, from published figures.

Memory, in bytes:
    weights      linear layers at NF4_BYTES a weight (QLoRA: Dettmers et al. 2023, section 3),
                 embedding and head at 2
    adapter      r (in + out) weights a linear layer, each with 4 bytes of itself, 4 of gradient
                 and 2 of 8-bit Adam
    activations  what the fast pieces keep a token and layer, 16 bit:
                 4 hidden + 2 query + 2 key + 2 intermediate (+ norms and LoRA)
    workspace    one chunk of logits, and the largest layer unpacked twice

Time, in seconds a token:
    layers       2 FLOPs a weight forward, 2 backward (frozen: no gradient for the weights), 2 more
                 where a layer is checkpointed; LoRA 6 a weight (Hoffmann et al. 2022, appendix F)
    head         4 FLOPs a weight, at target tokens only
    attention    4 x tokens of an example x query size forward, halved by causality; 3.5 times that
                 with the backward pass (Dao 2023, FlashAttention-2, section 4.1)
    unpacking    per micro-batch: 4-bit weights read, 16-bit ones written and read, for each pass
"""

from dataclasses import dataclass
from typing import Literal

from discord_lora.analysis.memory import RESERVE_BYTES, ActivationBytes, MemoryPlan, plan_memory

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes a quantized weight takes: 4 bits, an 8-bit scale a block of 64 (double quantization:
Dettmers et al. 2023, section 3), a 32-bit scale for 256 of those."""

UTILISATION = 0.4
"""Share of the tensor peak that training reaches on a card. Assumed: torchtune reaches about this
much of a 4090's on an 8B model; nothing here has been measured on a card yet."""

CUDA_CONTEXT_BYTES = 0.5e9
"""Taken by CUDA and its libraries before the first weight is loaded."""

Generation = Literal["Turing", "Ampere", "Ada", "Blackwell"]


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model's `config.json` decides about time and memory."""

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

    @property
    def linear_weights(self) -> int:
        attention = self.hidden * (2 * self.query + 2 * self.key)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def embedding_weights(self) -> int:
        """Embedding and head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    def lora_weights(self, r: int) -> int:
        inputs = 3 * self.hidden + self.query + 2 * self.hidden + self.intermediate
        outputs = self.query + 2 * self.key + self.hidden + 2 * self.intermediate + self.hidden
        return self.layers * r * (inputs + outputs)


MODELS = (
    ModelShape("HuggingFaceTB/SmolLM2-135M-Instruct", 30, 576, 1536, 576, 192, 49152, tied=True),
    ModelShape("Qwen/Qwen2.5-1.5B-Instruct", 28, 1536, 8960, 1536, 256, 151936, tied=True),
    ModelShape("Qwen/Qwen2.5-3B-Instruct", 36, 2048, 11008, 2048, 256, 151936, tied=True),
    ModelShape("mistralai/Mistral-7B-Instruct-v0.3", 32, 4096, 14336, 4096, 1024, 32768),
    ModelShape("Qwen/Qwen2.5-7B-Instruct", 28, 3584, 18944, 3584, 512, 152064),
    ModelShape("meta-llama/Llama-3.1-8B-Instruct", 32, 4096, 14336, 4096, 1024, 128256),
    ModelShape("mistralai/Mistral-Nemo-Instruct-2407", 40, 5120, 14336, 4096, 1024, 131072),
    ModelShape("Qwen/Qwen2.5-14B-Instruct", 48, 5120, 13824, 5120, 1024, 152064),
)


@dataclass(frozen=True, slots=True)
class Card:
    """A graphics card, by NVIDIA's data sheets and architecture papers."""

    name: str
    generation: Generation
    memory_gb: float
    tensor_tflops: float
    """Dense fp16 with fp32 accumulation."""
    bandwidth_gb_s: float

    @property
    def dtype(self) -> str:
        return "fp16" if self.generation == "Turing" else "bf16"


CARDS = (
    Card("RTX 2060", "Turing", 6, 25.8, 336),
    Card("RTX 2080", "Turing", 8, 40.3, 448),
    Card("RTX 3070", "Ampere", 8, 40.6, 448),
    Card("RTX 2080 Ti", "Turing", 11, 53.8, 616),
    Card("RTX 3060", "Ampere", 12, 25.5, 360),
    Card("RTX 4070", "Ada", 12, 58.3, 504),
    Card("Tesla T4", "Turing", 16, 65.0, 320),
    Card("RTX 4060 Ti", "Ada", 16, 44.1, 288),
    Card("RTX 5070 Ti", "Blackwell", 16, 87.9, 896),
    Card("RTX 3090", "Ampere", 24, 71.0, 936),
    Card("RTX 4090", "Ada", 24, 165.2, 1008),
)


@dataclass(frozen=True, slots=True)
class Workload:
    """What is trained; the defaults are the classic night."""

    messages: int = 63_000
    messages_per_step: int = 16
    tokens_per_message: float = 40.0
    """Names and repeated context included."""
    trained_share: float = 0.65
    """Of the tokens."""
    example_tokens: int = 300
    longest: int = 1024
    lora_r: int = 16

    @property
    def tokens(self) -> float:
        return self.messages * self.tokens_per_message

    @property
    def step_tokens(self) -> list[int]:
        """A typical spread of steps around the mean."""
        mean = self.messages_per_step * self.tokens_per_message
        return [round(mean * factor) for factor in (0.6, 0.8, 1.0, 1.2, 1.8)]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Modelled, not measured."""

    model: ModelShape
    card: Card
    plan: MemoryPlan
    weight_bytes: float
    peak_bytes: float
    """At the largest micro-batch, CUDA's own share included."""
    seconds: float
    fits: bool


def estimate(model: ModelShape, card: Card, work: Workload) -> Estimate:
    """Time and memory of one epoch, with checkpointing and token budget on auto."""
    weights = model.linear_weights * NF4_BYTES + model.embedding_weights * 2
    activations = activation_bytes(model, work.lora_r)
    free = card.memory_gb * 2**30 - CUDA_CONTEXT_BYTES - RESERVE_BYTES["cuda"] - weights
    plan = plan_memory(
        activations, free, work.step_tokens, work.longest, token_budget=None, checkpointing=None
    )
    return Estimate(
        model=model,
        card=card,
        plan=plan,
        weight_bytes=weights,
        peak_bytes=CUDA_CONTEXT_BYTES + weights + plan.expected_bytes,
        seconds=epoch_seconds(model, card, work, plan),
        fits=plan.expected_bytes <= free,
    )


def activation_bytes(model: ModelShape, r: int) -> ActivationBytes:
    """What the fast pieces keep in 16 bit; `finetuning/activations.py` counts it on real models."""
    kept = 4 * model.hidden + 2 * model.query + 2 * model.key + 2 * model.intermediate + 7 * r
    logits = 32 * 2**20 * (2 + 4)
    largest = model.hidden * model.intermediate
    return ActivationBytes(
        layers=model.layers,
        layer=2.0 * kept,
        layer_input=2.0 * model.hidden,
        outside=2.0 * 4 * model.hidden,
        fixed=logits + 2 * 2 * largest + model.lora_weights(r) * (4 + 4 + 2),
    )


def epoch_seconds(model: ModelShape, card: Card, work: Workload, plan: MemoryPlan) -> float:
    """One pass over the messages; without start-up, validation and checkpoints."""
    repeated = plan.checkpointed / plan.layers
    layers = (4 + 2 * repeated) * model.linear_weights + 6 * model.lora_weights(work.lora_r)
    head = 4 * model.vocabulary * model.hidden * work.trained_share
    attention = model.layers * 4 * work.example_tokens / 2 * model.query * (3.5 + repeated)
    flops = work.tokens * (layers + head + attention)
    micro_batches = sum(-(-tokens // plan.token_budget) for tokens in work.step_tokens)
    passes = work.messages / work.messages_per_step * micro_batches / len(work.step_tokens)
    unpacked = (2 + repeated) * model.linear_weights * (NF4_BYTES + 2 + 2)
    return (
        flops / (UTILISATION * card.tensor_tflops * 1e12)
        + passes * unpacked / (card.bandwidth_gb_s * 1e9)
    )  # fmt: skip
