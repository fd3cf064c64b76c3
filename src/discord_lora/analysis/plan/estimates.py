"""Time and memory of a run on a machine, from formulas: before anything is loaded or bought.

Memory, in bytes:
    weights      linear layers at NF4_BYTES a weight (QLoRA: Dettmers et al. 2023, section 3)
    embedding    with the head, unquantized
    adapter      r (in + out) weights a linear layer, each with 4 bytes of itself, 4 of gradient
                 and 2 (8-bit) or 8 (fp32) of Adam's moments
    activations  what the fast pieces keep a token and layer:
                 4 hidden + 2 query + 2 key + 2 intermediate (+ norms and LoRA)
    head         one chunk of logits and of their softmax
    workspace    the largest layer, unpacked twice
    context      CUDA and its libraries; on a CPU the process with its libraries

Time: see time_model.py.
"""

from dataclasses import dataclass, fields

from discord_lora.analysis.plan.cards import Card
from discord_lora.analysis.plan.memory import (
    LOGITS_AT_ONCE,
    RESERVE_BYTES,
    ActivationBytes,
    MemoryPlan,
    plan_memory,
)
from discord_lora.analysis.plan.model_shapes import NF4_BYTES, ModelShape
from discord_lora.analysis.plan.time_model import TimeModel, Work, modelled

UTILISATION = 0.4
"""Share of the tensor peak that training reaches on a card. Assumed: torchtune reaches about this
much of a 4090's on an 8B model; nothing here has been measured on a card yet."""

CPU_UTILISATION = 0.65
"""Share of its own matrix-product rate that the trainer's layers reach on a CPU, the price of a
micro-batch apart. From `python benchmarks/compare_training.py --profile`."""

CPU_BYTES_PER_SECOND = 10e9
"""To and from memory, a few cores together: what unpacking 4-bit weights reaches."""

CONTEXT_BYTES = {"cuda": 0.5e9, "cpu": 0.75e9}
"""Taken before the first weight is loaded: CUDA and its libraries; torch and transformers."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where training runs, as far as estimates are concerned."""

    name: str
    kind: str
    """`cuda` or `cpu`."""
    memory_bytes: float
    """Of the card; without one, free memory of the computer."""
    flops_per_second: float
    """That training reaches."""
    bytes_per_second: float

    @classmethod
    def of_card(cls, card: Card) -> "Machine":
        return cls(
            card.name,
            "cuda",
            card.memory_gb * 2**30,
            UTILISATION * card.tensor_tflops * 1e12,
            card.bandwidth_gb_s * 1e9,
        )

    @classmethod
    def of_cpu(cls, gemm_flops_per_second: float, free_bytes: float) -> "Machine":
        rate = CPU_UTILISATION * gemm_flops_per_second
        return cls("CPU", "cpu", free_bytes, rate, CPU_BYTES_PER_SECOND)

    @property
    def number_bytes(self) -> int:
        """Of an activation, and of a weight that is not quantized."""
        return 2 if self.kind == "cuda" else 4

    @property
    def moment_bytes(self) -> int:
        """Of Adam, for each trainable number: 8-bit on a card."""
        return 2 if self.kind == "cuda" else 8


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes at the largest micro-batch, by what takes them."""

    weights: float
    embedding: float
    adapter: float
    activations: float
    head: float
    workspace: float
    context: float

    @property
    def total(self) -> float:
        return float(sum(getattr(self, part.name) for part in fields(self)))


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a model can be trained on a machine, and how."""

    shape: ModelShape
    machine: Machine
    plan: MemoryPlan
    use: MemoryUse
    fits: bool

    @property
    def margin(self) -> float:
        """Bytes that stay free."""
        return self.machine.memory_bytes - self.use.total


