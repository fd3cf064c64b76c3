"""LoRA's layers with a backward pass of their own: fewer passes over memory, fewer tensors kept.

What autograd would do layer by layer (copies, casts, a product kept for each multiplication) is
written down once, because the base weights are frozen: y = x W' + s (x A') B', so

    dx = dy W + s (dy B) A      dA = s (dy B)' x      dB = s dy' (x A')

and only `x` and the r numbers a token of x A' are kept. The base weights are unpacked from 4 bits
when they are needed and dropped at once. The idea is that of Unsloth's LoRA kernels; here it is
plain torch, so it runs on every device.

Each function replaces the `forward` of modules that compute exactly this, and nothing else about
them: names, parameters and checkpoints stay those of transformers and peft.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple

import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional


class Lora(NamedTuple):
    """One linear layer with its adapter, as numbers."""

    base: nn.Module
    a: Tensor
    """(r, in)."""
    b: Tensor
    """(out, r)."""
    scale: float

    @classmethod
    def of(cls, layer: Any) -> "Lora":
        (name,) = layer.active_adapters
        return cls(
            layer.get_base_layer(),
            layer.lora_A[name].weight,
            layer.lora_B[name].weight,
            layer.scaling[name],
        )

    def weight(self, dtype: torch.dtype) -> Tensor:
        """(out, in), unpacked."""
        weight: Any = self.base.weight
        state = getattr(weight, "quant_state", None)
        unpacked: Tensor = weight if state is None else dequantize_4bit(weight.data, state)
        return unpacked.to(dtype)


def _forward(x: Tensor, lora: Lora, dropped: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """y of shape (tokens, out) and x A' of shape (tokens, r), both in the number format of `x`."""
    bias: Any = lora.base.bias
    y = functional.linear(x, lora.weight(x.dtype), None if bias is None else bias.to(x.dtype))
    low = (x if dropped is None else dropped) @ lora.a.to(x.dtype).T
    return y.addmm_(low, lora.b.to(x.dtype).T, alpha=lora.scale), low


class Gradients(NamedTuple):
    """Of one linear layer: through the frozen weights, through the adapter, and of A and B."""

    through_base: Tensor | None
    through_lora: Tensor
    """(tokens, r), still to be multiplied by A."""
    a: Tensor
    b: Tensor


def _backward(dy: Tensor, x: Tensor, low: Tensor, lora: Lora, *, wants_x: bool) -> Gradients:
    """`x` is what the adapter read: after dropout, if there was any."""
    d_low = torch.mm(dy, lora.b.to(dy.dtype)).mul_(lora.scale)
    return Gradients(
        through_base=torch.mm(dy, lora.weight(dy.dtype)) if wants_x else None,
        through_lora=d_low,
        a=torch.mm(d_low.T, x).to(lora.a.dtype),
        b=torch.mm(dy.T, low).mul_(lora.scale).to(lora.b.dtype),
    )


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        base: nn.Module,
        a: Tensor,
        b: Tensor,
        scale: float,
    ) -> Tensor:
        lora = Lora(base, a, b, scale)
        y, low = _forward(x, lora, dropped)
        ctx.save_for_backward(x if dropped is None else dropped, low, a, b)
        ctx.base, ctx.scale, ctx.has_dropout = base, scale, dropped is not None
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, low, a, b = ctx.saved_tensors
        wants_x, wants_dropped = ctx.needs_input_grad[:2]
        gradients = _backward(dy, x, low, Lora(ctx.base, a, b, ctx.scale), wants_x=wants_x)
        dx, d_dropped = gradients.through_base, None
        if ctx.has_dropout:
            d_dropped = gradients.through_lora @ a.to(dy.dtype) if wants_dropped else None
        elif dx is not None:
            dx.addmm_(gradients.through_lora, a.to(dy.dtype))
        return dx, d_dropped, None, gradients.a, gradients.b, None


_lora_linear: Any = _LoraLinear.apply


def _lora_forward(layer: Any, x: Tensor) -> Tensor:
    """What `forward` of a peft LoRA layer becomes."""
    if layer.disable_adapters or layer.merged:
        return layer.__class__.forward(layer, x)  # type: ignore[no-any-return]
    lora = Lora.of(layer)
    rows = x.flatten(0, -2)
    dropped = layer.lora_dropout[layer.active_adapters[0]](rows)
    y: Tensor = _lora_linear(
        rows, None if dropped is rows else dropped, lora.base, lora.a, lora.b, lora.scale
    )
    return y.view(*x.shape[:-1], -1)


