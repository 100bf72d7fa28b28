"""The pretended device for the tests of this folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Test modules share code, and pytest's importlib mode puts no test folder on the path.
sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[2] / "benchmarks")]
from pretended_cuda import PretendedCuda, obstacle


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def card() -> Iterator[PretendedCuda]:
    """A device that exists during the test. Skipped where none can be made, except in continuous integration."""
    why = obstacle()
    if why is not None:
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    with PretendedCuda() as device:
        yield device
