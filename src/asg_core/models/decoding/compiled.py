"""Decode passes of fixed shapes, compiled: graphs to replay on CUDA, fused kernels elsewhere. Off by default.

An eager pass over a growing cache has another shape each time. Here rows and positions are rounded up, the cache has
slots for the whole completion from the start, new keys and values go where a cursor on the device points, and a mask
hides the rest. So all passes of a call, and of later calls of about its size, run one program. Another active adapter
is another program: torch.compile looks at what the layers do, at every pass. Weights are read where they are.
"""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer
from transformers.integrations import sdpa_attention

from asg_core.backbones.devices import tensor_on
from asg_core.errors import ConfigError
from asg_core.models.decoding.causal_model import CausalModel
from asg_core.models.decoding.prefix_tree import Rows
from asg_core.models.limits import slots_size

_PROGRAMS = 256
"""Most programs of a process, one for each shape and active adapter; torch's own limit of 8 is soon reached."""

Pass = Callable[[Tensor], Tensor]
"""(B,) long token ids -> (B, D) hidden states."""

Compiler = Callable[[Pass, torch.device], Pass]


def inductor(run: Pass, device: torch.device) -> Pass:
    """``torch.compile``, whole or not at all; on CUDA it records graphs."""
    mode = "reduce-overhead" if device.type == "cuda" else None
    compiled: Pass = torch.compile(run, fullgraph=True, dynamic=False, mode=mode)
    return compiled


@contextmanager
def _query_heads_packed() -> Iterator[None]:
    """Inside, transformers attends as it does eagerly: query heads that share keys and values are taken together.

    While it is traced it would write out keys and values once per query head, in every layer and pass; at 32 rows and
    4 query heads a group that made a pass take twice as long (benchmarks/compiled.py). Results are the same.
    """
    known = getattr(sdpa_attention, "is_torchdynamo_compiling", None)
    if known is None or not hasattr(sdpa_attention, "pack_gqa"):
        yield
        return
    sdpa_attention.is_torchdynamo_compiling = lambda: False
    try:
        yield
    finally:
        sdpa_attention.is_torchdynamo_compiling = known


