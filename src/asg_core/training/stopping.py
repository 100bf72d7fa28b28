"""What ends a run early, and ends it well: signals, alarms, values that are not finite."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any

from asg_core.config.schema import Alarms
from asg_core.errors import TrainingStopped
from asg_core.training.state import TrainState


@contextmanager
def stop_signals(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM call ``handle``; then the earlier handlers are back.

    Outside the main thread nothing is changed: the embedding program handles signals.
    """
    with ExitStack() as undo:
        with suppress(ValueError):
            for number in (signal.SIGINT, signal.SIGTERM):
                undo.callback(signal.signal, number, signal.signal(number, handle))
        yield


def react(record: Mapping[str, Any], state: TrainState, limits: Alarms, say: Callable[[str], None]) -> None:
    """Do what the alarms of a finished step ask for; count steps with non-finite values.

    Raises:
        TrainingStopped: the run is to end here.
    """
    state.nonfinite_in_a_row = state.nonfinite_in_a_row + 1 if record["nonfinite"] else 0
    if state.nonfinite_in_a_row >= limits.max_nonfinite:
        raise TrainingStopped(
            f"{state.nonfinite_in_a_row} steps in a row had non-finite values (last: step {state.step})",
            "a logit, reward, loss or gradient was NaN or infinite; those samples and updates were dropped",
            "lower the learning rates, use dtype=float32, or resume from an earlier checkpoint",
        )
    if not record["alarms"]:
        return
    alarm = f"alarm after step {state.step}: {', '.join(record['alarms'])}"
    say(alarm)
    if record.get("rolled_back_to") is not None:
        say(f"rolled back to the roles of step {record['rolled_back_to']}")
    elif limits.action != "warn":
        raise TrainingStopped(
            alarm,
            f"the mean over the last {limits.window} steps crossed its limit; alarms.action is {limits.action}"
            + (", and there is no other checkpoint to go back to" if limits.action == "rollback" else ""),
            "read docs/alarms.md; lower the learning rates or change the limits, then resume",
        )
