"""The device: decides for every operation whether it concerns the device, and counts what it does there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from devkit.pretended_cuda.attention import attention
from devkit.pretended_cuda.counts import Counts, line
from devkit.pretended_cuda.guard import guarded
from devkit.pretended_cuda.host import HANDLERS
from devkit.pretended_cuda.memory import Memory
from devkit.pretended_cuda.outcomes import Outcome, Output, outcome_of, size_of
from devkit.pretended_cuda.refusals import refusal
from devkit.pretended_cuda.tensor import PretendedTensor, may_be_known, signature_of
from devkit.pretended_cuda.torch_cuda import torch_cuda

H100_BYTES = 81559 * 2**20

_RANDOM = torch.Tag.nondeterministic_seeded
_Outcomes = dict[tuple[Any, ...], Outcome]
_OUTCOMES: _Outcomes = {}


class PretendedCuda(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside ``with``, there is one CUDA device, and this is what happens on it. One at a time in a process.

    Args:
        total_bytes: its memory; more raises ``torch.OutOfMemoryError``.

    Attributes:
        memory: what is alive now.
        counts: since the innermost :meth:`count`, or since the beginning.
        reads: of numbers that nobody knows.

    Raises:
        RuntimeError: on entering, if there is an ``obstacle()``.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the check costs as much as an operation

    def __init__(self, total_bytes: int = H100_BYTES) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.memory, self.counts, self.reads = Memory(total_bytes), Counts(), 0
        self._around = ExitStack()

    def __enter__(self) -> PretendedCuda:
        """Make the device exist."""
        with ExitStack() as around:
            around.enter_context(guarded())
            around.enter_context(torch_cuda(self))
            around.enter_context(attention(self))
            around.enter_context(torch.autograd.set_multithreading_enabled(False))
            super().__enter__()  # type: ignore[no-untyped-call]
            self._around = around.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        """Let nothing of it remain."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._around.close()

    @contextmanager
    def count(self) -> Iterator[Counts]:
        """Counts of the block; they are part of those around it."""
        outer, outer_peak = self.counts, self.memory.peak
        inner = self.counts = Counts()
        self.memory.peak = self.memory.live
        try:
            yield inner
        finally:
            inner.peak_bytes, inner.live_bytes = self.memory.peak, self.memory.live
            self.memory.peak = max(outer_peak, inner.peak_bytes)
            outer.add(inner)
            self.counts = outer

    # -- what happens -------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every operation of the program."""
        return self.run(op, args, kwargs or {})

    def run(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One operation, on the device if it concerns it."""
        handler = HANDLERS.get(op)
        return self.compute(op, args, kwargs) if handler is None else handler(self, op, args, kwargs)

    def compute(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """:meth:`run` of what host and device do not meet in."""
        given: list[Tensor] = []
        key: list[Any] = [op]
        _describe(args, key, given)
        if kwargs:
            _describe(kwargs, key, given)
            _describe(kwargs.values(), key, given)
        there = any(tensor.__class__ is PretendedTensor for tensor in given)
        device = kwargs.get("device")
        if not there and (device is None or torch.device(device).type != "cuda"):
            return op(*args, **kwargs)
        if device is not None and torch.device(device).type == "cpu":
            return op(*tree_map(_as_meta, args), **kwargs)
        self._refuse_mixtures(op, args, kwargs, given)
        if given and _RANDOM not in op.tags and all(map(_is_known, given)):
            return self._known(op, args, kwargs, given)
        outcome = _OUTCOMES.get(tuple(key))
        if outcome is None:
            outcome = _OUTCOMES[tuple(key)] = outcome_of(op, args, kwargs, given)
        self._record(op, outcome)
        parts = [self._part(output, given) if output.__class__ is Output else output for output in outcome.outputs]
        if not given and _RANDOM not in op.tags:
            _fill(parts, op, args, kwargs)
        return parts[0] if outcome.container is None else outcome.container(parts)

    def place(self, content: Tensor) -> PretendedTensor:
        """A new tensor of the device from one of the CPU, without counting a copy."""
        block = self.memory.allocate(content.untyped_storage().nbytes())
        return PretendedTensor(self, signature_of(content), block, content if may_be_known(content) else None)

    def _known(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], given: Sequence[Tensor]) -> Any:
        """Compute on the CPU what is small."""
        blocks = {_content(t).untyped_storage()._cdata: t for t in given if isinstance(t, PretendedTensor)}
        result = op(*tree_map(_content, args), **{k: _content(v) for k, v in kwargs.items() if k != "device"})
        launches = op._schema.is_mutable
        written = 0

        def wrapped(value: Any) -> Any:
            nonlocal launches, written
            if not isinstance(value, Tensor):
                return value
            owner = blocks.get(value.untyped_storage()._cdata)
            if owner is None:
                launches, written = True, written + value.nbytes
                return self.place(value)
            if owner.known is value:
                return owner
            known = value if may_be_known(value) else None
            return PretendedTensor(self, signature_of(value), owner.block, known)

        parts = tree_map(wrapped, result)
        if launches:
            self.counts.kernels[op._overloadpacket.__name__] += 1
            self.counts.bytes += written + sum(map(size_of, given))
        if (why := refusal(op._overloadpacket, given)) is not None:
            self.counts.refused[f"{line()}: {why}"] += 1
        return parts

    def _part(self, output: Output, given: Sequence[Tensor]) -> Tensor:
        if output.source is None:
            return PretendedTensor(self, output.signature, self.memory.allocate(output.size))
        owner = given[output.source]
        if output.same or not isinstance(owner, PretendedTensor):
            return owner
        return PretendedTensor(self, output.signature, owner.block)

    # -- what is counted ----------------------------------------------------------------------------------------------

    def _record(self, op: Any, outcome: Outcome) -> None:
        counts = self.counts
        if outcome.launches:
            counts.kernels[op._overloadpacket.__name__] += 1
            counts.bytes += outcome.bytes
        if outcome.flops:
            counts.flops[outcome.dtype] += outcome.flops
        if outcome.refused is not None:
            counts.refused[f"{line()}: {outcome.refused}"] += 1

    def _refuse_mixtures(self, op: Any, args: Any, kwargs: dict[str, Any], given: Sequence[Tensor]) -> None:
        strangers = [tuple(t.shape) for t in given if t.__class__ is not PretendedTensor and t.ndim]
        if strangers:
            self.counts.mixtures[f"{line()}: {op} is given tensors of the CPU of the shapes {strangers}"] += 1
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Generator) and value.device.type != "cuda":
                self.counts.mixtures[f"{line()}: {op} draws with a generator of the {value.device}"] += 1

    def sync(self) -> None:
        """The host waits for the device."""
        where = line()
        self.counts.syncs[where] += 1
        if torch._C._current_graph_task_id() != -1:
            self.counts.backward_syncs[where] += 1

    def sent(self, *, waits: bool) -> None:
        """A copy from the host."""
        where = line()
        self.counts.copies[where] += 1
        if waits:
            self.counts.blocking[where] += 1


def _describe(values: Any, key: list[Any], given: list[Tensor]) -> None:
    """Append to ``key`` what the outcome depends on, and to ``given`` the tensors."""
    for value in values:
        kind = value.__class__
        if kind is PretendedTensor:
            key.append(value.signature)
            given.append(value)
        elif isinstance(value, Tensor):
            key.append(signature_of(value))
            given.append(value)
        elif kind is list or kind is tuple:
            key.append("(")
            _describe(value, key, given)
            key.append(")")
        else:
            key.append(kind)
            if kind is not torch.Generator:
                key.append(value)


def _is_known(tensor: Tensor) -> bool:
    return tensor.known is not None if isinstance(tensor, PretendedTensor) else may_be_known(tensor)


def _content(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_content, value))
    return value.known if isinstance(value, PretendedTensor) else value


def _as_meta(value: Any) -> Any:
    return (
        torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        if isinstance(value, PretendedTensor)
        else value
    )


def _fill(parts: Sequence[Any], op: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Small tensors made of numbers have them; what is only allocated is zero."""
    if len(parts) == 1 and isinstance(parts[0], PretendedTensor) and may_be_known(parts[0]):
        known = op(*args, **{**kwargs, "device": torch.device("cpu"), "pin_memory": False})
        parts[0].known = known.zero_() if "empty" in op._overloadpacket.__name__ else known