def fit_into(
    shape: ModelShape,
    machine: Machine,
    step_tokens: list[int],
    longest: int,
    *,
    lora_r: int,
    quantized: bool = True,
    token_budget: int | None = None,
    checkpointing: bool | None = None,
) -> Fit:
    """Token budget and checkpointing as the trainer will choose them, with what they take.

    Args:
        shape: the model.
        machine: where.
        step_tokens: tokens of each optimizer step.
        longest: tokens of the longest example.
        lora_r: rank of the adapter.
        quantized: linear layers in NF4.
        token_budget: what the user set; None: choose.
        checkpointing: what the user set; None: choose.
    """
    weight_bytes = NF4_BYTES if quantized else machine.number_bytes
    weights = shape.linear_weights * weight_bytes
    embedding = float(shape.embedding_weights * machine.number_bytes)
    context = CONTEXT_BYTES[machine.kind]
    activations = activation_bytes(shape, machine, lora_r)
    free = machine.memory_bytes - context - RESERVE_BYTES[machine.kind] - weights - embedding
    plan = plan_memory(
        activations, free, step_tokens, longest,
        token_budget=token_budget, checkpointing=checkpointing,
    )  # fmt: skip
    head, workspace, adapter = _fixed(shape, machine, lora_r)
    use = MemoryUse(
        weights=weights,
        embedding=embedding,
        adapter=adapter,
        activations=plan.expected_bytes - activations.fixed,
        head=head,
        workspace=workspace,
        context=context,
    )
    return Fit(shape, machine, plan, use, fits=plan.expected_bytes <= free)


def activation_bytes(shape: ModelShape, machine: Machine, r: int) -> ActivationBytes:
    """What the fast pieces keep; `finetuning/activations.py` counts it on real models."""
    kept = 4 * shape.hidden + 2 * shape.query + 2 * shape.key + 2 * shape.intermediate + 7 * r
    number = float(machine.number_bytes)
    return ActivationBytes(
        layers=shape.layers,
        layer=number * kept,
        layer_input=number * shape.hidden,
        outside=number * 4 * shape.hidden,
        fixed=sum(_fixed(shape, machine, r)),
    )


def _fixed(shape: ModelShape, machine: Machine, r: int) -> tuple[float, float, float]:
    """Head, workspace, adapter: bytes whatever the tokens."""
    # A softmax in fp32 needs no second buffer where the logits are fp32 already.
    head = LOGITS_AT_ONCE * (2 + 4 if machine.number_bytes == 2 else 4)
    workspace = 2 * machine.number_bytes * shape.hidden * shape.intermediate
    adapter = shape.lora_weights(r) * (4 + 4 + machine.moment_bytes)
    return float(head), float(workspace), float(adapter)


def time_model_of(
    shape: ModelShape,
    machine: Machine,
    *,
    lora_r: int,
    checkpointed_share: float,
    quantized: bool = True,
) -> TimeModel:
    """Seconds of each part of the work on this machine: modelled."""
    return modelled(
        shape,
        flops_per_second=machine.flops_per_second,
        bytes_per_second=machine.bytes_per_second,
        lora_r=lora_r,
        checkpointed_share=checkpointed_share,
        number_bytes=machine.number_bytes,
        quantized=quantized,
    )


@dataclass(frozen=True, slots=True)
class Workload:
    """What is trained when there is no data yet; the defaults are the classic night."""

    messages: int = 63_000
    messages_per_step: int = 16
    tokens_per_message: float = 40.0
    """Names and repeated context included."""
    trained_share: float = 0.65
    """Of the tokens."""
    example_tokens: int = 300
    longest: int = 1024

    @property
    def step_tokens(self) -> list[int]:
        """A typical spread of steps around the mean."""
        mean = self.messages_per_step * self.tokens_per_message
        return [round(mean * factor) for factor in (0.6, 0.8, 1.0, 1.2, 1.8)]

    def work(self, token_budget: int) -> Work:
        """Of one epoch, in micro-batches of up to so many tokens."""
        steps = self.messages / self.messages_per_step
        passes = sum(-(-tokens // token_budget) for tokens in self.step_tokens)
        tokens = self.messages * self.tokens_per_message
        return Work(
            steps=steps,
            micro_batches=steps * passes / len(self.step_tokens),
            tokens=tokens,
            squared_tokens=tokens * self.example_tokens,
            targets=tokens * self.trained_share,
        )


def epoch_of(
    shape: ModelShape, card: Card, workload: Workload, lora_r: int = 16
) -> tuple[Fit, float]:
    """How the model fits a card, and the seconds of one epoch on it."""
    made = fit_into(
        shape, Machine.of_card(card), workload.step_tokens, workload.longest, lora_r=lora_r
    )
    prices = time_model_of(
        shape, made.machine, lora_r=lora_r, checkpointed_share=made.plan.checkpointed_share
    )
    return made, prices.seconds(workload.work(made.plan.token_budget))
