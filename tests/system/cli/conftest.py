"""Commands run in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from asg_core.cli import main

Call = Callable[..., str]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command that must succeed; returns its stdout."""

    def run(*words: object) -> str:
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return run