class SlotLayer(DynamicLayer):  # type: ignore[misc]
    """One cache layer of fixed length, written at a cursor and returned whole.

    Args:
        keys: (B, H, S, d), always finite: a masked value still takes part, times zero.
        values: (B, H, S, d), likewise.
        cursor: (1,) long, where the next position goes.
    """

    def __init__(self, keys: Tensor, values: Tensor, cursor: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.cursor = keys, values, cursor
        self.is_initialized = True

    def update(self, keys: Tensor, values: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """(B, H, 1, d) new states -> (B, H, S, d) all states."""
        self.keys.index_copy_(2, self.cursor, keys)
        self.values.index_copy_(2, self.cursor, values)
        return self.keys, self.values


class StaticSlots:
    """Places for B rows of at most S positions, and the compiled pass over all of them. Spare places compute nonsense.

    Args:
        model: of the passes.
        like: rows whose cache these places are for.
        states: buffers (B, H, S, d), keys and values of each layer in turn.
        compiler: makes the pass.

    Attributes:
        last: (rows seated, D) as in :class:`Rows`.
    """

    last: Tensor

    def __init__(self, model: CausalModel, like: Rows, states: Sequence[Tensor], compiler: Compiler) -> None:
        self._states = states
        batch, _, length, _ = states[0].shape
        self._visible = like.visible.new_zeros(batch, length)
        self._counter = like.counter.new_zeros(batch)
        self._cursor = like.counter.new_zeros(1)
        for buffer in (self._visible, self._counter, self._cursor, *states):
            # graphs use it where it is and need no copy; a guard would keep it alive after its slots are gone
            torch._dynamo.mark_static_address(buffer, guard=False)
        cache = copy.copy(like.cache)
        cache.layers = [SlotLayer(k, v, self._cursor) for k, v in zip(states[::2], states[1::2], strict=True)]
        visible, counter, axes = self._visible, self._counter, like.axes

        def run(ids: Tensor) -> Tensor:
            positions = counter[None, :, None].expand(axes, -1, -1)
            hidden = model.forward(model.embed_tokens(ids[:, None]), visible[:, None, None], positions, cache)
            return hidden[:, -1]

        self._run = compiler(run, states[0].device)

    def fill(self, rows: Rows, parents: Tensor) -> None:
        """Seat row ``parents[i]`` of ``rows`` at place i, and let go of their cache layer by layer."""
        count, length = len(parents), rows.visible.shape[1]
        sources = [states for layer in rows.cache.layers for states in (layer.keys, layer.values)]
        for layer in rows.cache.layers:
            layer.release()
        for buffer in reversed(self._states):
            buffer.zero_()
            buffer[:count, :, :length] = sources.pop().index_select(0, parents)
        self._visible.zero_()
        self._visible[:count, :length] = rows.visible.index_select(0, parents)
        self._counter.zero_()
        self._counter[:count] = rows.counter.index_select(0, parents)
        self._cursor.fill_(length)
        self.last = rows.last.index_select(0, parents)

    def append_token(self, ids: Tensor) -> None:
        """Append one token ``ids[i]``, (rows seated,) long, to each row. Raises ConfigError where torch.compile
        cannot compile the pass."""
        from torch._dynamo import config
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        self._visible.index_fill_(1, self._cursor, True)
        try:
            with config.patch(recompile_limit=_PROGRAMS), _query_heads_packed():
                hidden = self._run(pad(ids, (0, len(self._counter) - len(ids))))
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            raise ConfigError(
                "backbone_options.compile_decode=true cannot be used here: a decode pass did not compile",
                f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}",
                "set backbone_options.compile_decode=false; on a CPU it needs a C++ compiler, on CUDA triton",
            ) from error
        self._counter += 1
        self._cursor += 1
        self.last = hidden[: len(ids)].clone()  # a graph writes its next result over this one


class CompiledDecode:
    """Runs the decode passes of one model; see the module. One call of sampling at a time.

    Keys and values of the largest call so far stay allocated, for the next one.

    Args:
        model: in eval mode; torch.compile must be able to trace its ``embed_tokens`` and ``forward``.
        compiler: how a pass is compiled.
    """

    def __init__(self, model: CausalModel, compiler: Compiler = inductor) -> None:
        self._model, self._compiler = model, compiler
        self._memory: list[Tensor] = []
        self._slots: dict[tuple[int, int], StaticSlots] = {}

    def fill(self, rows: Rows, parents: Sequence[int], new: int) -> StaticSlots:
        """Row i continues row ``parents[i]`` of ``rows`` for at most ``new`` tokens, without gradients.

        Takes the place of ``rows`` and of what was seated before: neither can be continued any more.
        """
        places = slots_size(len(parents), rows.visible.shape[1] + new)
        if places not in self._slots:
            self._slots[places] = self._build(rows, *places)
        slots = self._slots[places]
        slots.fill(rows, tensor_on(rows.counter.device, parents))
        return slots

    def release(self) -> None:
        """Give back the memory of all slots; what the next call needs is made anew."""
        self._slots, self._memory = {}, []
        gc.collect()  # what was compiled lives on in reference cycles, and its buffers with it

    def _build(self, rows: Rows, batch: int, length: int) -> StaticSlots:
        like = [states for layer in rows.cache.layers for states in (layer.keys, layer.values)]
        shapes = [(batch, states.shape[1], length, states.shape[3]) for states in like]
        sizes = [math.prod(shape) for shape in shapes]
        if not self._memory or any(m.numel() < size for m, size in zip(self._memory, sizes, strict=True)):
            self.release()
            self._memory = [states.new_empty(size) for states, size in zip(like, sizes, strict=True)]
        parts = zip(self._memory, sizes, shapes, strict=True)
        buffers = [memory[:size].view(shape) for memory, size, shape in parts]
        return StaticSlots(self._model, rows, buffers, self._compiler)
