"""Tests that would leave something behind in torch."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from asg_core.testing.fake_device import in_subprocess


def passes_apart(test: Callable[[], None]) -> None:
    """Fails as ``test`` fails, in a process of its own, where ``fake_device`` may be made known to torch."""

    def outcome() -> str:
        try:
            test()
        except BaseException:  # noqa: BLE001 - pytest's own failures are no Exceptions
            return traceback.format_exc()
        return ""

    problem = in_subprocess(outcome)
    assert not problem, problem
