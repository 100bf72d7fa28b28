"""One AdamW per role, guarded: a non-finite loss, gradient or moment leaves weights and moments bit-identical.

With several processes each one adds up the gradients of its own losses, and one flat all-reduce sums them, with the few
numbers that all must agree on at its end. So all processes apply the same gradient, or none does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from asg_core.backbones.devices import moved_to
from asg_core.errors import TrainingStopped
from asg_core.method.updates import StepResult
from asg_core.training.distributed import base_is_sharded, peers


class RoleOptimizer:
    """AdamW over one role's adapter parameters.

    Args:
        parameters: float32 adapter parameters by name (``Backbone.trainable``).
        lr: learning rate; 0 makes every step a no-op, moments included.
        weight_decay: decoupled weight decay.
        max_grad_norm: gradients are scaled so that their joint 2-norm is at most this.
        accelerator: runs the backward pass, and knows how many processes there are.
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

    def step(
        self, losses: Iterable[Callable[[], Tensor]], statistics: Callable[[], Sequence[float]] = tuple
    ) -> StepResult:
        """Accumulate the gradients of several losses (one backward each) and take one step.

        With several processes all of them must call this for the same steps, each with its own losses or none.

        Args:
            losses: functions that build one scalar loss each; their *sum* is minimised. Built one at a time, so only
                one graph is alive. No loss at all, in no process: nothing happens.
            statistics: called after the last backward pass; as many numbers in every process.

        Raises:
            TrainingStopped: what a loss raised, in this process; the others raise it too.
            ProcessError: another process has ended.
        """
        if self.lr == 0:
            return StepResult()
        try:
            if self._accelerator.num_processes == 1:
                loss, count = self._accumulate(losses)
                sums = tuple(statistics())
            else:
                loss, count, sums = self._accumulate_everywhere(losses, statistics)
            if count == 0:
                return StepResult(sums=sums)
            if not math.isfinite(loss):
                return StepResult(loss, nonfinite=True, sums=sums)
            norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.max_grad_norm))
            if not math.isfinite(norm) or not self._state_is_finite():
                return StepResult(loss, norm, nonfinite=True, sums=sums)
            if norm == 0.0:
                return StepResult(loss, norm, sums=sums)
            self._adam.step()
            return StepResult(loss, norm, applied=True, sums=sums)
        finally:
            self._adam.zero_grad(set_to_none=True)

    def _accumulate(self, losses: Iterable[Callable[[], Tensor]]) -> tuple[float, int]:
        """Backward through each loss; their sum, or the first that is not finite, and how many there were."""
        total, count = 0.0, 0
        for build in losses:
            loss = build()
            total += (value := float(loss.detach()))
            count += 1
            if not math.isfinite(value):
                return value, count
            if loss.requires_grad:
                self._accelerator.backward(loss)
        return total, count

    def _accumulate_everywhere(
        self, losses: Iterable[Callable[[], Tensor]], statistics: Callable[[], Sequence[float]]
    ) -> tuple[float, int, tuple[float, ...]]:
        """:meth:`_accumulate` in every process, then one all-reduce of gradients, loss, count and statistics.

        A process that stops takes part all the same, so that none of the others waits for it.
        """
        stopped: TrainingStopped | None = None
        try:
            loss, count = self._accumulate(losses)
        except TrainingStopped as error:
            stopped, loss, count = error, 0.0, 0
        parameters = list(self.parameters.values())
        touched = [float(p.grad is not None) for p in parameters]
        numbers = torch.tensor([loss, count, stopped is not None, *touched, *statistics()], dtype=torch.float64)
        rounded = numbers.float()
        halves = torch.cat([rounded, (numbers - rounded).float()])  # of the digits
        tail = moved_to(parameters[0].device, halves)
        gradients = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
        flat = torch.cat([*gradients, tail])
        with peers(self._accelerator.process_index):
            torch.distributed.all_reduce(flat)
            if base_is_sharded():  # all did the same work
                flat /= self._accelerator.num_processes
            loss, total_count, stops, *rest = flat[-len(tail) :].double().view(2, -1).sum(0).tolist()
        if stopped is not None:
            raise stopped
        if stops:
            raise TrainingStopped(
                "another process stopped this update", "its own message says why", "read that message and follow it"
            )
        summed = torch.split(flat[: -len(tail)], [p.numel() for p in parameters])
        for parameter, gradient, used in zip(parameters, summed, rest, strict=False):
            parameter.grad = gradient.view_as(parameter).clone() if used else None  # aligned, as in one process
        return loss, round(total_count), tuple(rest[len(parameters) :])

    @property
    def has_stepped(self) -> bool:
        """Whether the weights ever moved, before a resume too."""
        return bool(self._adam.state)

    def _state_is_finite(self) -> bool:
        """One number decides, so that one transfer does: the sum of all moments, none of which comes near overflow."""
        moments = [m for state in self._adam.state.values() for key, m in state.items() if key != "step"]
        return not moments or bool(torch.stack([m.sum() for m in moments]).isfinite().all())

    def state(self) -> dict[str, Tensor]:
        """A copy of moments and step counts by ``<parameter>.<exp_avg|exp_avg_sq|step>``; empty before any step."""
        return {
            f"{name}.{key}": value.detach().to("cpu", copy=True)
            for name, parameter in self.parameters.items()
            for key, value in self._adam.state.get(parameter, {}).items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Set exactly what :meth:`state` returned. KeyError or ValueError for a tensor that is not of this role."""
        self._adam.state.clear()
        for full, value in state.items():
            name, _, key = full.rpartition(".")
            parameter = self.parameters[name]
            expected = {"step": torch.Size(()), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}[key]
            if value.shape != expected or value.dtype != torch.float32:
                raise ValueError(f"{full} is {value.dtype} {tuple(value.shape)}, not float32 {tuple(expected)}")
            device = "cpu" if key == "step" else parameter.device
            self._adam.state[parameter][key] = value.to(device).clone()
