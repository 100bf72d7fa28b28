"""Plugins found through real entry points: broken ones are named with a reason and hurt nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from asg_core.backbones.loading import load_backbone, validate_options
from asg_core.backbones.registry import PluginRecord, find_manifest, list_plugins, resolve
from asg_core.errors import CapabilityError, ConfigError, PluginError, WeightsError

Install = Callable[..., None]

GOOD = """
@hookimpl
def asg_backbones():
    return [manifest("NAME")]
"""

EXTENSION = """
from asg_core.backbones.hookspecs import Extension
@hookimpl
def asg_extensions():
    return [Extension("verb", "play", "nowhere:add_parser")]
"""

BROKEN = {
    "import error": ("import no_such_module_anywhere", "broken", "ModuleNotFoundError: No module named"),
    "syntax error": ("def (:", "broken", "SyntaxError"),
    "exits on import": ("raise SystemExit('bye')", "broken", "SystemExit: bye"),
    "hook raises": ("@hookimpl\ndef asg_backbones(): raise RuntimeError('no luck')", "broken", "RuntimeError: no luck"),
    "not a manifest": ("@hookimpl\ndef asg_backbones(): return [{'name': 'x'}]", "broken", "returned dict"),
    "not a list": ("@hookimpl\ndef asg_backbones(): return 3", "broken", "TypeError"),
    "bad manifest": (
        "@hookimpl\ndef asg_backbones(): return [manifest('Bad Name')]",
        "broken",
        "String should match pattern",
    ),
    "no hook": ("x = 1", "broken", "no hook of asg_core"),
    "unknown hook": (GOOD.replace("NAME", "other") + "@hookimpl\ndef asg_trainers(): pass", "broken", "asg_trainers"),
    "wrong arguments": ("@hookimpl\ndef asg_backbones(model): return []", "broken", "model"),
    "other interface": (
        "@hookimpl\ndef asg_backbones(): return [manifest('sick', plugin_api=99)]",
        "incompatible",
        "for plugin interface 99, this asg_core has 1",
    ),
    "name of the core's own": (
        GOOD.replace("NAME", "tiny"),
        "duplicate",
        "already provided by plugin 'tiny' of asg-core",
    ),
    "same name twice": (
        "@hookimpl\ndef asg_backbones(): return [manifest('sick')] * 2",
        "broken",
        "backbone 'sick' twice",
    ),
    "not an extension": ("@hookimpl\ndef asg_extensions(): return ['play']", "broken", "returned str"),
    "an extension twice": (EXTENSION.replace("]", "] * 2"), "broken", "verb 'play' twice"),
    "another's extension": (EXTENSION.replace("play", "nice"), "duplicate", "provided by plugin 'nice_plugin'"),
}


def record(name: str) -> PluginRecord:
    return next(r for r in list_plugins() if r.name == name)


def test_the_core_registers_its_own_backbone_through_the_same_door() -> None:
    own = list_plugins()[0]
    assert (own.name, own.distribution, own.state) == ("tiny", "asg-core", "ok")
    assert find_manifest("tiny") in own.backbones


def test_a_third_party_backbone_is_found(install: Install) -> None:
    install("nice_plugin", GOOD.replace("NAME", "nice"))
    assert find_manifest("nice").factory == "nice_plugin:load"
    found = record("nice_plugin")
    assert (found.state, found.version, found.reason) == ("ok", "1.2", None)


@pytest.mark.parametrize("case", BROKEN)
def test_a_bad_plugin_is_named_with_its_reason_and_hurts_nobody(case: str, install: Install) -> None:
    source, state, reason = BROKEN[case]
    install("nice_plugin", GOOD.replace("NAME", "nice") + EXTENSION.replace("play", "nice"))
    install("sick_plugin", source, entry="sick")
    found = record("sick")
    assert found.state == state
    assert reason in str(found.reason)
    assert found.backbones == found.extensions == ()
    assert find_manifest("tiny").factory.startswith("asg_core.tiny")
    assert find_manifest("nice").name == "nice"
    with pytest.raises(PluginError) as raised:
        find_manifest("sick")
    assert state in raised.value.what
    assert reason in raised.value.why


def test_of_two_plugins_with_one_name_the_first_package_wins_whole(install: Install) -> None:
    both = "@hookimpl\ndef asg_backbones(): return [manifest('twin'), manifest('extra')]"
    install("b_plugin", both)
    install("a_plugin", GOOD.replace("NAME", "twin"))
    assert find_manifest("twin").factory == "a_plugin:load"
    assert record("b_plugin").state == "duplicate"
    with pytest.raises(PluginError):
        find_manifest("extra")


def test_a_misspelt_backbone_gets_a_suggestion() -> None:
    with pytest.raises(PluginError, match="tinny") as raised:
        find_manifest("tinny")
    assert "Did you mean 'tiny'?" in raised.value.fix


def test_plugins_can_be_blocked(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched = "import pathlib; pathlib.Path(__file__).with_suffix('.imported').touch()"
    install("one_plugin", touched + GOOD.replace("NAME", "one"), entry="one")
    install("two_plugin", GOOD.replace("NAME", "two"), entry="two")
    monkeypatch.setenv("ASG_DISABLE_PLUGINS", "one, three")
    assert [record(n).state for n in ("one", "two")] == ["blocked", "ok"]
    assert not list(tmp_path.glob("*.imported"))
    with pytest.raises(PluginError, match="blocked") as raised:
        find_manifest("one")
    assert "ASG_DISABLE_PLUGINS" in raised.value.fix
    monkeypatch.setenv("ASG_DISABLE_PLUGINS", "*")
    assert {r.name: r.state for r in list_plugins() if r.name in ("one", "two", "tiny")} == {
        "one": "blocked",
        "two": "blocked",
        "tiny": "ok",
    }


def test_lazy_targets_fail_with_the_target_and_a_remedy(install: Install) -> None:
    assert resolve("os.path:join") is os.path.join
    install("lazy_plugin", "import no_such_module_anywhere")
    for target, why, fix in [
        ("lazy_plugin:load", "no_such_module_anywhere", "install the package that provides"),
        ("no_such_plugin:load", "no_such_plugin", "install the package"),
        ("os.path:nothing", "nothing", "traceback"),
    ]:
        with pytest.raises(PluginError, match=target) as raised:
            resolve(target)
        assert why in raised.value.why
        assert fix in raised.value.fix


LOADING = """
from pydantic import BaseModel, Field

