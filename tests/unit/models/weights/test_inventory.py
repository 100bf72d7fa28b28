"""What a folder of weights holds is known from names and headers, and nothing outside the folder is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from asg_core.errors import WeightsError
from asg_core.models.weights.inventory import check_tokenizer_files, path_inside, read_header, read_inventory

TENSORS = {"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(1, dtype=torch.int64)}
OUTSIDE = ["../outside.safetensors", "sub/../../outside.safetensors", "..\\outside.safetensors", "C:\\outside", ""]


def write_index(folder: Path, weight_map: dict[str, str], name: str = "model.safetensors.index.json") -> None:
    (folder / name).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")


def shard(folder: Path, stem: str = "model", index: bool = True) -> list[Path]:
    """``TENSORS`` in three files."""
    files = []
    for i, (name, tensor) in enumerate(TENSORS.items(), 1):
        files.append(folder / f"{stem}-{i:05}-of-00003.safetensors")
        save_file({name: tensor}, files[-1])
    if index:
        placed = {name: file.name for name, file in zip(TENSORS, files, strict=True)}
        write_index(folder, placed, f"{stem}.safetensors.index.json")
    return files


@pytest.mark.parametrize("layout", ["whole", "index", "shards"])
def test_every_layout_gives_the_same_names_shapes_and_dtypes(tmp_path: Path, layout: str) -> None:
    if layout == "whole":
        save_file(TENSORS, tmp_path / "model.safetensors")
    else:
        shard(tmp_path, index=layout == "index")
    stored = read_inventory(tmp_path)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in stored.items()} == {
        "a": ((2, 3), "F32"),
        "b": ((4,), "BF16"),
        "c": ((1,), "I64"),
    }
    for name, tensor in stored.items():
        data = tensor.file.read_bytes()[tensor.begin : tensor.end]
        assert data == TENSORS[name].view(torch.uint8).numpy().tobytes()


def test_no_data_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.zeros(1000)}, tmp_path / "model.safetensors")
    monkeypatch.setattr("safetensors.safe_open", None)
    with (tmp_path / "model.safetensors").open("rb+") as file:
        file.seek(-4000, 2)
        file.write(b"\xff" * 4000)
    assert read_inventory(tmp_path)["a"].shape == (1000,)


def test_a_whole_file_wins_over_an_index_and_the_first_stem_over_the_next(tmp_path: Path) -> None:
    shard(tmp_path)
    save_file({"whole": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert read_inventory(tmp_path).keys() == {"whole"}
    save_file({"averaged": torch.zeros(1)}, tmp_path / "ema.safetensors")
    assert read_inventory(tmp_path, ("ema", "model")).keys() == {"averaged"}
    assert read_inventory(tmp_path, ("ema",), beside=("model", "absent")).keys() == {"averaged", "whole"}


def test_a_variant_and_a_lone_file_of_any_name_are_found_on_request_only(tmp_path: Path) -> None:
    save_file({"lone": torch.zeros(1)}, tmp_path / "weights.bf16.safetensors")
    assert read_inventory(tmp_path, ("weights",), variant="bf16").keys() == {"lone"}
    assert read_inventory(tmp_path, any_name=True).keys() == {"lone"}
    with pytest.raises(WeightsError, match=r"has no model\.safetensors"):
        read_inventory(tmp_path)


@pytest.mark.parametrize("name", [*OUTSIDE, "/outside.safetensors", None, 3])
def test_an_index_cannot_name_a_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "weights"
    (folder / "sub").mkdir(parents=True)
    save_file(TENSORS, tmp_path / "outside.safetensors")
    write_index(folder, dict.fromkeys(TENSORS, name))
    with pytest.raises(WeightsError, match=r"model\.safetensors\.index\.json names") as caught:
        read_inventory(folder)
    assert str(folder) in caught.value.why
    assert "again" in caught.value.fix


def test_an_absolute_path_into_the_folder_itself_is_refused_too(tmp_path: Path) -> None:
    (file,) = [tmp_path / "a.safetensors"]
    save_file(TENSORS, file)
    write_index(tmp_path, dict.fromkeys(TENSORS, str(file)))
    with pytest.raises(WeightsError, match="names"):
        read_inventory(tmp_path)


def test_links_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    """A cache holds ``snapshots/x/model.safetensors -> ../../blobs/hash``: the name is inside, the link is not."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "x"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    files = shard(blobs)
    for file in [*files, blobs / "model.safetensors.index.json"]:
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert read_inventory(snapshot).keys() == TENSORS.keys()


@pytest.mark.parametrize("name", OUTSIDE)
def test_one_rule_judges_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError):
        path_inside(tmp_path, name, tmp_path / "manifest.json")
    assert path_inside(tmp_path, "sub/a.bin", tmp_path / "manifest.json") == tmp_path / "sub" / "a.bin"
    assert path_inside(tmp_path, "a..b", tmp_path / "manifest.json") == tmp_path / "a..b"


@pytest.mark.parametrize("name", ["../tokenizer.4.0.json", "/tokenizer.4.0.json"])
def test_a_tokenizer_configuration_cannot_name_a_file_outside(tmp_path: Path, name: str) -> None:
    check_tokenizer_files(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"fast_tokenizer_files": ["tokenizer.json", "tokenizer.4.0.json"]}))
    check_tokenizer_files(tmp_path)
    config.write_text(json.dumps({"fast_tokenizer_files": ["tokenizer.json", name]}))
    with pytest.raises(WeightsError, match="tokenizer_config"):
        check_tokenizer_files(tmp_path)


def test_what_is_incomplete_is_named(tmp_path: Path) -> None:
    files = shard(tmp_path)
    files[1].unlink()
    with pytest.raises(WeightsError, match=r"lacks model-00002-of-00003\.safetensors") as caught:
        read_inventory(tmp_path)
    assert "'b'" in caught.value.why
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(WeightsError, match="2 of 3 shards"):
        read_inventory(tmp_path)


def test_an_index_that_promises_a_tensor_its_shard_lacks_is_refused(tmp_path: Path) -> None:
    files = shard(tmp_path)
    placed = {"a": files[0].name, "b": files[0].name, "c": files[2].name}
    write_index(tmp_path, {**placed, "d": files[1].name})
    with pytest.raises(WeightsError, match="tensor 'b' is missing"):
        read_inventory(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    save_file(TENSORS, tmp_path / "ae.safetensors")
    with pytest.raises(WeightsError, match=r"is in model\.safetensors and in ae\.safetensors"):
        read_inventory(tmp_path, beside=("ae",))


@pytest.mark.parametrize("kept", [0, 4, 8, 20, -1])
def test_a_truncated_or_damaged_file_is_a_weights_error(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"first": torch.zeros(5), "last": torch.zeros(5)}, file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(WeightsError, match="tensor 'last' is cut off" if kept == -1 else "is no safetensors file"):
        read_header(file)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]},
        [],
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, entry: object) -> None:
    text = json.dumps({"a": entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(WeightsError, match="is no safetensors file"):
        read_inventory(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', "\xff"])
def test_a_damaged_index_is_a_weights_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(WeightsError, match=r"model\.safetensors\.index\.json"):
        read_inventory(tmp_path)


def test_pickled_weights_are_named_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(WeightsError, match=r"has no model\.safetensors") as caught:
        read_inventory(tmp_path)
    assert "pytorch_model.bin" in caught.value.why
