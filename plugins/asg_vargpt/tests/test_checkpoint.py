"""Loading: what is read, what is refused, and that the refusal names the tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from asg_vargpt.processing import load_tokenizer
from asg_vargpt.weights_map import load_model
from safetensors.torch import load_file, save_file

from asg_core.errors import WeightsError
from asg_core.models.weights.inventory import read_inventory

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def _edit(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Rewrite all weights as one file after ``change``."""
    tensors = {name: tensor for shard in SHARDS for name, tensor in load_file(directory / shard).items()}
    change(tensors)
    for name in (*SHARDS, "model.safetensors.index.json"):
        (directory / name).unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")


def test_sharded_and_single_files_give_the_same_model(released: Path, golden: Path) -> None:
    sharded, report = load_model(golden / "ckpt")
    _edit(released, lambda tensors: None)
    single, _ = load_model(released)
    assert report.complete
    assert len(report.matched) + len(report.skipped) == len(read_inventory(golden / "ckpt"))
    for name, tensor in sharded.state_dict().items():
        assert torch.equal(tensor, single.state_dict()[name]), name


def test_nothing_is_left_on_the_meta_device_and_everything_is_frozen(golden: Path) -> None:
    model, _ = load_model(golden / "ckpt", dtype=torch.bfloat16)
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert model.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.vae.parameters()} == {torch.float32}
    assert model.language_model.rotary_emb.inv_freq.dtype == torch.float32


def test_the_start_embedding_is_the_row_of_the_start_token(golden: Path) -> None:
    model, _ = load_model(golden / "ckpt")
    tensors = {name: tensor for shard in SHARDS for name, tensor in load_file(golden / "ckpt" / shard).items()}
    start = json.loads((golden / "ckpt" / "config.json").read_text())["special_tokens"]["image_gen_start_token_id"]
    assert torch.equal(model.sos_embedding, tensors["sos_embedding.weight"][start].float())


def test_missing_unexpected_and_misshapen_tensors_are_named(released: Path) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["vargpt_gen.head.bias"]
        tensors["vargpt_gen.extra"] = torch.zeros(3)
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :-1]

    _edit(released, damage)
    with pytest.raises(WeightsError) as caught:
        load_model(released)
    for name in ("vargpt_gen.head.bias", "vargpt_gen.extra", "lm_head.weight"):
        assert name in str(caught.value)


def test_a_missing_tensor_that_sizes_depend_on_is_named(released: Path) -> None:
    _edit(released, lambda tensors: tensors.pop("vargpt_gen.pos_start"))
    with pytest.raises(WeightsError, match=r"vargpt_gen\.pos_start"):
        load_model(released)


@pytest.mark.parametrize("share", [0.0005, 0.5, 0.999])
def test_a_truncated_shard_is_a_typed_error(released: Path, share: float) -> None:
    data = (released / SHARDS[1]).read_bytes()
    (released / SHARDS[1]).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(WeightsError, match=SHARDS[1]):
        load_model(released)


def test_a_truncated_shard_names_the_tensor_that_is_cut_off(released: Path) -> None:
    data = (released / SHARDS[1]).read_bytes()
    (released / SHARDS[1]).write_bytes(data[:-1])
    last = max(load_file_offsets(released / SHARDS[1], data), key=lambda item: item[1])[0]
    with pytest.raises(WeightsError, match=last.replace(".", r"\.")):
        load_model(released)


def load_file_offsets(path: Path, data: bytes) -> list[tuple[str, int]]:
    """(tensor, end of its data) of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return [(name, entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]


@pytest.mark.parametrize("name", ["config.json", SHARDS[0], "tokenizer.json"])
def test_a_missing_file_is_a_typed_error(released: Path, name: str, load: Callable[..., object]) -> None:
    (released / name).unlink()
    if name == "tokenizer.json":
        (released / "vocab.json").unlink()
    with pytest.raises(WeightsError):
        load(released)


def test_a_config_without_generation_tokens_is_refused(released: Path) -> None:
    config = json.loads((released / "config.json").read_text())
    del config["special_tokens"]
    (released / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="special_tokens"):
        load_model(released)


@pytest.mark.parametrize("absolute", [False, True])
def test_an_index_cannot_name_a_file_outside_the_folder(released: Path, absolute: bool) -> None:
    outside = released.parent / "outside.safetensors"
    (released / SHARDS[0]).rename(outside)
    index = released / "model.safetensors.index.json"
    placed = json.loads(index.read_text())["weight_map"]
    name = str(outside) if absolute else "../outside.safetensors"
    moved = {tensor: name if shard == SHARDS[0] else shard for tensor, shard in placed.items()}
    index.write_text(json.dumps({"weight_map": moved}))
    with pytest.raises(WeightsError, match=r"outside\.safetensors") as caught:
        load_model(released)
    assert "no path inside" in caught.value.why


def test_a_tokenizer_configuration_cannot_name_a_file_outside_the_folder(released: Path) -> None:
    config = released / "tokenizer_config.json"
    names = ["../tokenizer.4.0.json", "tokenizer.json"]
    config.write_text(json.dumps({**json.loads(config.read_text()), "fast_tokenizer_files": names}))
    with pytest.raises(WeightsError, match=r"\.\./tokenizer\.4\.0\.json"):
        load_tokenizer(released)


def test_a_link_of_a_hub_cache_is_followed(released: Path, golden: Path) -> None:
    (released / SHARDS[0]).unlink()
    (released / SHARDS[0]).symlink_to(golden / "ckpt" / SHARDS[0])
    assert load_model(released)[1].complete
