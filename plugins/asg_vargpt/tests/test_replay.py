"""Bits of drawings, replayed: rounding passes in either precision, another policy's scores do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from asg_vargpt.backbone import VargptBackbone

from asg_core.backbones.interface import ImageRequest, ImageSampling, Role
from asg_core.config.schema import RunConfig
from asg_core.data.image_pool import PoolImage
from asg_core.errors import TrainingStopped
from asg_core.method.context import StepContext
from asg_core.method.generator_updates import update_generator
from asg_core.method.records import Candidate, GenerationItem
from asg_core.method.replay import NoiseFloor
from asg_core.method.updates import Learner, UpdateReport
from asg_core.training.optimizer import RoleOptimizer


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("unit", ["bit", "position"])
def test_bits_scored_without_the_adapter_that_drew_them_stop_the_run(
    dtype: str, unit: str, load: Callable[..., VargptBackbone], wake: Callable[..., None]
) -> None:
    backbone = load(dtype=dtype, policy_unit=unit)
    for seed, role in enumerate(Role):
        wake(backbone, role, seed, 0.36)
    samples = backbone.generate([ImageRequest("a red kite", seed) for seed in (3, 4)], ImageSampling())
    candidates = [Candidate(sample, signal=a) for sample, a in zip(samples, (1.0, -1.0), strict=True)]
    items = [GenerationItem(PoolImage(Path("none.png"), samples[0].image), candidates=candidates)]
    config = RunConfig.model_validate({"generate": {"update": "policy_gradient"}, "policy": {"inner_steps": 2}})
    weights = backbone.trainable(Role.GENERATOR)
    floor = NoiseFloor()

    def update() -> UpdateReport:
        optimizer = RoleOptimizer(weights, 1e-9, 0.0, 1.0, Accelerator(cpu=True))
        return update_generator(
            backbone, items, Learner(Role.GENERATOR, optimizer, floor=floor), StepContext(config, 1)
        )

    report = update()
    assert report.drift is not None
    assert report.drift.kl < floor.limit(backbone.dtype, 10**6) / 2
    with torch.no_grad():
        kl = float(backbone.generation_loss(samples, [0, 0]).penalty.mean())
        assert 0.05 <= kl < 0.1
        for name, weight in weights.items():
            if name.endswith("lora_B.weight"):
                weight.zero_()
    with pytest.raises(TrainingStopped, match=r"replayed log-probs differ.*generator"):
        update()
