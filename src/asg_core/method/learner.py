"""What the updates keep of one role between steps, and what they need of an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from asg_core.backbones.interface import Role
from asg_core.method.losses import AdaptiveKl
from asg_core.method.replay import Drift, NoiseFloor


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did.

    Attributes:
        loss: sum of the backward-passed losses, over all processes; None when nothing was to be done.
        grad_norm: gradient norm before clipping, None when no step was taken.
        applied: whether the weights moved.
        nonfinite: whether the step was dropped because a loss, a gradient or a moment was not finite.
        sums: what ``statistics`` returned, summed over all processes.
    """

    loss: float | None = None
    grad_norm: float | None = None
    applied: bool = False
    nonfinite: bool = False
    sums: tuple[float, ...] = ()


class Optimizer(Protocol):
    """Takes guarded steps on the adapter of one role (``training.optimizer``)."""

    lr: float

    def step(
        self, losses: Iterable[Callable[[], Tensor]], statistics: Callable[[], Sequence[float]] = tuple
    ) -> StepResult:
        """Minimise the sum of several losses, each built when its turn comes, by one step.

        Then call ``statistics``, whose numbers are summed over all processes.
        """
        ...


@dataclass(eq=False)
class Learner:
    """One role in training.

    Attributes:
        role: whose adapter learns.
        optimizer: moves it.
        kl: weight of the KL term, steered after every update; None for the Generator, whose penalty has a fixed weight.
        floor: what rounding does to the role's log-probs; None takes the least there is.
    """

    role: Role
    optimizer: Optimizer
    kl: AdaptiveKl | None = None
    floor: NoiseFloor | None = None


@dataclass(frozen=True)
class UpdateReport:
    """What one role's update did.

    Attributes:
        step: the last optimizer step.
        kl: mean KL per token in nats; of the Generator, the mean penalty. None if nothing was learned.
        dropped: samples left out because a number of theirs was not finite.
        zero_variance_share: share of groups without signal; None if there was no group.
        drift: how far replayed log-probs were from the sampled ones; None if nothing was sampled token by token.
    """

    step: StepResult
    kl: float | None
    dropped: int
    zero_variance_share: float | None
    drift: Drift | None = None
