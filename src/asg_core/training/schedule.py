"""Which step comes when (METHOD, Schedule): a pure function of the step number, so nothing needs to be restored."""

from __future__ import annotations

from asg_core.config.schema import Schedule
from asg_core.method.records import Kind


def step_kind(step: int, steps: int, schedule: Schedule) -> Kind:
    """The kind of the 1-based ``step`` of ``steps``.

    "alternate" repeats U understanding then G generation steps; "two_stage" spends the same shares as one block each.
    """
    u, g = schedule.ratio
    match schedule.mode:
        case "understanding":
            return "understanding"
        case "generation":
            return "generation"
        case "two_stage":
            return "understanding" if step <= round(steps * u / (u + g)) else "generation"
        case "alternate":
            return "understanding" if (step - 1) % (u + g) < u else "generation"


def kinds(steps: int, schedule: Schedule) -> set[Kind]:
    """All kinds that a run of ``steps`` steps will see; however many they are, three of them show every kind."""
    return {step_kind(step, steps, schedule) for step in (1, schedule.ratio[0] + 1, steps) if 1 <= step <= steps}
