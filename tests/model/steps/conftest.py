"""Steps that several tests look at are taken once."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from asg_core import RunConfig
from asg_core.backbones.interface import Backbone
from asg_core.data.image_pool import PoolImage
from asg_core.method.context import StepContext
from asg_core.method.generation import generation_step
from asg_core.method.records import GenerationItem


@pytest.fixture(scope="session")
def _taken() -> dict[str, Any]:
    return {}


@pytest.fixture
def recorded(_taken: dict[str, Any]) -> Callable[[str, Callable[[], Any]], Any]:
    """``recorded(name, take)``: what ``take()`` gave when it was first asked for by this name, as a copy to change.

    ``take`` must give the same in every test: the step of a backbone as newly loaded, on the ``images`` and ``config``
    of all tests.
    """

    def get(name: str, take: Callable[[], Any]) -> Any:
        if name not in _taken:
            _taken[name] = take()
        return deepcopy(_taken[name])

    return get


Drawn = Callable[[Backbone], list[GenerationItem]]


@pytest.fixture
def drawn(recorded: Callable[..., list[GenerationItem]], images: list[PoolImage], config: RunConfig) -> Drawn:
    """The generation step of a backbone as newly loaded."""
    return lambda backbone: recorded(
        type(backbone).__name__, lambda: generation_step(backbone, images, StepContext(config, 4))
    )


@pytest.fixture
def items(tiny: Backbone, drawn: Drawn) -> list[GenerationItem]:
    found = drawn(tiny)
    assert sum(bool(item.candidates) for item in found) >= 3
    return found
