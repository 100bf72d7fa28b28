# ruff: noqa: PT017 - whether there is an error is open; if there is one, it must say something
"""Whatever a configuration, a checkpoint or a plugin's metadata holds: one typed error at most, nothing executed."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asg_core.backbones.interface import Role
from asg_core.backbones.registry import find_manifest, list_plugins
from asg_core.config.schema import Alarms, RunConfig
from asg_core.config.strict_yaml import parse_yaml
from asg_core.data.image_pool import ImagePool
from asg_core.errors import AsgError, CheckpointError, ConfigError, PluginError
from asg_core.method.advantages import EmaBaseline
from asg_core.method.losses import AdaptiveKl
from asg_core.method.replay import NoiseFloor
from asg_core.method.token_entropy import RollingPercentile
from asg_core.runs.configuration import load_run_config
from asg_core.training import checkpoint, checkpoint_files
from asg_core.training.alarms import CollapseMonitor
from asg_core.training.state import TrainState
from devkit.sizes import fuzz

# -- configuration ----------------------------------------------------------------------------------------------------

YAML_PIECES = (
    "steps",
    "seed",
    "solve",
    "temperature",
    "backbone",
    "images",
    ": ",
    ":",
    "- ",
    "\n",
    "\n  ",
    "{",
    "}",
    "[",
    "]",
    ",",
    "&a ",
    "*a",
    "<<",
    "!!python/object/apply:os.system ",
    "!!python/name:os.getcwd",
    "!!binary ",
    "!!set ",
    "!",
    "!<tag:x>",
    "%YAML 1.1\n---\n",
    "---",
    "...",
    "? ",
    "| ",
    ">\n ",
    "'",
    '"',
    "\\x41",
    "#",
    "${oc.env:HOME}",
    "${x}",
    "???",
    "1",
    "-3",
    "0x10",
    "010",
    "1e999",
    "1_000",
    ".inf",
    ".nan",
    "9" * 400,
    "true",
    "no",
    "~",
    "null",
    "2024-01-01",
    "1:30",
    "\t",
    "\0",
    "é",
    "\u2028",
    "😀",
    "\ufeff",
    "=",
    "<<: *a",
)
yaml_texts = st.one_of(
    st.lists(st.sampled_from(YAML_PIECES), max_size=16).map("".join),
    st.lists(st.tuples(st.sampled_from(YAML_PIECES), st.sampled_from(YAML_PIECES)), max_size=6).map(
        lambda rows: "\n".join(f"{key}: {value}" for key, value in rows)
    ),
    st.text(max_size=40),
)


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(v) for key, v in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or type(value) in (str, int, bool) or (type(value) is float and np.isfinite(value))


@fuzz(2000)
@given(yaml_texts)
def test_yaml_is_plain_data_or_a_configuration_error(text: str) -> None:
    try:
        value = parse_yaml(text, "fuzz")
    except ConfigError as error:
        assert "fuzz" in error.what
        return
    assert is_plain(value)


KEYS = (
    "steps",
    "seed",
    "images",
    "out",
    "weights",
    "device",
    "trackers",
    "solve",
    "solve.temperature",
    "policy.clip",
    "ste.reduce",
    "alarms",
    "schedule.ratio",
    "schedule.mode",
    "lora.rank",
    "backbone",
    "backbone_options",
    "backbone_options.x",
    "",
    ".",
    "a[0]",
    "__class__",
    "model_config",
    "steps.x",
)


@fuzz(400)
@given(
    st.lists(
        st.tuples(st.sampled_from(KEYS), st.one_of(yaml_texts, st.sampled_from(YAML_PIECES))), min_size=1, max_size=3
    )
)
def test_settings_give_a_configuration_or_a_typed_error(words: list[tuple[str, str]]) -> None:
    try:
        config = load_run_config(None, [f"{key}={value}" for key, value in words])
    except AsgError as error:
        assert error.what
        assert error.fix
        return
    assert RunConfig.model_validate(config.model_dump()) == config


def test_absurdly_large_numbers_are_refused_or_cost_nothing() -> None:
    from asg_core.training.preflight import check_plan

    for word in ("steps=" + "9" * 30, "steps=" + "9" * 4000, "images_per_step=1e3", "seed=" + "9" * 30):
        with pytest.raises(ConfigError):
            load_run_config(None, [word])
    for ratio in ("[3,2]", "[1000000000,1000000000]"):
        config = load_run_config(None, ["steps=1000000000", f"schedule.ratio={ratio}"])
        check_plan(config, find_manifest("tiny"))


# -- checkpoints ------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["../x", "/etc/passwd", "state.json", "proposer", "MT19937"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)


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
                "random.safetensors",
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
        checkpoint.load_random(step, state)
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


# -- plugins ----------------------------------------------------------------------------------------------------------

names = st.one_of(
    st.text(max_size=12), st.sampled_from(["tiny", "asg_core", "", " ", "*", "a.b", "../x", "<b>", "x" * 300])
)
targets = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "os",
            "os:system",
            "os.path:join",
            "asg_core",
            "asg_core.tiny.plugin",
            "no.such:thing",
            ":",
            "a:b:c",
            "sys:exit",
            "this is no target",
            "asg_core.errors:AsgError",
            "json:loads",
            "asg_core:__version__",
            "builtins:eval",
        ]
    ),
)


@fuzz(300)
@given(st.lists(st.tuples(names, targets), max_size=4), names)
def test_any_entry_point_becomes_a_record_and_never_hurts_the_core(entries: list[tuple[str, str]], wanted: str) -> None:
    own = next(e for e in importlib.metadata.entry_points(group="asg_core") if e.value == "asg_core.tiny.plugin")
    made = [importlib.metadata.EntryPoint(name, value, "asg_core") for name, value in entries]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asg_core.backbones.registry.entry_points", lambda group: [*made, own])
        found = list_plugins()
        assert len(found) == len(made) + 1
        assert all(r.reason for r in found if r.state != "ok")
        assert find_manifest("tiny").name == "tiny"
        try:
            assert find_manifest(wanted).name == wanted
        except PluginError as error:
            assert error.fix


@fuzz(400)
@given(
    st.one_of(
        json_values,
        st.lists(
            st.dictionaries(
                st.sampled_from(
                    ["name", "summary", "licence", "capabilities", "factory", "defaults", "plugin_api", "options", "x"]
                ),
                st.one_of(json_values, st.sampled_from(["nice", "os:system", "m:f", {"text": True}])),
                max_size=9,
            ),
            max_size=2,
        ),
    )
)
def test_any_answer_of_a_hook_becomes_a_record(answer: Any) -> None:
    import asg_core.backbones.manifest
    from asg_core.backbones.hookspecs import hookimpl

    def asg_backbones() -> Any:
        made = answer
        if isinstance(answer, list) and all(isinstance(a, dict) for a in answer):
            made = [asg_core.backbones.manifest.BackboneManifest(**{str(k): v for k, v in a.items()}) for a in answer]
        return made

    module = SimpleNamespace(asg_backbones=hookimpl(asg_backbones))
    sys.modules["fuzzed_plugin"] = module  # type: ignore[assignment]
    entry = importlib.metadata.EntryPoint("fuzzed", "fuzzed_plugin", "asg_core")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("asg_core.backbones.registry.entry_points", lambda group: [entry])
            (record,) = list_plugins()
    finally:
        del sys.modules["fuzzed_plugin"]
    assert record.state in ("ok", "broken", "incompatible")
    assert record.reason or record.state == "ok"


METADATA = (
    "",
    "Name: \n",
    "Name: x\n",
    "Version: 1\n",
    "\0\n",
    "Name: a\nVersion: é\n",
    "nonsense",
    "Name: a\n b\nVersion: \n",
)


@pytest.mark.parametrize("metadata", METADATA)
@pytest.mark.parametrize(
    "listing", ["[asg_core]\nx = y", "[asg_core]\n= \n[[[", "x = y\n", "[asg_core]\nx = y\nx = z [e]\n", "\0"]
)
def test_distributions_with_damaged_metadata_hurt_nobody(
    metadata: str, listing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "sick-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(metadata)
    (info / "entry_points.txt").write_text(listing)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_manifest("tiny").name == "tiny"
    assert all(r.state in ("ok", "broken") for r in list_plugins())
