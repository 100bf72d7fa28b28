"""What was seen of a device in a stretch of a program."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

_INNER = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


@dataclass
class Counts:
    """Counters by source line ("module:line", the innermost outside torch) or by name.

    Attributes:
        syncs: the host waited for the device: values that it read, shapes that depend on values, synchronisations.
        backward_syncs: those of ``syncs`` in a backward pass.
        blocking: copies from the host to the device that wait for it: all but ``non_blocking=True``.
        copies: all copies from the host to the device.
        mixtures: operations that were given tensors or generators of both devices, which a GPU refuses.
        refused: dtypes that the CPU's kernel takes and the GPU's does not.
        attention: calls of ``scaled_dot_product_attention`` by kernel, dtypes and shapes.
        kernels: launches by operation; views and empty tensors are none.
        flops: by dtype; matrix products, convolutions and attention.
        bytes: read and written by all kernels, each counted alone.
        peak_bytes: the most that was alive at once; what was alive before is part of it.
        live_bytes: alive at the end.
    """

    syncs: Counter[str] = field(default_factory=Counter)
    backward_syncs: Counter[str] = field(default_factory=Counter)
    blocking: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    mixtures: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    attention: Counter[str] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)
    flops: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    peak_bytes: int = 0
    live_bytes: int = 0

    @property
    def launches(self) -> int:
        """Kernels in all."""
        return self.kernels.total()

    def add(self, inner: Counts) -> None:
        """Count what a stretch inside this one saw."""
        for one in fields(self):
            if isinstance(getattr(self, one.name), Counter):
                getattr(self, one.name).update(getattr(inner, one.name))
        self.bytes += inner.bytes
        self.peak_bytes = max(self.peak_bytes, inner.peak_bytes)

    def subtract(self, less: Counts) -> None:
        """Leave out what a similar stretch saw too; peaks stay."""
        for one in fields(self):
            if isinstance(getattr(self, one.name), Counter):
                getattr(self, one.name).subtract(getattr(less, one.name))
        self.bytes -= less.bytes

    def as_json(self) -> dict[str, Any]:
        """Plain data, counters largest first."""
        return {
            one.name: dict(value.most_common()) if isinstance(value := getattr(self, one.name), Counter) else value
            for one in fields(self)
        }


def line() -> str:
    """Module and line of the innermost frame outside torch and this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INNER):
        frame = frame.f_back
    return f"{frame.f_globals.get('__name__', '?')}:{frame.f_lineno}"
