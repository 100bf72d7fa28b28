"""The kit itself: backbones that are broken on purpose, each caught by the check that names the defect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from asg_core.backbones.manifest import LoadRequest
from asg_core.testing import check_backbone
from asg_core.testing.conformance import imports
from asg_core.tiny.backbone import TinyBackbone, TinyFlowBackbone
from asg_core.tiny.vocabulary import Vocabulary
from asg_core.tiny.weights import load_base, to_device
from devkit.sizes import at_full_size

from .mutants import MUTANTS


def _factory(cls: type[TinyBackbone]) -> Callable[..., TinyBackbone]:
    def load(**settings: Any) -> TinyBackbone:
        request = LoadRequest(**settings)
        return cls(to_device(load_base(None), request.device, "float32"), Vocabulary(), request)

    return load


ON_A_DEVICE = [name for name, (_, check) in MUTANTS.items() if check == "device.one"]
"""Each runs a whole model on the device that is not there; two kinds of mixture are tried by default."""
MORE = [name for name in ON_A_DEVICE if name not in ("NoiseOfTheHost", "IndexedByTheDevice")]


@pytest.mark.parametrize("name", at_full_size([name for name in MUTANTS if name not in MORE], MORE))
def test_a_broken_backbone_is_caught_by_the_check_that_names_its_defect(name: str):
    cls, check = MUTANTS[name]
    try:
        report = check_backbone(_factory(cls), only=[check])
    finally:
        torch.set_grad_enabled(True)
    assert [outcome.check.id for outcome in report.failures] == [check], report.outcomes


SOUND = sorted({check for _, check in MUTANTS.values()})


@pytest.mark.parametrize("check", at_full_size(["drawing.flow_records", "embed.sees", "text.seeds"], SOUND))
def test_the_same_factory_without_a_defect_passes(check: str):
    sound = TinyFlowBackbone if check == "drawing.flow_records" else TinyBackbone
    assert check_backbone(_factory(sound), only=[check]).passed


def test_a_plugin_module_that_imports_torch_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "heavy_plugin.py").write_text("import torch\n")
    (tmp_path / "light_plugin.py").write_text("import json\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module, passed in (("heavy_plugin", False), ("light_plugin", True)):
        monkeypatch.setattr(imports, "_plugin_module", lambda _, module=module: module)
        assert check_backbone(_factory(TinyBackbone), only=["imports.manifest"]).passed is passed


@pytest.mark.parametrize(
    "line",
    [
        "import flash_attn",
        "import torch; torch.cuda.is_initialized = lambda: True",
        "import socket; socket.socket().connect(('127.0.0.1', 9))",
    ],
)
def test_model_code_that_does_more_than_define_is_caught(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "greedy_model.py").write_text(f"try:\n    {line}\nexcept OSError:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(TinyBackbone, "__module__", "greedy_model")
    assert not check_backbone(_factory(TinyBackbone), only=["imports.side_effects"]).passed
