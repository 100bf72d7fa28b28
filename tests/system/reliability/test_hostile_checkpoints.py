# ruff: noqa: PT017 - whether there is an error is open; if there is one, it must say something
"""Whatever is in a checkpoint, it is refused by one typed error or taken in whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asg_core.backbones.interface import Role
from asg_core.config.schema import Alarms
from asg_core.data.image_pool import ImagePool
from asg_core.errors import CheckpointError
from asg_core.method.losses import AdaptiveKl, EmaBaseline
from asg_core.method.replay import NoiseFloor
from asg_core.method.token_entropy import RollingPercentile
from asg_core.training import checkpoint, checkpoint_files
from asg_core.training.alarms import CollapseMonitor
from asg_core.training.state import TrainState, set_random_state
from devkit.json_values import json_values
from devkit.sizes import fuzz


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, model: Any) -> tuple[Path, Any]:
    """A good checkpoint, and the model that it is of."""
    return model.save(tmp_path_factory.mktemp("stored"), 4), model


@st.composite
def attack(draw: st.DrawFn) -> tuple[str, list[tuple[str, Any]]]:
    """Changes to make in a checkpoint: (what, argument)."""
    name = draw(
        st.sampled_from(
            [
                "manifest.json",
                "state.json",
                "optimizer-solver.safetensors",
                "adapters/solver/adapter_config.json",
                "adapters/solver/adapter_model.safetensors",
            ]
        )
    )
    kinds = st.sampled_from(["json", "key", "bytes", "cut", "link", "remove", "add", "flip"])
    return name, [
        (draw(kinds), draw(st.one_of(json_values, st.binary(max_size=20)))) for _ in range(draw(st.integers(1, 2)))
    ]


def apply(step: Path, name: str, kind: str, value: Any) -> None:
    file = step / name
    match kind:
        case "json" if not isinstance(value, bytes):
            file.write_text(json.dumps(value))
        case "key" if name.endswith(".json") and not isinstance(value, bytes):
            document = json.loads(file.read_text())
            key = sorted(document)[len(str(value)) % len(document)] if isinstance(document, dict) and document else None
            file.write_text(json.dumps({**document, key: value} if key is not None else value))
        case "bytes" if isinstance(value, bytes):
            file.write_bytes(value)
        case "cut":
            file.write_bytes(file.read_bytes()[: len(str(value)) * 3])
        case "link":
            file.unlink()
            file.symlink_to("/etc/passwd")
        case "remove":
            file.unlink()
        case "add":
            (step / "adapters" / "more").write_text(str(value).encode("ascii", "replace").decode())
        case _:
            data = bytearray(file.read_bytes())
            if data:
                data[len(str(value)) % len(data)] ^= 1
            file.write_bytes(data)


@fuzz(300)
@given(change=attack(), rehash=st.booleans())
def test_any_change_to_a_checkpoint_is_one_checkpoint_error_or_harmless(
    change: tuple[str, list[tuple[str, Any]]], rehash: bool, stored: tuple[Path, Any]
) -> None:
    """With ``rehash`` the manifest fits what was put in, as in a checkpoint that somebody made by hand."""
    good, model = stored
    step = good.parent.with_name("attacked") / good.name
    shutil.rmtree(step.parent, ignore_errors=True)
    shutil.copytree(good, step)
    name, changes = change
    for kind, value in changes:
        if not (step / name).is_symlink() and (step / name).exists():
            try:
                apply(step, name, kind, value)
            except (json.JSONDecodeError, UnicodeDecodeError):
                return  # the first change left no JSON for the second
    if rehash and name != "manifest.json" and (step / name).is_file():
        manifest = json.loads((step / "manifest.json").read_text())
        manifest["sha256"][name] = checkpoint_files.sha256(step / name)
        (step / "manifest.json").write_text(json.dumps(manifest))
    try:
        state = checkpoint_files.verify(step)
        take_in(state)
        with checkpoint.fitting("fuzz"):
            set_random_state(state["random"][0])
        checkpoint.load(step, model.backbone, model.optimizers)
    except CheckpointError as error:
        assert error.what
        assert error.why


def take_in(document: dict[str, Any]) -> None:
    """What a resume does with state.json, on parts of a state."""
    pool = SimpleNamespace(restore=ImagePool.restore, files=["a"], _fingerprint="0", folder="x", quarantined={}, seed=0)
    pool.order = lambda epoch: [0]
    pool.restore = lambda saved: ImagePool.restore(pool, saved)  # type: ignore[arg-type]
    state: Any = SimpleNamespace(
        _kl={role: AdaptiveKl(0.1) for role in (Role.PROPOSER, Role.SOLVER)},
        _floors={role: NoiseFloor() for role in Role},
        _may_shrink=True,
        window=RollingPercentile(),
        baseline=EmaBaseline(),
        monitor=CollapseMonitor(Alarms()),
        pool=pool,
        step=0,
    )
    with checkpoint.fitting("fuzz"):
        TrainState.load_state_dict(state, document)
    betas = [control.beta for control in state._kl.values()]
    assert all(type(count) is int and count > 0 for count in state.images_at_once.values())
    assert set(state.images_at_once) <= {"understanding", "generation"}
    taken = [state.window.state(), state.monitor.state(), state.seconds, state.baseline.value, betas]
    json.dumps(taken, allow_nan=False)


@fuzz(1000)
@given(
    key=st.sampled_from(
        [
            "betas",
            "replay_floors",
            "window",
            "baseline",
            "monitor",
            "pool",
            "nonfinite_in_a_row",
            "seconds",
            "images_at_once",
        ]
    ),
    value=st.one_of(json_values, st.sampled_from([np.nan, np.inf, -np.inf, True, -1, 2**70])),
    inside=st.booleans(),
)
def test_any_state_is_taken_in_or_one_checkpoint_error(
    key: str, value: Any, inside: bool, stored: tuple[Path, Any]
) -> None:
    state = json.loads((stored[0] / "state.json").read_text())
    if inside and isinstance(state[key], dict) and state[key]:
        state[key][sorted(state[key])[0]] = value
    else:
        state[key] = value
    try:
        take_in(json.loads(json.dumps(state)))
    except CheckpointError as error:
        assert "does not fit" in error.what or "images" in error.what or "place" in error.what


def test_the_good_state_is_taken_in(stored: tuple[Path, Any]) -> None:
    take_in(json.loads((stored[0] / "state.json").read_text()))
