"""Which kernel ``scaled_dot_product_attention`` takes on a GPU, by torch's own rules; and that kernel's operations.

The rules are those of ``aten/src/ATen/native/transformers/cuda/sdp_utils.cpp`` for dense tensors on an H100, as far as
they can be told from tensors. Grouped queries: only the flash kernel takes them (torch 2.13).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

if TYPE_CHECKING:
    from devkit.pretended_cuda.card import PretendedCuda

aten = torch.ops.aten
_HALF = (torch.bfloat16, torch.float16)


def kernel_of(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, grouped: bool) -> str:
    """ "flash", "efficient", "cudnn" or "math"; q (B, H, L, d), k and v (B, H or fewer, S, d)."""
    cuda: Any = torch.backends.cuda
    dense = q.ndim == k.ndim == v.ndim == 4 and q.shape[0] == k.shape[0] == v.shape[0]
    if not (dense and q.dtype == k.dtype == v.dtype and q.shape[2] and k.shape[2]):
        return "math"
    if any(tensor.stride(-1) != 1 for tensor in (q, k, v, *([] if mask is None else [mask]))):
        return "math"
    heads, width, half = k.shape[1], q.shape[-1], q.dtype in _HALF
    same = heads == v.shape[1] == q.shape[1]
    shared = same or (grouped and heads == v.shape[1] and q.shape[1] % heads == 0)
    one_width = width == k.shape[-1] == v.shape[-1]
    if cuda.cudnn_sdp_enabled() and half and shared and width <= 128 and width % 8 == 0 and k.shape[2] > 1:
        return "cudnn"
    square = not causal or q.shape[2] == k.shape[2]
    flash = half and shared and mask is None and one_width and width <= 256 and square
    if flash and cuda.flash_sdp_enabled():
        return "flash"
    aligned = width == k.shape[-1] and not any(w % (8 if half else 4) for w in (width, v.shape[-1]))
    if aligned and same and (half or q.dtype == torch.float32) and cuda.mem_efficient_sdp_enabled():
        return "efficient"
    return "math"


@contextmanager
def attention(card: PretendedCuda) -> Iterator[None]:
    """Inside, every call on tensors of the device goes to the kernel of :func:`kernel_of`, and is counted."""

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        kernel = kernel_of(query, key, value, attn_mask, is_causal, enable_gqa)
        card.counts.attention[_said(kernel, query, key, attn_mask)] += 1
        if attn_mask is not None and attn_mask.dtype not in (torch.bool, query.dtype):
            card.counts.refused[f"a mask of {attn_mask.dtype} for queries of {query.dtype}"] += 1
        scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        mask = _as_bias(attn_mask, query.dtype)
        out: Tensor
        if kernel == "math":
            out = aten._scaled_dot_product_attention_math(
                query, key, value, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )[0]
            return out
        if kernel == "flash":
            width = query.shape[-1]
            padded = [pad(tensor, (0, -width % 8)) if width % 8 else tensor for tensor in (query, key, value)]
            out = aten._scaled_dot_product_flash_attention(*padded, dropout_p, is_causal, False, scale=scale)[0]
            return out[..., :width]
        learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
        if mask is not None:
            mask = _aligned(mask).expand(*query.shape[:3], key.shape[2])
        run = getattr(aten, f"_scaled_dot_product_{kernel}_attention")
        return run(query, key, value, mask, learns, dropout_p, is_causal, scale=scale)[0]  # type: ignore[no-any-return]

    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for dispatch_key in ("CUDA", "AutogradCUDA"):
        library.impl("scaled_dot_product_attention", attend, dispatch_key)
    try:
        yield
    finally:
        library._destroy()


def _said(kernel: str, query: Tensor, key: Tensor, mask: Tensor | None) -> str:
    dtype = str(query.dtype).removeprefix("torch.")
    looks = "no mask" if mask is None else f"{str(mask.dtype).removeprefix('torch.')} mask {tuple(mask.shape)}"
    return f"{kernel}: {dtype} {tuple(query.shape)} at {tuple(key.shape)}, {looks}"


def _as_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask of truth values is made one of numbers first, as large as it is and in the dtype of the queries."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask.logical_not(), -torch.inf)


def _aligned(mask: Tensor) -> Tensor:
    """Rows that begin at multiples of 8 elements: if they do not, the mask is copied into one that is wider."""
    if all(stride % 8 == 0 for stride in mask.stride()[:-1]) and mask.stride(-1) == 1:
        return mask
    length = mask.shape[-1]
    return pad(mask, (0, 8 - length % 8))[..., :length]
