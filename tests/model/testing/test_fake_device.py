"""The device that is not there: what a GPU would refuse it refuses, and what it computes is what the CPU computes."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import nn

from asg_core import Trainer
from asg_core.config.schema import RunConfig
from asg_core.errors import ConfigError
from asg_core.testing.fake_device import fake_device, in_subprocess, obstacle
from devkit.apart import passes_apart

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=str(obstacle()))


def test_what_a_gpu_refuses_is_refused() -> None:
    def test() -> None:
        with fake_device() as device:
            far, near, order = torch.ones(3, device=device), torch.ones(3), torch.tensor([2, 0], device=device)
            stream = torch.Generator().manual_seed(0)
            refused: list[Callable[[], object]] = [
                lambda: far + near,
                lambda: near.add_(far),
                lambda: torch.cat([far, near]),
                lambda: nn.Linear(3, 2)(far),
                lambda: near[order],
                lambda: near.index_select(0, order),
                lambda: far.index_put_((order,), near[:2]),
                lambda: far.index_fill_(0, torch.tensor([0]), 1.0),
                lambda: torch.randn(2, device=device, generator=stream),
                lambda: far.uniform_(generator=stream),
                lambda: torch.where(near > 0, far, far),
                far.numpy,
                lambda: setattr(nn.Parameter(far), "data", near),
            ]
            for call in refused:
                with pytest.raises((RuntimeError, TypeError)):
                    call()

    passes_apart(test)


def test_what_a_gpu_allows_is_allowed() -> None:
    def test() -> None:
        with fake_device() as device:
            far, order = torch.arange(3.0, device=device), torch.tensor([2, 0])
            assert (far * 2 + torch.tensor(1.0)).tolist() == [1.0, 3.0, 5.0]
            assert far[order].tolist() == far[[2, 0]].tolist() == [2.0, 0.0]
            assert far[order].device == torch.device(device)
            far[order] = torch.tensor(7.0)
            far[[1]] = 5.0
            assert far.tolist() == [7.0, 5.0, 7.0]
            far.copy_(torch.zeros(3))
            assert far.cpu().numpy().tolist() == [0.0, 0.0, 0.0]
            assert far.to(torch.bfloat16).device == far.new_tensor([1]).device == far.device
            assert torch.randn(2, generator=torch.Generator().manual_seed(0)).to(device).device == far.device
            assert float(far.sum()) == 0.0
            assert far.add_(1.0) is far
            assert far.tolist() == [1.0, 1.0, 1.0]
            assert type(far.cpu()) is torch.Tensor
            with torch.device("meta"):
                assert nn.Linear(2, 2).weight.is_meta
            with torch.device(device):
                assert nn.Linear(2, 2).weight.device == far.device

    passes_apart(test)


def test_gradients_and_values_are_those_of_the_cpu() -> None:
    def test() -> None:
        torch.manual_seed(0)
        near = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2))
        inputs = torch.randn(5, 4)

        def step(model: nn.Module, x: torch.Tensor) -> list[float]:
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
            losses = []
            for _ in range(3):
                optimizer.zero_grad()
                loss = model(x).square().mean()
                loss.backward()
                optimizer.step()
                losses.append(float(loss))
            return losses

        with fake_device() as device:
            moved = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2))
            moved.load_state_dict(near.state_dict())
            moved = moved.to(device)
            assert all(weight.device == torch.device(device) for weight in moved.parameters())
            there = step(moved, inputs.to(device))
        assert there == pytest.approx(step(near, inputs), rel=1e-6)
        assert there[2] < there[0]

    passes_apart(test)


def test_a_device_that_torch_knows_and_nobody_has_is_refused() -> None:
    for name in ("xpu", "cuda:7", "meta"):
        with pytest.raises(ConfigError, match="does not exist here"):
            Trainer(RunConfig(device=name)).run()


def test_a_process_that_dies_is_a_failure_and_not_silence() -> None:
    assert in_subprocess(lambda: "said") == "said"
    assert in_subprocess(lambda: os._exit(1)) == "the process that tried it died"  # type: ignore[arg-type, return-value]
