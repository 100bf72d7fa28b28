"""A linear layer with LoRA adapters over a base of 16-bit floats: one product chain in the dtype of the base.

PEFT casts every input to float32, multiplies there, adds there and casts back: in bfloat16 seven kernels a layer become
49, and every adapted matrix keeps a float32 copy of its input for the backward pass. Here an adapter is two products
with 16-bit operands and float32 sums; the backward pass needs the input as it was given, which layers that share it
share. Weights and their gradients stay float32.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor
from torch.autograd.function import once_differentiable

HALF = (torch.bfloat16, torch.float16)


class AdaptedLinear(Linear):  # type: ignore[misc]
    """PEFT's layer with another ``forward``, whose class is set in place; all else is PEFT's.

    Where the base computes in 16 bits, each adapter that has run keeps a *shadow* beside its float32 weights: A and
    scaling * B as sums of two 16-bit numbers each. It is written in place, and only after a weight was: programs and
    graphs that read it stay valid. A pass that is traced before any eager pass has none and takes PEFT's way.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in) -> (..., out) in the dtype of the base layer's output."""
        if self.disable_adapters or self.merged or args or kwargs:
            plain: Tensor = super().forward(x, *args, **kwargs)
            return plain
        result: Tensor = self.base_layer(x)
        for name in self.active_adapters:
            if name in self.lora_A:
                result = self.add(name, x, result)
        return result

    def add(self, name: str, x: Tensor, result: Tensor) -> Tensor:
        """``result`` plus adapter ``name`` of ``x``; without gradients a contiguous ``result`` is overwritten.

        Args:
            x: (..., in).
            result: (..., out), of the base layer; its dtype is that of the products.
        """
        down, up = self.lora_A[name], self.lora_B[name]
        if result.dtype in HALF and down.weight.dtype == torch.float32 and self._has_shadow(name, result.dtype):
            x = x.to(result.dtype)
            if torch.is_grad_enabled():
                shadows = down.shadow, up.shadow
                return _Add.apply(result, x, down.weight, up.weight, shadows, self.scaling[name])  # type: ignore[no-any-return, no-untyped-call]
            return _rows(result).addmm_(_rows(x) @ down.shadow[0].t(), up.shadow[0]).view(result.shape)
        change = up(down(x.to(down.weight.dtype))) * self.scaling[name]
        return (result + change).to(result.dtype) if torch.is_grad_enabled() else result.add_(change)

    def refresh(self, name: str) -> None:
        """Bring the shadow of ``name``, if there is one, up to date, which a traced pass does not do itself."""
        if name in self.lora_A and hasattr(self.lora_A[name], "shadow"):
            self._has_shadow(name, self.lora_A[name].shadow.dtype)

    def _has_shadow(self, name: str, dtype: torch.dtype) -> bool:
        """Whether there is one in ``dtype``; where Python runs it is made, and brought up to date."""
        down, up = self.lora_A[name], self.lora_B[name]
        if torch.compiler.is_compiling():
            # not a look at what changes with the weights: the pass would be traced again for each change
            return hasattr(down, "shadow") and down.shadow.dtype == dtype
        state = down.weight._version, up.weight._version, down.weight.device, dtype
        if (found := getattr(down, "shadowed", None)) != state:
            with torch.inference_mode(False), torch.no_grad():
                for part, weight in ((down, down.weight), (up, up.weight.t() * self.scaling[name])):
                    if found is None or found[2:] != state[2:]:
                        made = torch.empty(2, *weight.shape, dtype=dtype, device=weight.device)
                        part.register_buffer("shadow", made, persistent=False)
                    _split(weight, part.shadow)
            down.shadowed = state
        return True


class _Add(torch.autograd.Function):
    """``result`` + scaling * x A^T B^T; keeps ``x`` as it is, and nothing else that is as long as it."""

    @staticmethod
    def forward(
        ctx: Any, result: Tensor, x: Tensor, down: Tensor, up: Tensor, shadows: tuple[Tensor, Tensor], scaling: float
    ) -> Tensor:
        """Shapes: (..., out), (..., in), (r, in), (out, r), shadows (2, r, in) and (2, r, out)."""
        ctx.save_for_backward(x, down, up)  # the weights only so that a write to them before backward is an error
        ctx.shadows, ctx.scaling = shadows, scaling
        return torch.addmm(_rows(result), _rows(x) @ shadows[0][0].t(), shadows[1][0]).view(result.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the weights to 16 bits and more: what is as thin as the rank is split like the weights are."""
        x, down, _ = ctx.saved_tensors
        down_shadow, up_shadow = ctx.shadows
        rows, grads, rank = _rows(x), _rows(grad), down.shape[0]
        low = _thin(rows, down_shadow)
        grad_up = _product(grads.t(), low).view(-1, 4, rank).sum(1).mul_(ctx.scaling)
        low = _thin(grads, up_shadow)
        grad_down = _product(low.t(), rows).view(4, rank, -1).sum(0)
        grad_x = (low[:, :rank] @ down_shadow[0]).view(x.shape) if ctx.needs_input_grad[1] else None
        return grad, grad_x, grad_down, grad_up, None, None


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _thin(rows: Tensor, shadow: Tensor) -> Tensor:
    """(T, n) rows times the (2, r, n) halves of a weight -> (T, 4r): high parts of both products, then low parts."""
    product = _product(rows, shadow.flatten(0, 1).t())
    parts = rows.new_empty(len(rows), 2, product.shape[1])
    _split(product, parts.transpose(0, 1))
    return parts.flatten(1)


def _split(value: Tensor, parts: Tensor) -> None:
    """Write float32 ``value`` into ``parts`` (2, *shape), 16-bit: rounded, and what rounding took away."""
    parts[0].copy_(value)
    torch.sub(value, parts[0], out=parts[1])


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Float32 product of 16-bit matrices; only CUDA has a kernel for it (and meta tensors, on which it is counted)."""
    if (left.is_cuda or left.is_meta) and torch.version.hip is None and hasattr(torch.ops.aten.mm, "dtype"):
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()
