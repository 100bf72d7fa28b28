"""Export to the released layout."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from asg_vargpt.backbone import VargptBackbone
from asg_vargpt.export import export
from safetensors.torch import load_file

from asg_core.backbones.interface import ImageRequest, ImageSampling, Role
from asg_core.errors import ConfigError, RunFolderError
from asg_core.models.weights.inventory import read_inventory

Load = Callable[..., VargptBackbone]
Wake = Callable[..., None]


def test_a_merged_checkpoint_is_the_adapted_model(load: Load, wake: Wake, relative: Path, tmp_path: Path) -> None:
    backbone = load(relative, generator_adapter="language_model_and_decoder")
    wake(backbone, Role.GENERATOR)
    report = export(backbone, relative, tmp_path / "out", (Role.GENERATOR,))
    assert "vargpt_gen.block_chunks.1.module.0.ca.mat_kv.weight" in report.merged
    assert "model.layers.2.mlp.down_proj.weight" in report.merged
    assert len(report.merged) + report.copied == len(read_inventory(relative))
    merged = load(tmp_path / "out")
    request = [ImageRequest("a kite", 0)]
    ours = backbone.generate(request, ImageSampling())[0]
    theirs = merged.generate(request, ImageSampling(), role=None)[0]
    assert torch.equal(ours.trajectory["bits"], theirs.trajectory["bits"])
    assert torch.allclose(ours.token_logprobs, theirs.token_logprobs, atol=1e-4)  # type: ignore[arg-type]


def test_layout_dtypes_and_unmerged_tensors_are_kept(
    backbone: VargptBackbone, wake: Wake, golden: Path, tmp_path: Path
) -> None:
    wake(backbone, Role.SOLVER)
    source, target = golden / "ckpt", tmp_path / "out"
    merged = set(export(backbone, source, target).merged)
    assert sorted(file.name for file in source.iterdir()) == sorted(file.name for file in target.iterdir())
    assert len(merged) == 2 * 7
    for shard in source.glob("*.safetensors"):
        before, after = load_file(shard), load_file(target / shard.name)
        for name, tensor in before.items():
            assert after[name].dtype == tensor.dtype
            assert torch.equal(after[name], tensor) == (name not in merged), name


def test_merged_tensors_can_be_kept_in_float32(
    backbone: VargptBackbone, wake: Wake, golden: Path, tmp_path: Path
) -> None:
    wake(backbone, Role.SOLVER, size=1e-5)
    rounded = export(backbone, golden / "ckpt", tmp_path / "rounded")
    exact = export(backbone, golden / "ckpt", tmp_path / "exact", float32=True)
    name = exact.merged[0]
    dtypes = {report.directory.name: read_inventory(report.directory)[name].dtype for report in (rounded, exact)}
    assert dtypes == {"rounded": "BF16", "exact": "F32"}


def test_two_roles_or_an_existing_directory_are_refused(backbone: VargptBackbone, golden: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="solver and generator adapters cannot be merged"):
        export(backbone, golden / "ckpt", tmp_path / "out", (Role.SOLVER, Role.GENERATOR))
    shutil.copytree(golden, tmp_path / "out")
    with pytest.raises(RunFolderError, match="exists"):
        export(backbone, golden / "ckpt", tmp_path / "out")
