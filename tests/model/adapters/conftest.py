"""Numbers to feed to layers, and how far off what comes out is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from peft.tuners.lora import Linear
from torch import Tensor

from asg_core.models.adapted_linear import AdaptedLinear


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(found: Tensor, true: Tensor) -> float:
    return float((found.double() - true).norm() / true.norm())


@contextmanager
def by_peft(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr(AdaptedLinear, "forward", Linear.forward)
        yield
