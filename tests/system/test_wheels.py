"""``pip install asg-core asg-bagel`` as a user types it, from a folder of wheels and without any network."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from devkit.sizes import at_full_size

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = [ROOT, *sorted(p.parent for p in ROOT.glob("plugins/*/pyproject.toml"))]
CHECKPOINT = ROOT / "plugins/asg_bagel/tests/fixtures/golden/checkpoint"


def run(*words: str | Path, where: Path) -> str:
    ended = subprocess.run([str(word) for word in words], cwd=where, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return ended.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel of each package of the repository."""
    folder = tmp_path_factory.mktemp("wheels")
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--quiet")
    run(sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", folder, *PACKAGES, where=folder)
    return folder


@pytest.fixture(scope="module")
def installed(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``bin`` of a fresh environment with everything installed that the wheels ask for.

    What they depend on is taken from the environment of the tests, by links to all of it but our own packages.
    """
    home = tmp_path_factory.mktemp("home")
    others = home / "others"
    others.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.startswith(("asg_", "__editable__")) and entry.suffix != ".pth":
            (others / entry.name).symlink_to(entry)
    run(sys.executable, "-m", "venv", "--without-pip", home / "venv", where=home)
    python = home / "venv" / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", where=home).strip()
    Path(site, "others.pth").write_text(f"{others}\n", encoding="utf-8")
    names = [wheel.name.split("-")[0].replace("_", "-") for wheel in wheels.glob("*.whl")]
    assert {"asg-core", "asg-bagel", "asg-blip3o", "asg-vargpt", "asg-lab"} <= set(names)
    run(python, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", wheels, *names, where=home)
    return home / "venv" / "bin"


def test_what_is_installed_is_what_the_wheels_hold(installed: Path, tmp_path: Path) -> None:
    found = run(installed / "python", "-c", "import asg_core; print(asg_core.__file__)", where=tmp_path)
    assert str(installed.parent) in found
    plugins = json.loads(run(installed / "asg", "plugins", "--json", where=tmp_path))
    assert {row["name"]: row["state"] for row in plugins} == dict.fromkeys(
        ("tiny", "bagel", "blip3o", "vargpt", "lab"), "ok"
    )


def test_the_embedded_backbone_trains(installed: Path, tmp_path: Path) -> None:
    words = ("steps=2", "schedule.ratio=[1,1]", "images_per_step=1", "evaluate=false", "out=run")
    run(installed / "asg", "train", *words, where=tmp_path)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps_done"] == 2


def test_the_conformance_kit_checks_a_plugins_backbone(installed: Path, tmp_path: Path) -> None:
    words = ("bagel", "--weights", CHECKPOINT, "--only", "contract", "--profile", "quick")
    assert "fail" not in run(installed / "asg", "check", *words, where=tmp_path).lower()


@pytest.mark.parametrize("name", at_full_size(["blip3o"], ["bagel", "vargpt"]))
def test_a_parity_replay_needs_nothing_but_the_wheel_and_its_fixture(
    name: str, installed: Path, tmp_path: Path
) -> None:
    fixture = ROOT / f"plugins/asg_{name}/tests/fixtures/golden"
    run(installed / "asg", "parity", name, "--fixture", fixture, where=tmp_path)