class _GatedDown(torch.autograd.Function):
    """down(act(gate) * up) with LoRA on `down`; the product is made again, not kept."""

    @staticmethod
    def forward(
        ctx: Any,
        gate: Tensor,
        up: Tensor,
        activation: Callable[[Tensor], Tensor],
        base: nn.Module,
        a: Tensor,
        b: Tensor,
        scale: float,
    ) -> Tensor:
        y, low = _forward(activation(gate).mul_(up), Lora(base, a, b, scale))
        ctx.save_for_backward(gate, up, low, a, b)
        ctx.activation, ctx.base, ctx.scale = activation, base, scale
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, low, a, b = ctx.saved_tensors
        with torch.enable_grad():
            gate = gate.detach().requires_grad_()
            activated = ctx.activation(gate)
        opened = activated.detach()
        lora = Lora(ctx.base, a, b, ctx.scale)
        gradients = _backward(dy, opened * up, low, lora, wants_x=True)
        product = gradients.through_base
        assert product is not None
        product.addmm_(gradients.through_lora, a.to(dy.dtype))
        (d_gate,) = torch.autograd.grad(activated, gate, product * up)
        return d_gate, product.mul_(opened), None, None, gradients.a, gradients.b, None


_gated_down: Any = _GatedDown.apply


def _gated_forward(mlp: Any, x: Tensor) -> Tensor:
    """What `forward` of a gated MLP (SwiGLU, GeGLU) becomes."""
    down = mlp.down_proj
    if down.disable_adapters or down.merged:
        return mlp.__class__.forward(mlp, x)  # type: ignore[no-any-return]
    gate, up = (layer(x).flatten(0, -2) for layer in (mlp.gate_proj, mlp.up_proj))
    lora = Lora.of(down)
    y: Tensor = _gated_down(gate, up, mlp.act_fn, lora.base, lora.a, lora.b, lora.scale)
    return y.view(*x.shape[:-1], -1)


class _RmsNorm(torch.autograd.Function):
    """x / rms(x) * weight with a frozen weight (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        inverse = wide.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, inverse, weight)
        return (wide * inverse).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        x, inverse, weight = ctx.saved_tensors
        scaled = dy.float() * weight
        wide = x.float()
        along = (scaled * wide).mean(-1, keepdim=True).mul_(inverse * inverse)
        dx = scaled.addcmul_(wide, along, value=-1).mul_(inverse)
        return dx.to(x.dtype), None, None


_rms_norm: Any = _RmsNorm.apply


def _rms_forward(norm: Any, x: Tensor) -> Tensor:
    y: Tensor = _rms_norm(x, _rms_weight(norm), _rms_epsilon(norm))
    return y


def _rms_weight(norm: Any) -> Tensor:
    """Gemma keeps its weights around zero, everybody else around one."""
    weight: Tensor = norm.weight
    return weight.float() + 1.0 if "Gemma" in type(norm).__name__ else weight


def _rms_epsilon(norm: Any) -> float:
    return float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)


# Which modules each of them serves -----------------------------------------------------------


def _is_plain_lora(module: nn.Module) -> bool:
    """A linear layer with one ordinary adapter and none of peft's variants."""
    return (
        isinstance(module, LoraLayer)
        and isinstance(module.get_base_layer(), nn.Linear)
        and len(module.active_adapters) == 1
        and set(module.lora_A) == set(module.active_adapters)
        and not module.lora_variant
        and not any(module.lora_bias.values())
    )


def _is_gated_mlp(module: Any) -> bool:
    names = ("gate_proj", "up_proj", "down_proj", "act_fn")
    return (
        all(hasattr(module, name) for name in names)
        and _is_plain_lora(module.down_proj)
        and all(isinstance(it, nn.Identity) for it in module.down_proj.lora_dropout.values())
    )


def _is_rms_norm(module: Any) -> bool:
    return (
        type(module).__name__.endswith("RMSNorm")
        and isinstance(getattr(module, "weight", None), Tensor)
        and (hasattr(module, "variance_epsilon") or hasattr(module, "eps"))
    )


KINDS: dict[str, tuple[Callable[[Any], bool], Callable[[Any, Tensor], Tensor]]] = {
    "LoRA layers": (_is_plain_lora, _lora_forward),
    "gated MLPs": (_is_gated_mlp, _gated_forward),
    "norms": (_is_rms_norm, _rms_forward),
}


def fuse(model: nn.Module, kind: str) -> Callable[[], None]:
    """Replace the `forward` of all modules of one of `KINDS`; returns what takes it back."""
    serves, forward = KINDS[kind]
    chosen = [module for module in model.modules() if serves(module)]
    for module in chosen:
        module.forward = MethodType(forward, module)

    def take_back() -> None:
        for module in chosen:
            del module.forward

    return take_back
