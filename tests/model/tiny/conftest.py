"""The shipped tiny model, loaded once for the tests that only read it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from asg_core.backbones.manifest import LoadRequest
from asg_core.tiny.backbone import TinyBackbone, TinyFlowBackbone, load, load_flow


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny() -> TinyBackbone:
    return load(LoadRequest())


@pytest.fixture(scope="session")
def tiny_flow() -> TinyFlowBackbone:
    return load_flow(LoadRequest())
