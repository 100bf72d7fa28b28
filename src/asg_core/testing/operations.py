"""Host synchronisations and vocabulary-wide tensors, seen below the Python code that causes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from asg_core.training.profiler import Costs, Phase


@dataclass
class Operations:
    """What was seen so far.

    Attributes:
        syncs: by phase and name, calls that make the host wait where the model is on an accelerator: values read from
            tensors, boolean indices, tensors built from Python numbers on a named device, and on an accelerator
            blocking copies to or from it. An optimizer's reading of its own step counts, which are on the CPU, is not.
        rows: largest number of rows of a tensor whose last axis is as wide as the vocabulary.
    """

    syncs: Counter[tuple[Phase, str]] = field(default_factory=Counter)
    rows: int = 0

    def syncs_in(self, *phases: Phase) -> int:
        """Number of synchronisations in some phases."""
        return sum(n for (phase, _), n in self.syncs.items() if phase in phases)


@contextmanager
def watched(costs: Costs, vocabulary: int | None = None) -> Iterator[Operations]:
    """Watch every operation inside the block; slow, for tests.

    Args:
        costs: from :func:`asg_core.training.profiler.counted`, tells the phase.
        vocabulary: a width that no other axis of the model has; None: rows are not counted.
    """
    operations = Operations()
    optimising = _Flag()
    handles = [
        register_optimizer_step_pre_hook(lambda *_: optimising.set(True)),
        register_optimizer_step_post_hook(lambda *_: optimising.set(False)),
    ]

    def sync(name: str) -> None:
        if not optimising.on:
            operations.syncs[costs.phase, name] += 1

    try:
        with _Functions(sync), _Dispatched(sync, operations, vocabulary):
            yield operations
    finally:
        for handle in handles:
            handle.remove()


class _Flag:
    on = False

    def set(self, on: bool) -> None:
        self.on = on


class _Functions(TorchFunctionMode):
    """Calls that a dispatcher does not see, or not on a CPU."""

    def __init__(self, sync: Callable[[str], None]) -> None:
        super().__init__()
        self._sync = sync

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if _waits(name, kwargs):
            self._sync(name)
        return func(*args, **kwargs)


def _waits(name: str, kwargs: dict[str, Any]) -> bool:
    match name:
        case "tolist" | "numpy" | "__array__" | "cpu" | "new_tensor":
            return True
        case "tensor" | "as_tensor":
            return kwargs.get("device") is not None
        case _:
            return False


class _Dispatched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every operation of the dispatcher, those of the backward pass included."""

    def __init__(self, sync: Callable[[str], None], operations: Operations, vocabulary: int | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sync, self._operations, self._vocabulary = sync, operations, vocabulary

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim") or (
            name in ("index", "index_put", "index_put_", "_index_put_impl_") and _has_mask(args[1])
        ):
            self._sync(name)
        if name == "_to_copy" and _moves(args[0], **(kwargs or {})):
            self._sync(name)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.ndim and tensor.shape[-1] == self._vocabulary:
                self._operations.rows = max(self._operations.rows, tensor.numel() // tensor.shape[-1])
        return result


def _moves(tensor: Tensor, device: torch.device | None = None, non_blocking: bool = False, **_: Any) -> bool:
    return device is not None and device.type != tensor.device.type and not non_blocking


def _has_mask(indices: Any) -> bool:
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)
