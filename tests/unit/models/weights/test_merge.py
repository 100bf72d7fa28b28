"""An export is the released folder with the adapters in it: every other byte stays, and it appears at once or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from asg_core.backbones.interface import Role
from asg_core.backbones.manifest import LoraSettings
from asg_core.errors import ConfigError, RunFolderError, WeightsError
from asg_core.models.lora import RoleAdapters
from asg_core.models.weights import merge
from asg_core.models.weights.inventory import read_inventory
from asg_core.models.weights.merge import adapted_weights, export_merged


def stored_name(name: str) -> str:
    return f"model.{name}"


@pytest.fixture
def model() -> nn.Module:
    """Two layers; the text roles change the first, the Generator the second."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"text": nn.Linear(6, 4, bias=False), "draw": nn.Linear(4, 5, bias=False)})
    text, draw = {"net": ["text"]}, {"net": ["draw"]}
    adapters = RoleAdapters(
        {"net": net}, {Role.PROPOSER: text, Role.SOLVER: text, Role.GENERATOR: draw}, LoraSettings(rank=2, alpha=4), 0
    )
    with torch.no_grad():
        for role in Role:
            for parameter in adapters.parameters(role).values():
                parameter.normal_()
    return net


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Three shards, a component folder, and what lies around beside weights."""
    folder = tmp_path / "release"
    (folder / "vae").mkdir(parents=True)
    (folder / ".cache").mkdir()
    shards = {
        "model-00001-of-00003.safetensors": {"model.odd": torch.ones(3).bfloat16(), "model.text.weight": base(4, 6)},
        "model-00002-of-00003.safetensors": {"model.draw.weight": base(5, 4), "model.mask": torch.ones(3).bool()},
        "model-00003-of-00003.safetensors": {"model.norm": torch.ones(4).bfloat16()},
    }
    placed = {name: file for file, tensors in shards.items() for name in tensors}
    size = sum(tensor.nbytes for tensors in shards.values() for tensor in tensors.values())
    for file, tensors in shards.items():
        save_file(tensors, folder / file, metadata={"format": "pt", "note": "kept"})
    index = {"metadata": {"total_size": size}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for file in ("config.json", "merges.txt", "README.md", ".cache/x.json", "pytorch_model.bin", "vae/config.json"):
        (folder / file).write_text("{}")
    save_file({"other": torch.zeros(2)}, folder / "raw.safetensors")
    save_file({"vae": torch.zeros(2)}, folder / "vae" / "weights.safetensors")
    return folder


def base(*size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(size[0])).bfloat16()


def files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: load_file(stored.file)[name] for name, stored in read_inventory(folder).items()}


@pytest.mark.parametrize("float32", [False, True])
def test_a_merged_matrix_is_base_plus_adapter_and_all_else_is_as_it_was(
    model: nn.Module, release: Path, tmp_path: Path, float32: bool
) -> None:
    merges = adapted_weights(model, [Role.SOLVER, Role.GENERATOR], stored_name)
    report = export_merged(merges, read_inventory(release), release, tmp_path / "out", float32=float32)
    before, after = tensors_of(release), tensors_of(tmp_path / "out")
    assert (report.merged, report.copied) == (("model.draw.weight", "model.text.weight"), 3)
    for name, role in (("text", Role.SOLVER), ("draw", Role.GENERATOR)):
        old, new = before.pop(f"model.{name}.weight"), after.pop(f"model.{name}.weight")
        wanted = old.float() + model[name].get_delta_weight(role.value)  # type: ignore[index, operator]
        assert torch.equal(new, wanted if float32 else wanted.bfloat16())
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items()
    )
    assert after.keys() == before.keys()
    for stored in read_inventory(tmp_path / "out").values():
        assert stored.begin % merge.ITEM_BYTES[stored.dtype] == 0
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors_of(tmp_path / "out").values())


def test_files_are_those_of_the_release_without_stale_weights(model: nn.Module, release: Path, tmp_path: Path) -> None:
    merges = adapted_weights(model, [Role.SOLVER], stored_name)
    export_merged(merges, read_inventory(release), release, tmp_path / "out")
    left_out = {"README.md", ".cache/x.json", "pytorch_model.bin", "raw.safetensors"}
    assert files(tmp_path / "out") == files(release) - left_out
    for file in files(tmp_path / "out") - {"model-00001-of-00003.safetensors"}:
        assert (tmp_path / "out" / file).read_bytes() == (release / file).read_bytes()


def test_metadata_of_a_rewritten_file_is_kept(model: nn.Module, release: Path, tmp_path: Path) -> None:
    merges = adapted_weights(model, [Role.SOLVER], stored_name)
    export_merged(merges, read_inventory(release), release, tmp_path / "out")
    header = (tmp_path / "out" / "model-00001-of-00003.safetensors").read_bytes()
    assert json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]["note"] == "kept"


def test_roles_on_the_same_matrix_and_no_role_at_all_are_refused(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match="proposer and solver adapters cannot be merged"):
        adapted_weights(model, [Role.PROPOSER, Role.SOLVER], stored_name)
    with pytest.raises(ConfigError, match="no adapter"):
        adapted_weights(model, [], stored_name)
    assert adapted_weights(model, [Role.SOLVER, Role.SOLVER], stored_name).keys() == {"model.text.weight"}


def test_weights_of_another_model_and_an_existing_folder_are_refused(
    model: nn.Module, release: Path, tmp_path: Path
) -> None:
    merges = adapted_weights(model, [Role.SOLVER], stored_name)
    stored = read_inventory(release)
    del stored["model.text.weight"]
    with pytest.raises(WeightsError, match=r"solver adapter changes 'model\.text\.weight'"):
        export_merged(merges, stored, release, tmp_path / "out")
    with pytest.raises(RunFolderError, match="exists"):
        export_merged(merges, read_inventory(release), release, tmp_path)
    assert not (tmp_path / "out").exists()


def test_an_export_that_fails_leaves_nothing(
    model: nn.Module, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "_rewrite", lambda *args, **kwargs: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        export_merged(
            adapted_weights(model, [Role.SOLVER], stored_name), read_inventory(release), release, tmp_path / "out"
        )
    assert {path.name for path in tmp_path.iterdir()} == {"release"}
