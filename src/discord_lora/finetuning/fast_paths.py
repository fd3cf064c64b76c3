"""Which pieces of the model are fast: each proves itself on the loaded model before it is used.

The proof: the same loss and the same gradients as the general way, but for what rounding explains.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from discord_lora.console import UserError
from discord_lora.conversations.examples import TokenizedExample
from discord_lora.conversations.packing import MicroBatch, collate
from discord_lora.finetuning import fused_layers
from discord_lora.finetuning.packed_attention import use_packed_attention
from discord_lora.finetuning.processes import sharded_like, whole
from discord_lora.finetuning.training_model import TrainingModel
from discord_lora.hardware import freed_at_once, is_out_of_memory

Found = TypeVar("Found")

TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Relative difference of losses that rounding explains, by number format."""

LEAST_ROUNDING = {torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Relative difference of gradients that is allowed in any case. How far rounding leads depends on
the model and is measured on it, but not all of it: products of other heights add up in another
order (1.3e-4 in the sample model in fp32)."""

MOST_ROUNDING = 0.5
"""Relative difference of gradients above which nothing is proved any more."""

FP16_LOSS_SCALES = (2.0**10, 2.0**5, 1.0)
"""Gradients must be neither too small for fp16 nor too large: the first that fits is taken."""

LOGIT_OPTIONS = {
    "final_logit_softcapping": None,
    "logits_soft_cap": None,
    "logits_scaling": 1.0,
    "logit_scale": 1.0,
    "lm_head_multiplier": 1.0,
}
"""What some models do to their logits, and the value that does nothing. Small logits would not
show a cap in the loss."""

PROBE_LENGTHS = (13, 8, 7)
"""Examples of the proof: padding, a batch of several, and neighbours on both sides."""


@dataclass(frozen=True, slots=True)
class Paths:
    """What the proofs found."""

    packing: bool
    """False if packed examples reach each other through this model: one at a time then."""
    fast: tuple[str, ...]
    general: tuple[str, ...]
    """Pieces for which this model needs the general way."""


def choose_paths(model: TrainingModel, examples: Sequence[TokenizedExample] = ()) -> Paths:
    """Switch on every fast piece that gives this model's own loss and gradients.

    Positions that start again keep attention apart; convolutions and linear attention, which some
    models have, need more than that, so packing has to prove itself as well.

    `examples` serve for the proofs. Without them it is random tokens, at which a trained model
    magnifies rounding several times as much.

    Raises:
        UserError: the loss is not finite.
    """
    rows = _probes(model, examples)
    single = [collate([example]) for example in rows]
    together = [collate(rows)]
    with _awake(model):
        expected = _expected(model, single)
        pieces = _pieces(model)
        changed = changes_logits(model.causal_model.config)
        serving = [name for name in pieces if name != "head" or not changed]
        # Nearly every model takes all of them, and packing: one proof is quicker than six.
        take_back = [pieces[name]() for name in serving]
        with freed_at_once():  # the unpacked weights, between which the layers' results lie
            packing, fast = _packs(model, expected, together), serving
        if not packing:
            for undo in reversed(take_back):
                undo()
            packing = _packs(model, expected, together)
            batches = together if packing else single
            fast = [name for name in serving if _proves_itself(model, expected, batches, name)]
    return Paths(packing, tuple(fast), tuple(name for name in pieces if name not in fast))


def _packs(model: TrainingModel, expected: "_Expected", together: list[MicroBatch]) -> bool:
    """Whether examples in one row give what they give one by one."""
    return _same(model, expected, together) and _keeps_neighbours_apart(model)


def _proves_itself(
    model: TrainingModel, expected: "_Expected", batches: list[MicroBatch], name: str
) -> bool:
    """Switch one piece on, beside those that are on already; take it back if it is not the same."""
    take_back = _pieces(model)[name]()
    if _same(model, expected, batches):
        return True
    take_back()
    return False


def _pieces(model: TrainingModel) -> dict[str, Callable[[], Callable[[], None]]]:
    """What can be fast: name -> what switches it on and returns what takes it back."""

    def head() -> Callable[[], None]:
        model.has_head_loss = True
        return lambda: setattr(model, "has_head_loss", False)

    def attention() -> Callable[[], None]:
        before = model.causal_model.config._attn_implementation
        use_packed_attention(model.causal_model)
        model.has_segments = True

        def take_back() -> None:
            model.causal_model.set_attn_implementation(before)
            model.has_segments = False

        return take_back

    fused = {
        kind: lambda kind=kind: fused_layers.fuse(model.model, kind) for kind in fused_layers.KINDS
    }
    return {"attention": attention, "head": head, **fused}


def changes_logits(config: Any) -> bool:
    """Whether the model does something to its logits after the head."""
    text = config.get_text_config()
    return any(getattr(text, it, None) not in (None, none) for it, none in LOGIT_OPTIONS.items())


def _probes(model: TrainingModel, examples: Sequence[TokenizedExample]) -> list[TokenizedExample]:
    """The ends of real examples, or random ones where these are too few; nearly all is trained."""
    rows = [random_example(model, length) for length in PROBE_LENGTHS]
    long = (example for example in examples if len(example) >= max(PROBE_LENGTHS))
    real = list(itertools.islice(long, len(rows)))
    if len(real) < len(rows):
        return rows
    return [
        replace(row, input_ids=example.input_ids[-len(row) :])
        for row, example in zip(rows, real, strict=True)
    ]


def random_example(model: TrainingModel, length: int) -> TokenizedExample:
    """Tokens that mean nothing, nearly all of them trained."""
    vocabulary = model.causal_model.get_input_embeddings().num_embeddings
    random = np.random.default_rng(length)
    return TokenizedExample(
        conversation_id="random",
        message_ids=("random",),
        input_ids=random.integers(0, vocabulary, length, dtype=np.int32),
        trained=np.arange(length) >= 2,
        characters=0,
    )


@contextmanager
def _awake(model: TrainingModel) -> Iterator[None]:
    """LoRA's B matrices begin at zero, where no gradient would reach A: give them values."""
    sleeping = {n: p for n, p in model.trainable().items() if "lora_B" in n}
    before = {name: p.detach().clone() for name, p in sleeping.items()}
    generator = torch.Generator().manual_seed(0)
    was_training = model.training
    model.eval()  # without dropout
    try:
        with torch.no_grad():
            for p in sleeping.values():
                p.copy_(sharded_like(p, torch.randn(p.shape, generator=generator) * 0.02))
        yield
    finally:
        with torch.no_grad():
            for name, p in sleeping.items():
                p.copy_(before[name])
        model.zero_grad(set_to_none=True)
        model.train(was_training)


@dataclass(frozen=True, slots=True)
class _Result:
    """What a pass forth and back gave."""

    loss: Tensor
    gradients: dict[str, Tensor]
    """In one vector for each kind of trainable weight: the same matrix of all layers."""
    loss_scale: float

    @property
    def norm(self) -> Tensor:
        norm: Tensor = torch.stack([it.norm() for it in self.gradients.values()]).norm()
        return norm


@dataclass(frozen=True, slots=True)
class _Expected:
    """What the general way gives, and how far from it rounding may lead."""

    result: _Result
    tolerances: dict[str, float]
    """Relative, by kind of weight."""


def _kind(name: str) -> str:
    """The name of a weight without the numbers of its layer and of its expert."""
    return ".".join(part for part in name.split(".") if not part.isdigit())


def _loss_and_gradients(
    model: TrainingModel, batches: list[MicroBatch], loss_scale: float
) -> _Result:
    """Summed loss, and the gradients of all trainable weights times `loss_scale`."""
    parameters = model.trainable()
    device = next(iter(parameters.values())).device
    model.zero_grad(set_to_none=True)
    total = torch.zeros((), device=device)
    for batch in batches:
        loss = model(batch.to(device))
        (loss * loss_scale).backward()
        total += loss.detach()
    kinds: dict[str, list[Tensor]] = {}
    for name, p in parameters.items():
        gradient = p.new_zeros(p.shape) if p.grad is None else p.grad
        kinds.setdefault(_kind(name), []).append(whole(gradient).flatten().float())
    return _Result(total, {kind: torch.cat(parts) for kind, parts in kinds.items()}, loss_scale)


def _expected(model: TrainingModel, batches: list[MicroBatch]) -> _Expected:
    """The general way, and what a little more rounding changes in it.

    Raises:
        UserError: the loss is not finite.
    """
    dtype = _dtype(model)
    for loss_scale in FP16_LOSS_SCALES if dtype == torch.float16 else (1.0,):
        result = _loss_and_gradients(model, batches, loss_scale)
        if bool(result.norm.isfinite()):
            break
    if not bool(result.loss.isfinite()):
        why = (
            "the numbers of this model do not fit fp16, in which this card computes"
            if dtype == torch.float16
            else f"the loss of this model is {float(result.loss)}; its weights may be damaged"
        )
        raise UserError(f"BASE_MODEL: {why}; choose another BASE_MODEL.")
    with _rounded_once_more(model):
        other = _loss_and_gradients(model, batches, loss_scale).gradients
    tolerances = {
        kind: min(
            MOST_ROUNDING,
            max(
                LEAST_ROUNDING[dtype],
                3 * float((other[kind] - it).norm() / it.norm().clamp_min(1e-30)),
            ),
        )
        for kind, it in result.gradients.items()
    }
    return _Expected(result, tolerances)


@contextmanager
def _rounded_once_more(model: TrainingModel) -> Iterator[None]:
    """Change what each layer puts out by as much as rounding may, at random.

    How far rounding leads is seen by rounding differently: Monte Carlo arithmetic (Parker 1997).
    """
    generator = torch.Generator().manual_seed(0)

    def change(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        noise = torch.rand(output.shape, generator=generator) - 0.5
        factor = 1 + noise * torch.finfo(output.dtype).eps
        return output * factor.to(output.device, output.dtype)

    leaves = (module for module in model.modules() if not any(module.children()))
    hooks = [module.register_forward_hook(change) for module in leaves]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _keeps_neighbours_apart(model: TrainingModel) -> bool:
    """Whether an example's loss stays the same when its neighbours in the row say other things."""
    first, own, last = (random_example(model, length) for length in PROBE_LENGTHS)
    vocabulary = model.causal_model.get_input_embeddings().num_embeddings
    device = next(iter(model.trainable().values())).device

    @torch.no_grad()
    def loss_beside(shift: int) -> float:
        left, right = (
            replace(it, input_ids=(it.input_ids + shift) % vocabulary, trained=it.trained & False)
            for it in (first, last)
        )
        return float(model(collate([left, own, right]).to(device)))

    losses = _if_possible(model, lambda: (loss_beside(0), loss_beside(vocabulary // 2)))
    if losses is None:
        return False
    return abs(losses[0] - losses[1]) <= 0.1 * TOLERANCE[_dtype(model)] * abs(losses[0])


def _same(model: TrainingModel, expected: _Expected, batches: list[MicroBatch]) -> bool:
    wanted, dtype = expected.result, _dtype(model)
    found = _if_possible(model, lambda: _loss_and_gradients(model, batches, wanted.loss_scale))
    if found is None:
        return False
    if not bool((found.loss - wanted.loss).abs() <= TOLERANCE[dtype] * wanted.loss.abs()):
        return False
    # A gradient that is zero in exact arithmetic is rounding alone, whichever way it was found.
    rounding = max(1e-6, torch.finfo(dtype).eps / 8) * wanted.norm
    return all(
        bool((found.gradients[kind] - it).norm() <= tolerance * it.norm() + rounding)
        for (kind, it), tolerance in zip(
            wanted.gradients.items(), expected.tolerances.values(), strict=True
        )
    )


def _if_possible(model: TrainingModel, attempt: Callable[[], Found]) -> Found | None:
    """What it returns, or None if the model cannot be called in this way."""
    try:
        return attempt()
    except (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError) as error:
        if is_out_of_memory(error) or "CUDA error" in str(error):
            raise
        if isinstance(model, FSDPModule):
            model.reset_iter_state()  # of the pass that broke off
        return None


def _dtype(model: TrainingModel) -> torch.dtype:
    """Of the weights that are not quantized."""
    dtype: torch.dtype = model.causal_model.get_input_embeddings().weight.dtype
    return dtype
