"""Everything a step moves: adapters, moments, KL weights, noise floors, STE window, baseline, monitor, image cursor.

METHOD, "State that a resume must restore exactly". The global random generators of python, numpy and torch are saved
with it: nothing of ours draws from them, but a plugin may.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any

import numpy as np
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

TEXT_ROLES = (Role.PROPOSER, Role.SOLVER)

_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_number = TypeAdapter(_Number).validate_python
_windows = TypeAdapter(dict[str, list[_Number]]).validate_python
_sizes = TypeAdapter(dict[Kind, Annotated[int, Field(strict=True, ge=1)]]).validate_python

_GOES_ON = ("pool", "seconds", "images_at_once", "replay_floors")
"""What a rollback leaves as it is."""

_MAY_DIFFER = {"out", "weights"}
"""Settings that only say where something lies, which may differ between machines."""


class TrainState:
    """The state of a run between two steps; adapters of the backbone and cursor of the pool are part of it.

    Attributes:
        step: number of the last finished step.
        seconds: time spent in steps.
        window: recent raw STE values.
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

        Raises what :meth:`load_state_dict` raises.
        """
        now = self.state_dict()
        kept = {key: now[key] for key in _GOES_ON} | {"monitor": {}, "nonfinite_in_a_row": 0, "step": self.step}
        self.load_state_dict({**state, **kept})

    def snapshot(self, roles: Collection[Role]) -> Callable[[], None]:
        """Copy, to the CPU, all that a step which updates ``roles`` moves; return what sets it back, bit for bit."""
        plain, random_now = self.state_dict(), random_state()
        learning = [self.optimizers[role] for role in roles]
        weights = [p.detach().to("cpu", copy=True) for one in learning for p in one.parameters.values()]
        moments = [one.state() for one in learning]

        def set_back() -> None:
            with torch.no_grad():
                now = (p for one in learning for p in one.parameters.values())
                for parameter, before in zip(now, weights, strict=True):
                    parameter.copy_(before)
            for one, state in zip(learning, moments, strict=True):
                one.restore(state)
            self.load_state_dict(plain)
            set_random_state(random_now)

        return set_back

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


def random_state() -> dict[str, Any]:
    """The states of all global generators now, as JSON data."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002 - see above
    return {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, gauss],
        "torch": _text(torch.get_rng_state()),
        "cuda": [_text(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set what :func:`random_state` gave, also after a round trip through JSON. ValueError and others if it is not."""
    name, keys, position, has_gauss, cached = state["numpy"]
    words = np.array(keys, dtype=np.uint32)
    if words.shape != (624,) or type(position) is not int or not 0 <= position <= 624:
        raise ValueError("not a state of numpy's generator")  # numpy itself does not look
    version, internal, gauss = state["python"]
    torch.set_rng_state(_bytes(state["torch"]))
    for device, saved in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(_bytes(saved), device)
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state((name, words, position, has_gauss, cached))  # noqa: NPY002


def _text(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
