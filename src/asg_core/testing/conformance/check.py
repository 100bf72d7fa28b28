"""What a conformance check is, and the registry of all of them."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from asg_core.testing.conformance.subject import Subject

Need = Literal["text", "drawing", "tokens", "flow", "embed", "float32"]
"""What a check needs of a backbone: a capability, a kind of ``image_loss``, or a base in float32."""


class Violation(Exception):
    """A backbone broke the property that a check states; the message says how."""


class NotApplicable(Exception):
    """A check cannot be run on this backbone; the message says why."""


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


def expect(condition: object, problem: str) -> None:
    """Raise Violation with ``problem`` unless ``condition`` is true."""
    if not condition:
        raise Violation(problem)


def origin(error: Exception) -> str:
    """Where an exception came from: the innermost line that is neither the core's nor a library's, else the last."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and "asg_core" not in Path(f.filename).parts]
    frame = (own or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"
