"""What an operation gives on the device: shapes by torch's own rules for tensors without content, FLOPs and bytes.

torch's rules are Python and take up to a millisecond, so an outcome is worked out once per operation and signature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from devkit.pretended_cuda.refusals import refusal
from devkit.pretended_cuda.tensor import PretendedTensor, signature_of

aten = torch.ops.aten

_PICKS = {aten.embedding, aten.index, aten.index_select, aten.gather}
"""Read no more of their first tensor than they return."""
_OVERWRITES = {aten.copy_, aten.fill_, aten.zero_, aten.normal_, aten.uniform_, aten.bernoulli_}
"""Write their first tensor and do not read it."""


@dataclass(frozen=True)
class Output:
    """One tensor of the result.

    Attributes:
        signature: see :class:`~devkit.pretended_cuda.tensor.PretendedTensor`.
        size: bytes of its storage if that is new.
        source: place among the tensors given of the one whose storage it shares; None: of none.
        same: it is that tensor, changed in place.
    """

    signature: tuple[Any, ...]
    size: int
    source: int | None
    same: bool


@dataclass(frozen=True)
class Outcome:
    """What one call does.

    Attributes:
        outputs: tensors, or what else is returned, in order.
        container: of the outputs; None: there is one.
        launches: whether a kernel runs.
        flops, dtype, bytes: of the kernel.
        refused: why a GPU would not take these dtypes; None if it would.
    """

    outputs: tuple[Any, ...]
    container: type | None
    launches: bool
    flops: int
    dtype: str
    bytes: int
    refused: str | None


def outcome_of(op: Any, args: Sequence[Any], kwargs: dict[str, Any], given: Sequence[Tensor]) -> Outcome:
    """Run ``op`` on tensors of the meta device that look like those of ``args``; ``given`` are these, in order."""
    stand_ins = [_on_meta(tensor) for tensor in given]
    following = iter(stand_ins)

    def place(value: Any) -> Any:
        if isinstance(value, Tensor):
            return next(following)
        if isinstance(value, torch.device):
            return torch.device("meta")
        return None if isinstance(value, torch.Generator) else value

    meta_args, meta_kwargs = tree_map(place, tuple(args)), tree_map(place, dict(kwargs))
    result = op(*meta_args, **meta_kwargs)
    parts = list(result) if isinstance(result, list | tuple) else [result]
    owners = {tensor.untyped_storage()._cdata: place for place, tensor in enumerate(stand_ins)}
    outputs = tuple(_output(part, stand_ins, owners) if isinstance(part, Tensor) else part for part in parts)
    packet, mutates = op._overloadpacket, op._schema.is_mutable
    made = [output for output in outputs if isinstance(output, Output)]
    launches = "empty" not in packet.__name__ and (mutates or any(output.source is None for output in made))
    return Outcome(
        outputs=outputs,
        container=type(result) if isinstance(result, list | tuple) else None,
        launches=launches,
        flops=_flops(op, meta_args, meta_kwargs, result),
        dtype=str(given[0].dtype).removeprefix("torch.") if given else "",
        bytes=_bytes(packet, given, made) if launches else 0,
        refused=refusal(packet, given),
    )


def _on_meta(tensor: Tensor) -> Tensor:
    shape, strides, offset, dtype = signature_of(tensor)
    extent = offset + 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    room = torch.empty(extent if tensor.numel() else offset, dtype=dtype, device="meta")
    return room.as_strided(shape, strides, offset)


def _output(tensor: Tensor, stand_ins: Sequence[Tensor], owners: dict[int, int]) -> Output:
    source = owners.get(tensor.untyped_storage()._cdata)
    same = source is not None and tensor is stand_ins[source]
    return Output(signature_of(tensor), tensor.untyped_storage().nbytes(), source, same)


def _flops(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """By torch's counter, but half of plainly causal attention: its kernels pass over what lies above the diagonal."""
    counter: Callable[..., Any] | None = flop_registry.get(op._overloadpacket)
    if counter is None:
        return 0
    flops = int(counter(*args, **kwargs, out_val=result))
    given = {argument.name: value for argument, value in zip(op._schema.arguments, args, strict=False)} | kwargs
    return flops // 2 if given.get("is_causal") else flops


def _bytes(packet: Any, given: Sequence[Tensor], made: Sequence[Output]) -> int:
    sizes = [size_of(tensor) for tensor in given]
    written = sum(sizes[output.source] if output.source is not None else output.size for output in made)
    if packet in _PICKS:
        sizes[0] = min(sizes[0], written)
    if packet in _OVERWRITES:
        sizes[0] = 0
    return sum(sizes) + written


def size_of(tensor: Tensor) -> int:
    """Bytes of the elements of ``tensor``, each once: expanding adds none."""
    size = tensor.numel() * tensor.element_size()
    return min(size, tensor.block.size) if isinstance(tensor, PretendedTensor) else size
