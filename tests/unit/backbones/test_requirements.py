"""Requirements of plugins are compared with what is installed, from metadata alone."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from asg_core.backbones.requirements import unmet_requirements
from asg_core.cli import main

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a plugin on the path whose module must not be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def _install(name: str, *requires: str) -> None:
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        lines = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{lines}")
        (info / "entry_points.txt").write_text(f"[asg_core]\n{name} = {name}_module\n")
        (tmp_path / f"{name}_module.py").write_text("raise SystemExit('a plugin was imported')\n")

    return _install


def test_this_environment_has_no_conflict():
    assert unmet_requirements() == []


def test_a_range_that_excludes_the_installed_version_is_named_with_both_sides(install: Install):
    install("old", "pillow<2")
    install("new", "Pillow >= 3")
    (problem,) = unmet_requirements()
    assert problem.startswith(f"old 1.0 needs pillow<2, installed is pillow {version('pillow')}")
    assert "new 1.0 needs Pillow>=3" in problem


def test_a_package_that_is_missing_is_named(install: Install):
    install("wants", "no-such-package-here>=1")
    assert unmet_requirements() == ["wants 1.0 needs no-such-package-here>=1, which is not installed"]


def test_extras_and_other_platforms_are_not_required(install: Install):
    install("picky", "pillow<2; extra == 'old'", "pillow<2; sys_platform == 'nowhere'")
    assert unmet_requirements() == []


def test_doctor_reports_a_conflict_and_fails(install: Install, capsys: pytest.CaptureFixture[str]):
    install("old", "pillow<2")
    assert main(["doctor"]) == 1
    assert "problem: old 1.0 needs pillow<2" in capsys.readouterr().out
