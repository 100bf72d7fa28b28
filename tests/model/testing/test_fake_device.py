"""The device that is not there: what a GPU would refuse it refuses, and what it computes is what the CPU computes."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from asg_core import Trainer
from asg_core.backbones.interface import Role
from asg_core.config.schema import RunConfig
from asg_core.errors import ConfigError
from asg_core.testing.fake_device import fake_device, in_subprocess, obstacle

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=str(obstacle()))


def passes_apart(test: Callable[[], None]) -> None:
    """Fails as ``test`` fails, in a process where the far device may become known."""

    def outcome() -> str:
        try:
            test()
        except BaseException:  # noqa: BLE001 - pytest's own failures are no Exceptions
            return traceback.format_exc()
        return ""

    problem = in_subprocess(outcome)
    assert not problem, problem


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


def test_a_run_on_another_device_is_the_run_on_the_cpu(scenes: Path, config: RunConfig, tmp_path: Path) -> None:
    """Both kinds of steps with their updates, checkpoints, and a run resumed from one: no tensor is left behind."""

    def test() -> None:
        def run(out: str, device: str) -> Trainer:
            settings = {"backbone": "tiny_flow", "images": scenes, "device": device, "out": tmp_path / out, "steps": 1}
            small = {"images_per_step": 1, "generate": {"prompts_per_step": 1, "candidates": 2}}
            often = {"schedule": {"ratio": [1, 1]}, "checkpoint_every_steps": 1}
            Trainer(RunConfig.model_validate({**config.model_dump(), **settings, **small, **often})).run()
            resumed = Trainer.resume(tmp_path / out, steps=2)
            resumed.run()
            return resumed

        def rows(trainer: Trainer) -> list[dict[str, float]]:
            lines = (trainer.folder.path / "metrics.jsonl").read_text().splitlines()
            return [
                {k: v for k, v in json.loads(line).items() if type(v) in (int, float) and k != "seconds"}
                for line in lines
            ]

        with fake_device() as device:
            there = run("there", device)
            assert there.backbone.device == torch.device(device)
        here = run("here", "cpu")
        assert [len(row) >= 8 for row in rows(there)] == [True] * 2
        for got, wanted in zip(rows(there), rows(here), strict=True):
            assert got == pytest.approx(wanted, rel=1e-4, abs=1e-6)
        for role in Role:
            pairs = zip(there.backbone.trainable(role).values(), here.backbone.trainable(role).values(), strict=True)
            apart_by = max(float((a.cpu() - b).abs().max()) for a, b in pairs)
            assert apart_by < 0.05 * 1e-3, role  # a twentieth of an optimizer step, which is the learning rate

    passes_apart(test)


def test_a_device_that_torch_knows_and_nobody_has_is_refused() -> None:
    for name in ("xpu", "cuda:7", "meta"):
        with pytest.raises(ConfigError, match="does not exist here"):
            Trainer(RunConfig(device=name)).run()


def test_a_process_that_dies_is_a_failure_and_not_silence() -> None:
    assert in_subprocess(lambda: "said") == "said"
    assert in_subprocess(lambda: os._exit(1)) == "the process that tried it died"  # type: ignore[arg-type, return-value]
