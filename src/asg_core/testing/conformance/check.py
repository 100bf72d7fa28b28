"""What a conformance check is, and the registry of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from asg_core.testing.conformance.subject import Need, Subject


@dataclass(frozen=True)
class Check:
    """One named property of a backbone.

    Attributes:
        id: "group.name"; stable, used in expected failures.
        meaning: the property, one line.
        remedy: where to look when it fails, one line.
        since: first version of asg-core that checks it.
        quick: whether ``profile="quick"`` runs it.
        needs: the check is skipped on a backbone without these.
        run: raises Violation (or anything else) if the property does not hold, NotApplicable if it cannot be checked.
    """

    id: str
    meaning: str
    remedy: str
    since: str
    quick: bool
    needs: tuple[Need, ...]
    run: Callable[[Subject], None]

    @property
    def group(self) -> str:
        """The part of the id before the dot."""
        return self.id.partition(".")[0]


CHECKS: dict[str, Check] = {}
"""All checks by id, in the order in which they run."""


def check(
    name: str, meaning: str, remedy: str, *needs: Need, quick: bool = True, since: str = "0.1"
) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Register the decorated function as a check.

    Args:
        name: the id, "group.name".
        meaning: the property, one line.
        remedy: where to look when it fails, one line.
        needs: the check is skipped on a backbone without these.
        quick: whether the quick profile runs it.
        since: first version of asg-core that checks it.
    """

    def register(function: Callable[[Subject], None]) -> Callable[[Subject], None]:
        if name in CHECKS:
            raise ValueError(f"two checks are called {name!r}")
        CHECKS[name] = Check(name, meaning, remedy, since, quick, needs, function)
        return function

    return register
