"""A run on a device that is not the CPU, which refuses tensors of the CPU, is the run on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from asg_core import Trainer
from asg_core.backbones.interface import Role
from asg_core.config.schema import RunConfig
from asg_core.testing.fake_device import fake_device, obstacle
from devkit.apart import passes_apart

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=str(obstacle()))


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

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("asg_core.runs.report.render.draw_panels", lambda *_: [])
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
