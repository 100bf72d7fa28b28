"""Export: the released layout with adapters merged in behaves as the model with its adapters on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from asg_blip3o.backbone import Blip3oBackbone
from asg_blip3o.export import export
from asg_blip3o.weights_map import read_release
from PIL import Image
from safetensors.torch import load_file

from asg_core.backbones.interface import ImageRequest, ImageSampling, Role, TextRequest, TextSampling
from asg_core.errors import ConfigError, RunFolderError

Load = Callable[..., Blip3oBackbone]
Wake = Callable[..., None]


@pytest.fixture
def trained(load: Load, wake: Wake) -> Blip3oBackbone:
    backbone = load()
    for seed, role in enumerate(Role):
        wake(backbone, role, seed)
    return backbone


def test_the_exported_base_is_the_solver_and_the_generator(
    trained: Blip3oBackbone, load: Load, picture: Callable[..., Image.Image], released: Path, tmp_path: Path
) -> None:
    report = export(trained, released, tmp_path / "out")
    exported = load(tmp_path / "out")
    requests = [TextRequest("What is on the left?", picture(1), seed) for seed in range(3)]
    adapted = trained.solve(requests, TextSampling(6), Role.SOLVER)
    merged = exported.solve(requests, TextSampling(6), None)
    assert [s.token_ids for s in adapted] == [s.token_ids for s in merged]
    assert torch.allclose(torch.tensor(adapted[0].logprobs), torch.tensor(merged[0].logprobs), atol=1e-4)
    for seed in (1, 2):
        # The exported language model is the Solver's; drawing from the base's query states isolates the flow network.
        states = trained.drawing.conditions(["two red bands"]).detach()
        x = torch.randn(1, *trained.model.flow.sample_shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            with trained.adapters.use(Role.GENERATOR):
                velocity = trained.model.flow(x, torch.tensor([500]), trained.model.flow.context(states))
            base = exported.model.flow(x, torch.tensor([500]), exported.model.flow.context(states))
        assert torch.allclose(velocity, base, atol=1e-4)
    assert len(report.merged) == 14 + 10
    assert report.copied == len(read_release(released).inventory) - 24


def test_files_names_shapes_and_untouched_tensors_are_those_of_the_release(
    trained: Blip3oBackbone, released: Path, tmp_path: Path
) -> None:
    report = export(trained, released, tmp_path / "out", [Role.GENERATOR])
    files = sorted(path.relative_to(released) for path in released.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(report.directory) for path in report.directory.rglob("*") if path.is_file())
    for file in files:
        old, new = released / file, report.directory / file
        if file.suffix != ".safetensors":
            assert old.read_bytes() == new.read_bytes()
            continue
        before, after = load_file(old), load_file(new)
        assert {n: (t.shape, t.dtype) for n, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}
        assert {n for n, t in before.items() if not torch.equal(t, after[n])} == set(before) & set(report.merged)


def test_two_roles_on_the_same_layers_are_refused(trained: Blip3oBackbone, released: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="proposer and solver adapters cannot be merged"):
        export(trained, released, tmp_path / "out", [Role.PROPOSER, Role.SOLVER])
    assert not (tmp_path / "out").exists()


def test_an_export_never_overwrites(trained: Blip3oBackbone, released: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="exists"):
        export(trained, released, tmp_path)


def test_an_export_draws_with_the_merged_generator(
    trained: Blip3oBackbone, load: Load, released: Path, tmp_path: Path
) -> None:
    export(trained, released, tmp_path / "out", [Role.GENERATOR])
    requests = [ImageRequest("two red bands", seed) for seed in range(2)]
    adapted = trained.generate(requests, ImageSampling(), Role.GENERATOR)
    merged = load(tmp_path / "out").generate(requests, ImageSampling(), None)
    for a, b in zip(adapted, merged, strict=True):
        assert torch.allclose(a.trajectory["features"], b.trajectory["features"], atol=1e-3)
