"""Operations in which host and device meet: values read, copies, indices, shapes that depend on values."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from devkit.pretended_cuda.counts import line
from devkit.pretended_cuda.tensor import PretendedTensor, content_of

if TYPE_CHECKING:
    from devkit.pretended_cuda.card import PretendedCuda

aten = torch.ops.aten

Handler = Callable[["PretendedCuda", Any, tuple[Any, ...], dict[str, Any]], Any]


def _read(card: PretendedCuda, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``item()`` and what is made of it: ``float(x)``, ``if x:``."""
    if not isinstance(args[0], PretendedTensor):
        return op(*args, **kwargs)
    card.sync()
    if args[0].dtype == torch.bool and args[0].known is None:
        return True  # whether all is finite
    return content_of(args[0]).item()


def _to_copy(card: PretendedCuda, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    source: Tensor = args[0]
    target = torch.device(kwargs.get("device") or source.device)
    if source.device.type == target.type or "meta" in (source.device.type, target.type):
        return card.compute(op, args, kwargs)
    there = {key: value for key, value in kwargs.items() if key not in ("device", "non_blocking", "pin_memory")}
    if isinstance(source, PretendedTensor):
        card.sync()
        return op(content_of(source), **there)
    if source.numel():
        card.sent(waits=not kwargs.get("non_blocking"))
    return card.place(op(source.clone(), **there))


def _copy(card: PretendedCuda, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    target, source, *rest = args
    if isinstance(target, PretendedTensor) == isinstance(source, PretendedTensor):
        return card.compute(op, args, kwargs)
    if isinstance(source, PretendedTensor):
        card.sync()
        return target.copy_(content_of(source))
    card.sent(waits=not (rest and rest[0]) and not kwargs.get("non_blocking"))
    return card.compute(op, (target, card.place(source), *rest), kwargs)


def _index(card: PretendedCuda, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Indices of the CPU are sent; of a mask the places are looked up, except where one number is put in."""
    if not isinstance(args[0], PretendedTensor):
        return card.compute(op, args, kwargs)
    fills = len(args) > 2 and args[2].device.type == "cpu" and args[2].numel() == 1
    indices: list[Tensor | None] = []
    for index in args[1]:
        if index is not None and not isinstance(index, PretendedTensor):
            card.sent(waits=True)
            index = card.place(index)
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            indices.append(index)
            continue
        if not fills:
            card.sync()
        if index.known is None:
            raise NotImplementedError(f"{line()}: a mask of {tuple(index.shape)} whose values nobody knows")
        indices += [card.place(places) for places in index.known.bool().nonzero(as_tuple=True)]
    return card.compute(op, (args[0], indices, *args[2:]), kwargs)


def _shaped_by_values(card: PretendedCuda, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in args if isinstance(value, PretendedTensor)]
    if not tensors:
        return card.compute(op, args, kwargs)
    if kwargs.get("output_size") is None:
        card.sync()
    if any(tensor.known is None for tensor in tensors) and kwargs.get("output_size") is None:
        raise NotImplementedError(f"{line()}: the shape of {op} depends on values that nobody knows")
    return card.compute(op, args, kwargs)


def _equal(card: PretendedCuda, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not any(isinstance(value, PretendedTensor) for value in args):
        return op(*args, **kwargs)
    card.sync()
    return bool(op(*map(content_of, args)))


HANDLERS: dict[Any, Handler] = {
    aten._local_scalar_dense.default: _read,
    aten._to_copy.default: _to_copy,
    aten.copy_.default: _copy,
    aten.equal.default: _equal,
    **dict.fromkeys(
        (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default), _index
    ),
    **dict.fromkeys(
        (
            aten.nonzero.default,
            aten.masked_select.default,
            aten.repeat_interleave.Tensor,
            aten._unique2.default,
            aten.unique_dim.default,
            aten.unique_consecutive.default,
        ),
        _shaped_by_values,
    ),
}
