"""Dtypes that a kernel of the CPU takes and the GPU's does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

_PRODUCTS = {
    aten.mm,
    aten.bmm,
    aten.addmm,
    aten.baddbmm,
    aten.mv,
    aten.addmv,
    aten.dot,
    aten.convolution,
    aten.convolution_backward,
}
_NORMS = {aten.native_layer_norm, aten.native_group_norm, aten._fused_rms_norm}
_RESIZES = {
    aten.upsample_bilinear2d,
    aten.upsample_bicubic2d,
    aten._upsample_bilinear2d_aa,
    aten._upsample_bicubic2d_aa,
}


def refusal(packet: Any, given: Sequence[Tensor]) -> str | None:
    """Why the GPU's kernel of ``packet`` would raise; None if it would not."""
    dtypes = [tensor.dtype for tensor in given]
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    if packet in _PRODUCTS or packet in _NORMS:
        if len(set(dtypes)) > 1:
            return f"{packet.__name__} of {names}"
        if not dtypes[0].is_floating_point and not dtypes[0].is_complex:
            return f"{packet.__name__} of {names}: no whole numbers"
    if packet in _RESIZES and not dtypes[0].is_floating_point:
        return f"{packet.__name__} of {names}: no whole numbers"
    return None
