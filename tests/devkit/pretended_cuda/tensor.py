"""A tensor of the pretended device: shape, strides, dtype and a block of memory, and its content if it is small."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from asg_core.testing.device_tensor import DeviceTensor
from devkit.pretended_cuda.memory import Block

if TYPE_CHECKING:
    from devkit.pretended_cuda.card import PretendedCuda

DEVICE = torch.device("cuda", 0)
KNOWN = 1 << 16
"""Whole numbers and truth values up to this many elements are computed for real."""
KNOWN_FLOATS = 1 << 11
"""Likewise of other dtypes."""


class PretendedTensor(DeviceTensor):
    """See the module.

    Attributes:
        card: the device.
        block: its storage, shared with its views.
        known: its content on the CPU, or None.
        signature: shape, strides, offset and dtype, all that the shapes of results depend on.
    """

    card: PretendedCuda
    block: Block
    known: Tensor | None
    signature: tuple[Any, ...]
    content = ("block", "known", "signature")

    @staticmethod
    def __new__(
        cls, card: PretendedCuda, signature: tuple[Any, ...], block: Block, known: Tensor | None = None
    ) -> PretendedTensor:
        """Describe a tensor in ``block``."""
        shape, strides, offset, dtype = signature
        tensor: PretendedTensor = Tensor._make_wrapper_subclass(
            cls, shape, strides=strides, storage_offset=offset, dtype=dtype, device=DEVICE
        )
        tensor.card, tensor.block, tensor.known, tensor.signature = card, block, known, signature
        return tensor

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, op: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Where no mode sees the operation."""
        return _owner(args, kwargs or {}).run(op, args, kwargs or {})

    def tolist(self) -> Any:
        """As of any tensor; one copy."""
        return self.cpu().tolist()

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        """The content, or the shape."""
        content = f"{self.dtype} {tuple(self.shape)}" if self.known is None else repr(self.known)
        return f"pretended({content})"


def _owner(args: Any, kwargs: dict[str, Any]) -> PretendedCuda:
    from torch.utils._pytree import tree_leaves

    return next(leaf.card for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, PretendedTensor))


def signature_of(tensor: Tensor) -> tuple[Any, ...]:
    """Shape, strides, offset and dtype."""
    return (tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.dtype)


def may_be_known(tensor: Tensor) -> bool:
    """Whether a tensor is small enough for its content to be computed."""
    whole = not (tensor.is_floating_point() or tensor.is_complex())
    return tensor.numel() <= (KNOWN if whole else KNOWN_FLOATS)


def content_of(tensor: Tensor) -> Tensor:
    """What the host finds in a tensor: its content, or a stand-in: zeros, or small positive numbers that differ.

    Small, so that log-probs replay as sampled; positive, so that norms and losses are not zero; different, also from
    one call to the next, so that candidates have different rewards.
    """
    if not isinstance(tensor, PretendedTensor):
        return tensor
    if tensor.known is not None:
        return tensor.known.clone()
    if not tensor.dtype.is_floating_point:
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    numbers = torch.arange(tensor.card.reads, tensor.card.reads + tensor.numel(), dtype=torch.float32)
    tensor.card.reads += 1
    # 11 divides the width of no model, so rows differ too
    return (1e-3 + 1e-4 * (numbers % 11)).view(tensor.shape).to(tensor.dtype)
