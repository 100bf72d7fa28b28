"""The model of ``ratios.py``, which takes a step and forgets it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image

from asg_core.backbones.interface import Role
from asg_core.config.schema import RunConfig
from asg_core.data.image_pool import PoolImage
from asg_core.method.context import StepContext
from asg_core.method.losses import AdaptiveKl, EmaBaseline
from asg_core.method.records import UnderstandingItem
from asg_core.method.token_entropy import RollingPercentile
from asg_core.method.understanding import understanding_step
from asg_core.method.updates import Group, Learner, UpdateReport, proposer_groups, solver_groups, update_text_role
from asg_core.testing.qwen import QwenBackbone, random_qwen
from asg_core.testing.scripted_text import scripted_text
from asg_core.training.optimizer import RoleOptimizer

CONFIG = RunConfig.model_validate(
    {
        "ask": {"max_new_tokens": 16},
        "solve": {"max_new_tokens": 6, "min_agreement": 0.0},
        "optimizer": {"lr_proposer": 1e-3, "lr_solver": 1e-3},
        "ablation": "random_rewards",
    }
)

TEXT_ROLES = (Role.PROPOSER, Role.SOLVER)


def picture(seed: int, side: int) -> Image.Image:
    """Noise; 224 pixels are 64 tokens, 448 are 256."""
    noise = torch.randint(0, 256, (side, side, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


class Subject:
    """A model with its optimizers, that takes a step and forgets it."""

    def __init__(self, kind: type[QwenBackbone]) -> None:
        self.backbone = kind(random_qwen(layers=8, width=64, mlp=128, heads=4), letters_per_token=4, scale=0.02)
        self.backbone.text.stop_token_ids = frozenset()  # every completion has its full length
        accelerator = Accelerator(cpu=True)
        self.optimizers = {
            role: RoleOptimizer(self.backbone.trainable(role), 1e-3, 0.01, 1.0, accelerator) for role in TEXT_ROLES
        }
        self._start = {role: [p.clone() for p in self.backbone.trainable(role).values()] for role in TEXT_ROLES}

    def reset(self) -> None:
        """Weights, moments and caches as in the beginning."""
        with torch.no_grad():
            for role in TEXT_ROLES:
                for parameter, value in zip(self.backbone.trainable(role).values(), self._start[role], strict=True):
                    parameter.copy_(value)
                self.optimizers[role].restore({})
        self.backbone.text.features.clear()
        self.backbone._prefixes.clear()

    def sampled(self, images: Sequence[Image.Image]) -> list[UnderstandingItem]:
        """The understanding step without its updates."""
        pool = [PoolImage(Path("x.png"), image) for image in images]
        with scripted_text(self.backbone):
            return understanding_step(self.backbone, pool, StepContext(CONFIG, 1), RollingPercentile(), EmaBaseline())

    def update(self, role: Role, groups: Sequence[Group]) -> UpdateReport:
        """One update."""
        learner = Learner(role, self.optimizers[role], AdaptiveKl(0.01, 0.02))
        return update_text_role(self.backbone, groups, learner, StepContext(CONFIG, 1))

    def step(self, images: Sequence[Image.Image]) -> tuple[list[UnderstandingItem], list[UpdateReport]]:
        """The whole step."""
        items = self.sampled(images)
        return items, [
            self.update(Role.PROPOSER, proposer_groups(items)),
            self.update(Role.SOLVER, solver_groups(items)),
        ]
