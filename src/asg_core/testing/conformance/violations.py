"""What a check raises when a backbone breaks a property, or cannot be asked about it."""

from __future__ import annotations

import traceback
from pathlib import Path


class Violation(Exception):
    """A backbone broke the property that a check states; the message says how."""


class NotApplicable(Exception):
    """A check cannot be run on this backbone; the message says why."""


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
