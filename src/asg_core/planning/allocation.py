"""Counting bytes on modules that hold no memory (the meta device), for plugins' plan targets.

Every tensor that an operation makes is followed until it goes. Attention is one kernel that keeps no scores, as on a
GPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from asg_core.planning.activations import Activations


def counted_bytes(run: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """Most bytes alive at once of what a call without gradients makes, its result included."""
    with torch.no_grad(), torch.device("meta"), _Alive() as alive, _FusedAttention():
        run(*args, **kwargs)
    return int(alive.peak)


def counted_activations(run: Callable[[Tensor], Tensor], x: Tensor, layers: int = 1) -> Activations:
    """Of ``layers`` equal layers in a row; ``run`` is one of them, and gradients are wanted with respect to ``x``.

    Where linear layers have adapters, call it inside :func:`adapted`.
    """
    x = x.detach().requires_grad_()
    with torch.device("meta"), _Alive() as alive, _FusedAttention():
        result = run(x)
        saved = alive.live - result.nbytes  # the next layer's input
        gradient = torch.empty_like(result)
        alive.peak = 0
        result.backward(gradient)  # type: ignore[no-untyped-call]
    beside = max(0, alive.peak - result.nbytes - saved)
    return Activations(
        saved=layers * (saved + x.nbytes),
        inputs=layers * x.nbytes,
        layer=saved,
        backward=beside,
        forward=counted_bytes(run, x),
    )


@contextmanager
def adapted(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, linear ``layers`` keep their input and add a gradient to it, as those with adapters do."""

    def add(layer: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> Any:
        return _Adapter.apply(result, *args)  # type: ignore[no-untyped-call]

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_hook(add).remove)
        yield


class _Adapter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, result: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return result.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (x,) = ctx.saved_tensors
        return gradient, torch.empty_like(x)


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of storages made inside that are alive now, and the most there were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = op(*args, **(kwargs or {}))
        for storage in (t.untyped_storage() for t in tree_leaves(result) if isinstance(t, Tensor)):
            key, size = storage._cdata, storage.nbytes()
            if key not in given and key not in self._known:
                self._known.add(key)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._gone, key, size)
        return result

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class _FusedAttention(TorchFunctionMode):
    """Attention keeps queries, keys, values and its result, which lies as the output projection reads it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _Attend.apply(*args[:3])  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, length, _ = query.shape
        result = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
