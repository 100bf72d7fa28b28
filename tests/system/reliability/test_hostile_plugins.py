# ruff: noqa: PT017 - whether there is an error is open; if there is one, it must say something
"""Whatever a plugin announces, it hurts nobody but itself."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asg_core.backbones.registry import find_manifest, list_plugins
from asg_core.errors import PluginError
from devkit.json_values import json_values
from devkit.sizes import fuzz

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
