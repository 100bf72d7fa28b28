"""Of several processes none waits long for the last: the files that take longest are handed out first."""

from __future__ import annotations

import pytest

LONGEST = (
    "test_crash.py",
    "test_processes.py",
    "test_trainer.py",
    "test_conformance.py",
    "test_study.py",
    "test_waits.py",
    "test_launchers.py",
    "test_memory.py",
    "test_pretrain.py",
    "test_secrets.py",
    "test_conformance_mutants.py",
    "test_update.py",
    "test_generation_step.py",
    "test_compiled.py",
    "test_another_device.py",
    "test_replay.py",
    "test_memory_plan.py",
    "test_commands.py",
)
"""File names, longest first; those of more than about twenty seconds."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))
