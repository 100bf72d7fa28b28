"""One AdamW per role, guarded: a non-finite loss, gradient or result leaves weights and moments bit-identical."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step did.

    Attributes:
        loss: sum of the backward-passed losses; None when nothing was to be done.
        grad_norm: gradient norm before clipping, None when no step was taken.
        applied: whether the weights moved.
        nonfinite: whether the step was dropped because a loss or gradient was not finite.
    """

    loss: float | None = None
    grad_norm: float | None = None
    applied: bool = False
    nonfinite: bool = False


class RoleOptimiser:
    """AdamW over one role's adapter parameters.

    Args:
        parameters: float32 adapter parameters by name (``Backbone.trainable``).
        lr: learning rate; 0 makes every step a no-op, moments included.
        weight_decay: decoupled weight decay.
        max_grad_norm: gradients are scaled so that their joint 2-norm is at most this.
        accelerator: runs the backward pass.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        lr: float,
        weight_decay: float,
        max_grad_norm: float,
        accelerator: Accelerator,
    ) -> None:
        self.parameters = dict(parameters)
        self.lr, self.max_grad_norm, self._accelerator = lr, max_grad_norm, accelerator
        self._adam = torch.optim.AdamW(self.parameters.values(), lr=lr, weight_decay=weight_decay)

    def step(self, losses: Iterable[Callable[[], Tensor]]) -> StepResult:
        """Accumulate the gradients of several losses (one backward each) and take one step.

        Args:
            losses: functions that build one scalar loss each; their *sum* is minimised. Built one at a time, so only
                one graph is alive. No loss at all: nothing happens.
        """
        if self.lr == 0:
            return StepResult()
        total, count = 0.0, 0
        try:
            for build in losses:
                loss = build()
                total += (value := float(loss.detach()))
                count += 1
                if not math.isfinite(value):
                    return StepResult(value, nonfinite=True)
                if loss.requires_grad:
                    self._accelerator.backward(loss)
            if count == 0:
                return StepResult()
            return self._apply(total)
        finally:
            self._adam.zero_grad(set_to_none=True)

    def _apply(self, loss: float) -> StepResult:
        with_grad = [p for p in self.parameters.values() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in with_grad if p.grad is not None]))
        if not math.isfinite(norm):
            return StepResult(loss, norm, nonfinite=True)
        if norm == 0.0:
            return StepResult(loss, norm)
        torch.nn.utils.clip_grads_with_norm_(with_grad, self.max_grad_norm, torch.tensor(norm))
        self._adam.step()
        return StepResult(loss, norm, applied=True)

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts by ``<parameter>.<exp_avg|exp_avg_sq|step>``; empty before the first step."""
        return {
            f"{name}.{key}": value.detach().cpu()
            for name, parameter in self.parameters.items()
            for key, value in self._adam.state.get(parameter, {}).items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Set exactly what :meth:`state` returned. Raises KeyError for a name that is not of this role."""
        self._adam.state.clear()
        for full, value in state.items():
            name, _, key = full.rpartition(".")
            parameter = self.parameters[name]
            device = "cpu" if key == "step" else parameter.device
            self._adam.state[parameter][key] = value.to(device).clone()
