"""The pretended device for the tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from accelerate.state import AcceleratorState

from devkit.pretended_cuda import PretendedCuda, obstacle


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _no_device_chosen() -> Iterator[None]:
    """accelerate keeps the first device of a process: that of another module's tests must not be that of these."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def pretended() -> Callable[[], PretendedCuda]:
    """Makes devices. Skipped where none can be made, except in continuous integration."""
    why = obstacle()
    if why is not None:
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    return PretendedCuda


@pytest.fixture
def card(pretended: Callable[[], PretendedCuda]) -> Iterator[PretendedCuda]:
    """A device that exists during the test."""
    with pretended() as device:
        yield device
