"""Which backbones are broken on purpose, and the check that must name the defect of each."""

from __future__ import annotations

from collections.abc import Callable

from asg_core.tiny.backbone import TinyBackbone

MUTANTS: dict[str, tuple[type[TinyBackbone], str]] = {}


def caught_by(check: str) -> Callable[[type[TinyBackbone]], type[TinyBackbone]]:
    """Register a broken backbone and the check that must name its defect."""

    def register(cls: type[TinyBackbone]) -> type[TinyBackbone]:
        assert cls.__name__ not in MUTANTS, f"two mutants are called {cls.__name__}"
        MUTANTS[cls.__name__] = cls, check
        return cls

    return register