class Options(BaseModel, extra="forbid"):
    steps: int = Field(4, ge=1, le=50, description="drawing steps")
    guidance: float = Field(3.0, gt=0)

def load(request):
    raise MemoryError(f"steps={request.options.steps} dtype={request.dtype} device={request.device}")

def not_a_model(request):
    return object()

@hookimpl
def asg_backbones():
    return [
        manifest("fails", options=f"{__name__}:Options"),
        manifest("odd", factory=f"{__name__}:not_a_model"),
        manifest("hungry", weights_embedded=False),
        manifest("gone", factory="no_such_module_anywhere:load"),
    ]
"""


def test_whatever_a_factory_raises_is_one_typed_error(install: Install) -> None:
    install("loading_plugin", LOADING)
    with pytest.raises(PluginError, match="'fails' could not be loaded") as raised:
        load_backbone("fails", device="cpu", options={"steps": 7})
    assert "MemoryError: steps=7 dtype=float32 device=cpu" in raised.value.why
    with pytest.raises(PluginError, match="not a Backbone"):
        load_backbone("odd", device="cpu")
    with pytest.raises(PluginError, match="no_such_module_anywhere"):
        load_backbone("gone", device="cpu")


def test_options_are_checked_before_anything_is_loaded(install: Install) -> None:
    install("loading_plugin", LOADING)
    with pytest.raises(ConfigError) as raised:
        load_backbone("fails", device="cpu", options={"setps": 7})
    assert "unknown key 'backbone_options.setps'" in raised.value.what
    assert "Did you mean 'backbone_options.steps'?" in raised.value.fix
    with pytest.raises(ConfigError, match=r"backbone_options\.steps = 99") as raised:
        load_backbone("fails", device="cpu", options={"steps": 99})
    assert "a whole number >= 1, <= 50 (drawing steps)" in raised.value.why
    with pytest.raises(ConfigError, match=r"backbone_options\.steps"):
        load_backbone("odd", device="cpu", options={"steps": 1})
    assert validate_options(find_manifest("fails"), {"guidance": 2}).guidance == 2.0


def test_weights_device_and_capabilities_are_checked_first(install: Install, tmp_path: Path) -> None:
    install("loading_plugin", LOADING)
    with pytest.raises(WeightsError, match="needs weights") as raised:
        load_backbone("hungry", device="cpu")
    assert "weights=DIR" in raised.value.fix
    with pytest.raises(WeightsError, match="nowhere"):
        load_backbone("hungry", weights=tmp_path / "nowhere", device="cpu")
    with pytest.raises(CapabilityError, match="gradient checkpointing"):
        load_backbone("fails", device="cpu", gradient_checkpointing=True)
    for device in ("gpu", "cuda:99", "meta"):
        with pytest.raises(ConfigError, match=f"device={device}"):
            load_backbone("fails", device=device)


HEAVY = "{'torch', 'transformers', 'diffusers', 'peft', 'accelerate', 'matplotlib'}"


@pytest.mark.parametrize(
    "code",
    [
        "import asg_core, asg_core.backbones.manifest, asg_core.config.schema, asg_core.backbones.hookspecs",
        "import asg_core.runs.configuration as c; c.load_run_config(None, ['steps=3'])",
        "import asg_core.cli; assert asg_core.cli.main(['--help']) == 0",
        "import asg_core.cli; assert asg_core.cli.main(['train', '--help']) == 0",
        "import asg_core.cli; assert asg_core.cli.main(['plugins']) == 0",
        "import asg_core.cli; assert asg_core.cli.main(['config']) == 0",
        "import asg_core.cli; assert asg_core.cli.main(['train', 'steps=-1']) == 2",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str) -> None:
    check = f"import sys\n{code}\nloaded = {HEAVY} & set(sys.modules)\nassert not loaded, loaded"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_needs_not_even_pydantic() -> None:
    check = (
        "import sys, asg_core.cli as c; c.main(['--help']); assert not {'pydantic', 'numpy', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
