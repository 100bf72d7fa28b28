"""Released files in, model out: names, shapes, precedence, shards, and errors that name the tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from asg_bagel.processing import BagelTokenizer
from asg_bagel.released import released_config
from asg_bagel.weights_map import expected_tensors, load_model, slots
from asg_core.errors import WeightsError


@pytest.fixture
def copy(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden / "checkpoint", tmp_path / "checkpoint"))


def edit(directory: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    weights = load_file(directory / "ema.safetensors")
    change(weights)
    save_file(weights, directory / "ema.safetensors")


def values(directory: Path) -> dict[str, Tensor]:
    return {name: slot.tensor.detach() for name, slot in slots(load_model(directory)[0]).items()}


def test_the_full_size_model_expects_exactly_the_released_tensors() -> None:
    rows = [
        line.split("\t")
        for line in (Path(__file__).parent / "fixtures" / "inventory.tsv").read_text().splitlines()
        if not line.startswith("#")
    ]
    released = {name: tuple(map(int, shape.split(","))) for name, shape, *_ in rows}
    config = released_config()
    expected = expected_tensors(config)
    assert expected == released
    vae = {name for name in expected if name.startswith(("encoder.", "decoder."))}
    assert (len(expected) - len(vae), len(vae)) == (1223, 244)
    assert (config.max_vision_size, config.max_image_size, config.image_stride) == (980, 1024, 16)


def test_every_tensor_is_loaded_and_the_report_says_so(golden: Path) -> None:
    model, report = load_model(golden / "checkpoint")
    stored = {**load_file(golden / "checkpoint/ema.safetensors"), **load_file(golden / "checkpoint/ae.safetensors")}
    assert set(report.matched) == set(stored)
    assert report.missing == report.unexpected == report.skipped == ()
    for name, slot in slots(model).items():
        assert torch.equal(slot.tensor, stored[name].float().reshape(slot.tensor.shape)), name
        assert not slot.tensor.requires_grad
    assert not model.training


def test_without_the_generation_half_the_rest_is_skipped_by_name(golden: Path) -> None:
    model, report = load_model(golden / "checkpoint", generation=False)
    assert len(report.matched) + len(report.skipped) == len(load_model(golden / "checkpoint")[1].matched)
    assert any("moe_gen" in name for name in report.skipped)
    assert not any("moe_gen" in name or name.startswith(("decoder.", "vae2llm")) for name in report.matched)
    assert not hasattr(model, "vae")


def test_missing_unexpected_and_misshapen_tensors_are_named(copy: Path) -> None:
    def change(weights: dict[str, Tensor]) -> None:
        del weights["connector.fc1.bias"]
        weights["connector.fc3.bias"] = torch.zeros(3)
        weights["llm2vae.bias"] = torch.zeros(7)

    edit(copy, change)
    with pytest.raises(WeightsError) as caught:
        load_model(copy)
    assert "1 missing: connector.fc1.bias" in caught.value.what
    assert "1 unexpected: connector.fc3.bias" in caught.value.what
    assert "llm2vae.bias is [7], expected [16]" in caught.value.what


def test_a_truncated_file_names_the_first_tensor_that_is_cut(copy: Path) -> None:
    file = copy / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    header = file.read_bytes()
    length = int.from_bytes(header[:8], "little")
    entries = json.loads(header[8 : 8 + length])
    entries.pop("__metadata__", None)
    last = max(entries, key=lambda name: entries[name]["data_offsets"][1])
    with pytest.raises(WeightsError, match=f"truncated: tensor '{last}' is cut off"):
        load_model(copy)


@pytest.mark.parametrize("content", [b"", b"not a safetensors file at all", b"\xff" * 64])
def test_garbage_is_no_checkpoint(copy: Path, content: bytes) -> None:
    (copy / "ae.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"ae\.safetensors is no safetensors file"):
        load_model(copy)


def test_an_empty_directory_and_missing_sizes_are_typed_errors(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"has no ema\.safetensors or model\.safetensors"):
        load_model(tmp_path / "empty")
    (copy / "llm_config.json").unlink()
    with pytest.raises(WeightsError, match="llm_config"):
        load_model(copy)


def test_a_position_table_that_is_no_square_is_refused(copy: Path) -> None:
    def change(weights: dict[str, Tensor]) -> None:
        weights["latent_pos_embed.pos_embed"] = weights["latent_pos_embed.pos_embed"][:-1].clone()

    edit(copy, change)
    with pytest.raises(WeightsError, match=r"latent_pos_embed\.pos_embed"):
        load_model(copy)


def test_averaged_weights_win_over_raw_ones(copy: Path) -> None:
    wanted = values(copy)
    raw = {name: tensor + 1 for name, tensor in load_file(copy / "ema.safetensors").items()}
    save_file(raw, copy / "model.safetensors")
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in values(copy).items())
    (copy / "ema.safetensors").unlink()
    assert torch.equal(values(copy)["connector.fc1.bias"], raw["connector.fc1.bias"].float())


@pytest.mark.parametrize("index", [True, False])
def test_shards_and_float32_load_like_one_file(copy: Path, index: bool) -> None:
    wanted = values(copy)
    weights = {name: tensor.float() for name, tensor in load_file(copy / "ema.safetensors").items()}
    (copy / "ema.safetensors").unlink()
    (copy / "model.safetensors.index.json").unlink()
    names = sorted(weights)
    shards = {f"model-0000{i + 1}-of-00003.safetensors": names[i::3] for i in range(3)}
    for file, part in shards.items():
        save_file({name: weights[name] for name in part}, copy / file)
    if index:
        weight_map = {name: file for file, part in shards.items() for name in part}
        (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    loaded = values(copy)
    assert loaded.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in loaded.items())
    (copy / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(WeightsError, match=shards["model-00002-of-00003.safetensors"][0] if index else "2 of 3 shards"):
        load_model(copy)


@pytest.mark.parametrize("absolute", [False, True])
def test_an_index_cannot_name_a_file_outside_the_folder(copy: Path, absolute: bool) -> None:
    (copy / "ema.safetensors").rename(copy.parent / "outside.safetensors")
    name = str(copy.parent / "outside.safetensors") if absolute else "../outside.safetensors"
    placed = dict.fromkeys(load_file(copy.parent / "outside.safetensors"), name)
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    with pytest.raises(WeightsError, match=r"outside\.safetensors") as caught:
        load_model(copy)
    assert "no path inside" in caught.value.why


def test_a_tokenizer_configuration_cannot_name_a_file_outside_the_folder(copy: Path) -> None:
    config = copy / "tokenizer_config.json"
    names = ["../tokenizer.4.0.json", "tokenizer.json"]
    config.write_text(json.dumps({**json.loads(config.read_text()), "fast_tokenizer_files": names}))
    with pytest.raises(WeightsError, match=r"\.\./tokenizer\.4\.0\.json"):
        BagelTokenizer(copy)
