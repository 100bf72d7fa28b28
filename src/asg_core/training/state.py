"""Everything a step moves: adapters, moments, KL weights, noise floors, STE window, baseline, monitor, image cursor.

METHOD, "State that a resume must restore exactly". The global random generators are in ``rng``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from accelerate import Accelerator
from pydantic import Field, TypeAdapter
from torch import Tensor

from asg_core.backbones.interface import Backbone, Role
from asg_core.config.schema import RunConfig
from asg_core.data.image_pool import ImagePool
from asg_core.errors import ProcessError
from asg_core.method.losses import AdaptiveKl, EmaBaseline
from asg_core.method.records import Kind
from asg_core.method.replay import NoiseFloor
from asg_core.method.token_entropy import RollingPercentile
from asg_core.method.updates import Learner
from asg_core.training.alarms import CollapseMonitor
from asg_core.training.distributed import Processes
from asg_core.training.optimizer import RoleOptimizer
from asg_core.training.rng import random_state, set_random_state

TEXT_ROLES = (Role.PROPOSER, Role.SOLVER)

_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_number = TypeAdapter(_Number).validate_python
_windows = TypeAdapter(dict[str, list[_Number]]).validate_python
_sizes = TypeAdapter(dict[Kind, Annotated[int, Field(strict=True, ge=1)]]).validate_python

_GOES_ON = ("pool", "seconds", "images_at_once", "replay_floors")
"""What a rollback leaves as it is."""

_MAY_DIFFER = {"out", "weights"}
"""Settings that only say where something lies, which may differ between machines."""


@dataclass(frozen=True)
class Snapshot:
    """The state before a step: plain part, random generators, and weights and moments of the roles it updates."""

    plain: dict[str, Any]
    random: dict[str, Any]
    weights: dict[Role, list[Tensor]]
    moments: dict[Role, dict[str, Tensor]]


class TrainState:
    """The state of a run between two steps; adapters of the backbone and cursor of the pool are part of it.

    Attributes:
        step: number of the last finished step.
        seconds: time spent in steps.
        optimizers: one per role.
        learners: what the updates take, one per role.
        window: recent raw STE values.
        baseline: the Solver's EMA baseline.
        monitor: looks for collapse.
        nonfinite_in_a_row: finished steps in a row that dropped something not finite.
        images_at_once: images worked on at a time by kind of step, once memory has run out.
        rolled_back_for: alarms of the last rollback, until a checkpoint is saved again.
    """

    def __init__(self, config: RunConfig, backbone: Backbone, pool: ImagePool, accelerator: Accelerator) -> None:
        settings, self.backbone, self.pool = config.optimizer, backbone, pool
        weight_decay, max_norm = settings.weight_decay, settings.max_grad_norm
        self.optimizers = {
            role: RoleOptimizer(backbone.trainable(role), settings.rate(role), weight_decay, max_norm, accelerator)
            for role in Role
        }
        self._kl = {role: AdaptiveKl(config.policy.beta_start, config.policy.kl_target) for role in TEXT_ROLES}
        self._floors = {role: NoiseFloor() for role in Role}
        self.learners = {
            role: Learner(role, optimizer, self._kl.get(role), self._floors[role])
            for role, optimizer in self.optimizers.items()
        }
        self.window = RollingPercentile()
        self.baseline = EmaBaseline()
        self.monitor = CollapseMonitor(config.alarms)
        self.step, self.seconds = 0, 0.0
        self.nonfinite_in_a_row = 0
        self.images_at_once: dict[Kind, int] = {}
        self.rolled_back_for: tuple[str, ...] = ()
        self._may_shrink = config.optimizer.micro_batch == "auto"

    def state_dict(self) -> dict[str, Any]:
        """Return the plain part as JSON data, as ``state.json`` of a checkpoint holds it beside the step."""
        return {
            "betas": {role.value: control.beta for role, control in self._kl.items()},
            "replay_floors": {role.value: floor.nats for role, floor in self._floors.items()},
            "window": self.window.state(),
            "baseline": self.baseline.value,
            "monitor": self.monitor.state(),
            "pool": self.pool.state(),
            "nonfinite_in_a_row": self.nonfinite_in_a_row,
            "seconds": self.seconds,
            "images_at_once": dict(self.images_at_once),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set what :meth:`state_dict` returned, and ``step`` if it is there.

        Raises:
            CheckpointError: the images are others than then.
            LookupError, TypeError, ValueError: ``state`` is not of this run.
        """
        for role, control in self._kl.items():
            control.beta = _number(state["betas"][role.value])
        for role, floor in self._floors.items():
            nats = state["replay_floors"][role.value]
            floor.nats = None if nats is None else _number(nats)
        self.window.restore(_number(value) for value in state["window"])
        self.baseline.value = _number(state["baseline"])
        self.monitor.restore(_windows(state["monitor"]))
        self.pool.restore(state["pool"])
        self.nonfinite_in_a_row = int(state["nonfinite_in_a_row"])
        self.seconds = _number(state["seconds"])
        sizes = _sizes(state["images_at_once"])
        self.images_at_once = sizes if self._may_shrink else {}
        self.step = state.get("step", self.step)

    def return_to(self, state: Mapping[str, Any]) -> None:
        """Set the plain part that a rollback takes back; steps, images and time go on, the monitor forgets.

        Raises:
            LookupError, TypeError, ValueError: ``state`` is not of this run.
        """
        now = self.state_dict()
        kept = {key: now[key] for key in _GOES_ON} | {"monitor": {}, "nonfinite_in_a_row": 0, "step": self.step}
        self.load_state_dict({**state, **kept})

    def snapshot(self, roles: Collection[Role]) -> Snapshot:
        """Return a copy, on the CPU, of all that a step which updates ``roles`` moves."""
        chosen = {role: self.optimizers[role] for role in roles}
        weights = {
            role: [p.detach().to("cpu", copy=True) for p in optimizer.parameters.values()]
            for role, optimizer in chosen.items()
        }
        moments = {role: optimizer.state() for role, optimizer in chosen.items()}
        return Snapshot(self.state_dict(), random_state(), weights, moments)

    def restore(self, snapshot: Snapshot) -> None:
        """Set everything back, bit for bit."""
        with torch.no_grad():
            for role, weights in snapshot.weights.items():
                for parameter, before in zip(self.optimizers[role].parameters.values(), weights, strict=True):
                    parameter.copy_(before)
                self.optimizers[role].restore(snapshot.moments[role])
        self.load_state_dict(snapshot.plain)
        set_random_state(snapshot.random)

    def digest(self) -> str:
        """Return a fingerprint of all adapter weights, moments and the plain part but wall time: equal only if every
        bit is."""
        digest = hashlib.blake2b(digest_size=16)
        for role, optimizer in sorted(self.optimizers.items()):
            for name, tensor in sorted({**optimizer.parameters, **optimizer.state()}.items()):
                digest.update(f"{role.value}.{name}".encode())
                digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        digest.update(json.dumps(self.state_dict() | {"seconds": None}, sort_keys=True).encode())
        return digest.hexdigest()


def check_consistency(processes: Processes, config: RunConfig, state: TrainState) -> None:
    """Check that all processes have the same settings and the same state, wall time aside.

    Raises:
        ProcessError: in every process, naming what differs and where.
    """
    if processes.count == 1:
        return
    settings = config.model_dump(mode="json", exclude=_MAY_DIFFER)
    mine = {f"setting {key}": str(value) for key, value in settings.items()}
    first, *others = processes.gather(mine | {"state after training so far": state.digest()})
    for rank, other in enumerate(others, start=1):
        for name, value in first.items():
            if other[name] != value:
                raise ProcessError(
                    f"after step {state.step}: process {rank} has another {name} than process 0",
                    f"{other[name][:80]!r} instead of {value[:80]!r}",
                    "give all processes the same command, software, kind of device, images and weights, and resume",
                )
