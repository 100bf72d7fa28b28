"""Proof that the processes of a run agree: on the settings at the start, on every bit of the state at checkpoints."""

from __future__ import annotations

from asg_core.config.schema import RunConfig
from asg_core.training.distributed import Processes
from asg_core.training.state import TrainState

_MAY_DIFFER = {"out", "weights"}
"""Settings that only say where something lies, which may differ between machines."""


def check_consistency(processes: Processes, config: RunConfig, state: TrainState) -> None:
    """Check that all processes have the same settings and the same state, wall time aside.

    Raises:
        ProcessError: in every process, naming what differs and where.
    """
    if processes.count == 1:
        return
    settings = config.model_dump(mode="json", exclude=_MAY_DIFFER)
    values = {f"setting {key}": str(value) for key, value in settings.items()}
    processes.require_equal(values | {"state after training so far": state.digest()}, f"after step {state.step}")
