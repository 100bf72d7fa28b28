"""Steps that several tests look at are taken once."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest


@pytest.fixture(scope="session")
def _taken() -> dict[str, Any]:
    return {}


@pytest.fixture
def recorded(_taken: dict[str, Any]) -> Callable[[str, Callable[[], Any]], Any]:
    """``recorded(name, take)``: what ``take()`` gave when it was first asked for by this name, as a copy to change.

    ``take`` must give the same in every test: the step of a backbone as newly loaded, on the ``images`` and ``config``
    of all tests.
    """

    def get(name: str, take: Callable[[], Any]) -> Any:
        if name not in _taken:
            _taken[name] = take()
        return deepcopy(_taken[name])

    return get
