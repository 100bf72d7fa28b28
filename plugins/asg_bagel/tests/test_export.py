"""Merged adapters in the released layout: the same model without adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asg_bagel.backbone import BagelBackbone
from asg_bagel.export import export
from asg_core.backbones.interface import ImageRequest, ImageSampling, Role, TextRequest, TextSampling
from asg_core.errors import ConfigError, RunFolderError

from bagel_fixtures import picture


def test_a_merged_solver_answers_as_its_adapter_did(
    backbone: BagelBackbone, load: Callable[..., BagelBackbone], golden: Path, tmp_path: Path
) -> None:
    report = export(backbone, golden / "checkpoint", tmp_path / "merged", [Role.SOLVER], float32=True)
    merged = load(tmp_path / "merged")
    assert len(report.merged) == 7 * backbone.model.config.llm.num_hidden_layers
    assert report.copied + len(report.merged) == len(merged.load_report.matched)
    samples = backbone.solve([TextRequest("what is the cat?", picture(1), 1)], TextSampling(6))
    (wanted,) = backbone.token_logits(samples, Role.SOLVER)
    (actual,) = merged.token_logits(samples, None)
    torch.testing.assert_close(actual.logprobs, wanted.logprobs, atol=1e-4, rtol=0)


def test_a_merged_generator_draws_as_its_adapter_did(
    backbone: BagelBackbone, load: Callable[..., BagelBackbone], golden: Path, tmp_path: Path
) -> None:
    export(backbone, golden / "checkpoint", tmp_path / "merged", [Role.GENERATOR], float32=True)
    request = [ImageRequest("a cat", 3)]
    (wanted,) = backbone.generate(request, ImageSampling())
    (actual,) = load(tmp_path / "merged").generate(request, ImageSampling(), None)
    torch.testing.assert_close(actual.trajectory["latent"], wanted.trajectory["latent"], atol=1e-4, rtol=0)


def test_layout_names_shapes_and_dtypes_stay_as_released(backbone: BagelBackbone, golden: Path, tmp_path: Path) -> None:
    source = golden / "checkpoint"
    report = export(backbone, source, tmp_path / "merged", [Role.PROPOSER])
    assert {file.name for file in source.iterdir()} == {file.name for file in (tmp_path / "merged").iterdir()}
    for file in ("ema.safetensors", "ae.safetensors"):
        before, after = load_file(source / file), load_file(tmp_path / "merged" / file)
        assert {n: (t.shape, t.dtype) for n, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {name for name in report.merged if name in before}
    assert report.merged
    assert not any("moe_gen" in name for name in report.merged)


def test_two_text_roles_and_existing_folders_are_refused(backbone: BagelBackbone, golden: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be merged"):
        export(backbone, golden / "checkpoint", tmp_path / "merged", [Role.PROPOSER, Role.SOLVER])
    with pytest.raises(RunFolderError, match="exists"):
        export(backbone, golden / "checkpoint", tmp_path, [Role.SOLVER])
