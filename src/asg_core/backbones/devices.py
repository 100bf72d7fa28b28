"""From "auto" to a device and a dtype that exist on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

import torch
from torch import Tensor

from asg_core.errors import ConfigError

Dtype = Literal["float32", "bfloat16", "float16"]

_STAGING = frozenset({"cuda"})
"""Types of devices whose driver takes host memory over before it returns, so that nobody need wait for the copy."""


def resolve_device(name: str) -> str:
    """A torch device string that works here; "auto" is cuda, then mps, then cpu. ConfigError for what is no device, or
    is not in this machine or this build of torch."""
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    with suppress(RuntimeError):  # no name of a device, or one with nothing behind it in this build
        device = torch.device(name)
        if device.type == "cpu" or (device.index or 0) < torch.get_device_module(device.type).device_count():
            return name
    raise ConfigError(
        f"device={name} does not exist here",
        f"torch {torch.__version__} does not know it, or sees fewer devices of its kind",
        "use auto, cpu, cuda, cuda:1 or mps; asg doctor shows what is available",
    )


def avoid_cudnn_attention() -> None:
    """Keep ``scaled_dot_product_attention`` of this process off cuDNN, which torch prefers on H100 and H200.

    Its bfloat16 gradients are NaN for some lengths once there is a mask (pytorch issue 196678, up to torch 2.13), and
    it plans anew for every length, of which decoding has one a token.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def sum_in_float32() -> None:
    """Make CUDA add up the partial sums of 16-bit matrix products of this process in float32, which torch leaves open.

    It splits the sums of long and thin products, as those of adapters are, and would round each part.
    """
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def tensor_on(device: torch.device, values: Sequence[object], dtype: torch.dtype | None = None) -> Tensor:
    """``torch.tensor(values, dtype=dtype)`` on ``device``, without waiting for what the device still has to do."""
    return moved_to(device, torch.tensor(values, dtype=dtype))


def moved_to(device: torch.device, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A CPU tensor on ``device``, as ``dtype`` if given, without waiting for what the device still has to do."""
    return tensor.to(device, dtype, non_blocking=device.type in _STAGING)


def resolve_dtype(dtype: Literal["auto"] | Dtype, device: str) -> Dtype:
    """The dtype of the frozen base: "auto" is bfloat16 on cuda and float32 elsewhere."""
    if dtype == "auto":
        return "bfloat16" if device.startswith("cuda") else "float32"
    return dtype
