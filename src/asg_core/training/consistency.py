"""Proof that the processes of a run agree: on the settings at the start, on every bit of the state at checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from asg_core.backbones.interface import Role
from asg_core.config.schema import RunConfig
from asg_core.training.optimizer import RoleOptimizer

_MAY_DIFFER = {"out", "weights"}
"""Settings that only say where something lies, which may differ between machines."""


def described(config: RunConfig) -> dict[str, str]:
    """Every setting that must be the same in all processes, as text by name."""
    return {f"setting {key}": str(value) for key, value in config.model_dump(mode="json", exclude=_MAY_DIFFER).items()}


def state_digest(optimizers: Mapping[Role, RoleOptimizer], state: Mapping[str, Any]) -> str:
    """Fingerprint of all adapter weights and moments and of ``state`` (JSON data): equal only if every bit is.

    Wall time is left out.
    """
    digest = hashlib.blake2b(digest_size=16)
    for role, optimizer in sorted(optimizers.items()):
        for name, tensor in sorted({**optimizer.parameters, **optimizer.state()}.items()):
            digest.update(f"{role.value}.{name}".encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    digest.update(json.dumps({key: state[key] for key in sorted(state) if key != "seconds"}).encode())
    return digest.hexdigest()
