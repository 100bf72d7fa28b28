"""One model under measurement: its sizes, what its device can do, and how long its sections took."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator

from asg_core.backbones.interface import Role
from asg_core.config.schema import Optimizer, RunConfig
from asg_core.method.replay import NoiseFloor
from asg_core.models.causal import CausalBackbone
from asg_core.planning.duration import Accelerator as Rates
from asg_core.training.optimizer import RoleOptimizer
from gpu_models import Built, pictures
from scripted import confident, endless
from scripted_step import Kind, Lengths, step_config

SHARE = 0.85
"""Of the device's memory that a step may plan with; what lies above is left to fragments and kernels' workspaces."""


@dataclass
class Bench:
    """One model; ``took`` remembers seconds of measurements, to predict others.

    Attributes:
        rates: of the device; None if they are not known.
        others: bytes of the device that other models hold.
        many: images of the large steps.
        floors: of rounding, as a run keeps them: measured at the first update of each role.
    """

    name: str
    built: Built
    device: torch.device
    rates: Rates | None
    tiny: bool
    others: int = 0
    took: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.built.backbone, CausalBackbone):
            raise TypeError(f"{type(self.built.backbone).__name__} is no CausalBackbone")
        self.backbone: CausalBackbone = self.built.backbone
        self.many = 2 if self.tiny else 8
        self.floors = {role: NoiseFloor() for role in Role}
        self.accelerator = Accelerator(cpu=self.device.type == "cpu")
        side = self.built.side
        self.short = Lengths(6, 6, 3, 4, side) if self.tiny else Lengths(32, 64, 16, 32, side)
        # the workload of the bars: 1,024 image tokens, 250 decoding passes
        self.long = Lengths(8, 8, 5, 6, side) if self.tiny else Lengths(125, 125, 125, 125, self._side_of(1024))
        endless(self.backbone)
        confident(self.backbone, pictures(1, self.built.side)[0])

    def _side_of(self, tokens: int) -> int:
        """The side of the square image whose prefix is nearest to ``tokens`` positions."""
        see = self.built.shape.see
        return min(range(224, 1345, 28), key=lambda side: abs(see(side, side).tokens - tokens))

    @property
    def memory(self) -> int | None:
        """Bytes of the device that this model may have; None on a CPU."""
        if self.device.type != "cuda":
            return None
        return torch.cuda.get_device_properties(self.device).total_memory - self.others

    def config(self, kind: Kind, count: int, lengths: Lengths) -> RunConfig:
        """Settings of a step that fits."""
        room = math.inf if self.memory is None else SHARE * self.memory
        return step_config(self.backbone, self.built.shape, kind, count, lengths, room)

    def optimizer(self, role: Role) -> RoleOptimizer:
        """A fresh one, with the settings of a run but for a rate that changes next to nothing."""
        settings = Optimizer()
        return RoleOptimizer(
            self.backbone.trainable(role), 1e-6, settings.weight_decay, settings.max_grad_norm, self.accelerator
        )

    def times(self, factor: float, other: str) -> Callable[[], float]:
        """Seconds of something that takes about ``factor`` times as long as ``other`` did."""
        return lambda: factor * self.took.get(other, 0.0)

    def ms(self, flops: float, read: float) -> float | None:
        """Least milliseconds of one pass."""
        return 1e3 * self.rates.roofline(flops, read) if self.rates else None
