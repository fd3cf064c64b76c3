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
    optimizer_bytes,
    plan_memory,
    usual_optimizer,
)
from discord_lora.analysis.plan.model_shapes import ALL_LINEAR, NF4_BYTES, ModelShape
from discord_lora.analysis.plan.time_model import LAUNCH_SECONDS, TimeModel, modelled
from discord_lora.settings import Settings

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
            card.usable_bytes,
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
    def launch_seconds(self) -> float:
        """Of a kernel; a CPU calls its own."""
        return LAUNCH_SECONDS if self.kind == "cuda" else 0.0


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
    lora_targets: str = ALL_LINEAR,
    optimizer: str = "auto",
    quantized: bool = True,
    packing: bool = True,
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
        lora_targets: which layers it is on, as LORA_TARGET_MODULES says.
        optimizer: as OPTIMIZER says.
        quantized: linear layers in NF4.
        packing: several examples in one micro-batch.
        token_budget: what the user set; None: choose.
        checkpointing: what the user set; None: choose.
    """
    weight_bytes = NF4_BYTES if quantized else machine.number_bytes
    weights = shape.linear_weights * weight_bytes
    embedding = float(shape.embedding_weights * machine.number_bytes)
    context = CONTEXT_BYTES[machine.kind]
    head, workspace = _fixed(shape, machine)
    if optimizer == "auto":
        optimizer = usual_optimizer(on_cuda=machine.kind == "cuda")
    adapter = shape.lora_weights(lora_r, lora_targets) * (4 + 4 + optimizer_bytes(optimizer))
    activations = activation_bytes(shape, machine, lora_r, head + workspace + adapter)
    free = machine.memory_bytes - context - RESERVE_BYTES[machine.kind] - weights - embedding
    plan = plan_memory(
        activations, free, step_tokens, longest,
        token_budget=token_budget, checkpointing=checkpointing, packing=packing,
    )  # fmt: skip
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


def fit_data(
    shape: ModelShape, machine: Machine, settings: Settings, step_tokens: list[int], longest: int
) -> Fit:
    """`fit_into` with what the settings say."""
    budget, checkpointing = settings.max_tokens_per_microbatch, settings.gradient_checkpointing
    return fit_into(
        shape,
        machine,
        step_tokens,
        longest,
        lora_r=settings.lora_r,
        lora_targets=settings.lora_target_modules,
        optimizer=settings.optimizer,
        quantized=settings.quantization == "nf4",
        packing=settings.packing,
        token_budget=None if budget == "auto" else budget,
        checkpointing=None if checkpointing == "auto" else checkpointing == "true",
    )


def activation_bytes(
    shape: ModelShape, machine: Machine, r: int, fixed: float = 0.0
) -> ActivationBytes:
    """What the fast pieces keep; `finetuning/activations.py` counts it on real models."""
    kept = 4 * shape.hidden + 2 * shape.query + 2 * shape.key + 2 * shape.intermediate + 7 * r
    number = float(machine.number_bytes)
    return ActivationBytes(
        layers=shape.layers,
        layer=number * kept,
        layer_input=number * shape.hidden,
        outside=number * 4 * shape.hidden,
        fixed=fixed,
    )


def _fixed(shape: ModelShape, machine: Machine) -> tuple[float, float]:
    """Head and workspace: bytes whatever the tokens."""
    # A softmax in fp32 needs no second buffer where the logits are fp32 already.
    head = LOGITS_AT_ONCE * (2 + 4 if machine.number_bytes == 2 else 4)
    workspace = 2 * machine.number_bytes * shape.hidden * shape.intermediate
    return float(head), float(workspace)


def time_model_of(
    shape: ModelShape,
    machine: Machine,
    *,
    lora_r: int,
    checkpointed_share: float,
    lora_targets: str = ALL_LINEAR,
    quantized: bool = True,
) -> TimeModel:
    """Seconds of each part of the work on this machine: modelled."""
    return modelled(
        shape,
        flops_per_second=machine.flops_per_second,
        bytes_per_second=machine.bytes_per_second,
        lora_r=lora_r,
        lora_targets=lora_targets,
        checkpointed_share=checkpointed_share,
        number_bytes=machine.number_bytes,
        launch_seconds=machine.launch_seconds,
        quantized=quantized,
    )
