"""Loading a release: layouts that are accepted, and typed errors for what is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from asg_blip3o.backbone import Blip3oBackbone
from asg_blip3o.config import EVA
from asg_blip3o.weights_map import read_release
from safetensors.torch import load_file, save_file

from asg_core.backbones.interface import ImageRequest, ImageSampling, Role, TextRequest, TextSampling
from asg_core.errors import CapabilityError, ConfigError, WeightsError
from asg_core.models.weights.inventory import read_inventory

Load = Callable[..., Blip3oBackbone]


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        found.update(load_file(path))
    return found


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """All main tensors as one file, without an index."""
    for path in folder.glob("model*"):
        path.unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_every_tensor_is_accounted_for(load: Load, released: Path) -> None:
    report = load().report
    stored = read_inventory(released)
    main = [name for name in report.matched if not name.startswith("diffusion-decoder/")]
    assert report.missing == () == report.unexpected
    assert sorted([*main, *report.skipped]) == sorted(stored)
    assert all(name.startswith(("model.vae.", EVA)) for name in report.skipped)


def test_the_tower_is_loaded_on_request_only(load: Load) -> None:
    assert load().model.eva is None
    backbone = load(real_image_target=True)
    assert backbone.model.eva is not None
    assert not any(name.startswith(EVA) for name in backbone.report.skipped)


def test_one_file_and_shards_and_generic_decoder_names_give_the_same_model(load: Load, checkpoint: Path) -> None:
    rewrite(checkpoint, all_tensors(checkpoint))
    for part in ("unet", "vae"):
        folder = checkpoint / "diffusion-decoder" / part
        (folder / "diffusion_pytorch_model.bf16.safetensors").rename(folder / "anything.safetensors")
    (checkpoint / "preprocessor_config.json").unlink()
    one, sharded = load(checkpoint), load()
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.model.state_dict().values(), sharded.model.state_dict().values(), strict=True)
    )
    request = [ImageRequest("two red bands", 1)]
    drawn = [b.generate(request, ImageSampling())[0].image.tobytes() for b in (one, sharded)]
    assert drawn[0] == drawn[1]


def test_stored_bfloat16_loads_into_any_dtype_and_adapters_stay_float32(load: Load, checkpoint: Path) -> None:
    rewrite(checkpoint, {name: tensor.bfloat16() for name, tensor in all_tensors(checkpoint).items()})
    backbone = load(checkpoint, dtype="bfloat16")
    assert backbone.dtype == torch.bfloat16
    adapters = [p for role in Role for p in backbone.trainable(role).values()]
    own = {id(p) for p in adapters}
    assert {p.dtype for p in adapters} == {torch.float32}
    assert {p.dtype for p in backbone.model.parameters() if id(p) not in own} == {torch.bfloat16}
    sample = backbone.generate([ImageRequest("a photo", 3)], ImageSampling())[0]
    assert sample.trajectory["features"].isfinite().all()
    assert load(checkpoint, dtype="float32").dtype == torch.float32


def test_float16_keeps_the_autoencoder_in_float32(load: Load) -> None:
    decoder = load(dtype="float16").model.decoder
    assert (decoder.unet.dtype, decoder.vae.dtype) == (torch.float16, torch.float32)


def test_a_tied_head_is_the_embedding(load: Load, checkpoint: Path) -> None:
    tensors = all_tensors(checkpoint)
    del tensors["lm_head.weight"]
    rewrite(checkpoint, tensors)
    edit_config(checkpoint, tie_word_embeddings=True)
    vlm = load(checkpoint).model.vlm
    assert vlm.lm_head.weight is vlm.model.language_model.embed_tokens.weight


def test_a_truncated_shard_names_the_first_tensor_that_is_gone(load: Load, checkpoint: Path) -> None:
    shard = checkpoint / "model-00003-of-00005.safetensors"
    shard.write_bytes(shard.read_bytes()[:-500])
    with pytest.raises(
        WeightsError, match=r"model-00003-of-00005.safetensors is truncated: tensor 'model\..*' is cut off"
    ):
        load(checkpoint)


@pytest.mark.parametrize("name", ["visual.merger.ln_q.weight", "model.dit.model.layers.1.gate", "model.latent_queries"])
def test_a_missing_tensor_is_named(load: Load, checkpoint: Path, name: str) -> None:
    tensors = all_tensors(checkpoint)
    del tensors[name]
    rewrite(checkpoint, tensors)
    with pytest.raises(WeightsError, match=f"1 missing: {name}"):
        load(checkpoint)


def test_a_misshapen_tensor_is_named_with_both_shapes(load: Load, checkpoint: Path) -> None:
    tensors = all_tensors(checkpoint)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(97, 64)
    rewrite(checkpoint, tensors)
    with pytest.raises(WeightsError, match=r"model.layers.1.mlp.up_proj.weight is \[97, 64\], expected \[96, 64\]"):
        load(checkpoint)


def test_an_unexpected_tensor_is_refused_unless_allowed(load: Load, checkpoint: Path) -> None:
    rewrite(checkpoint, {**all_tensors(checkpoint), "model.mm_projector.weight": torch.zeros(2)})
    with pytest.raises(WeightsError, match=r"1 unexpected: model\.mm_projector\.weight"):
        load(checkpoint)
    assert load(checkpoint, allow_unexpected=True).report.unexpected == ("model.mm_projector.weight",)


def test_a_missing_shard_names_a_tensor_of_it(load: Load, checkpoint: Path) -> None:
    (checkpoint / "model-00005-of-00005.safetensors").unlink()
    with pytest.raises(WeightsError, match="lacks model-00005-of-00005") as error:
        load(checkpoint)
    assert "'lm_head.weight'" in error.value.why


def test_pickled_weights_are_never_read(load: Load, checkpoint: Path) -> None:
    for path in checkpoint.glob("model*"):
        path.unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(WeightsError) as error:
        load(checkpoint)
    assert "pytorch_model.bin" in error.value.why


def test_config_and_weights_of_different_variants_are_told_apart(load: Load, checkpoint: Path) -> None:
    edit_config(checkpoint, hidden_size=2048)
    with pytest.raises(WeightsError, match=r"config.json is of variant 4B, the weights are of variant custom"):
        load(checkpoint)
    tensors = all_tensors(checkpoint)
    tensors["model.embed_tokens.weight"] = torch.zeros(3, 3584)
    rewrite(checkpoint, tensors)
    with pytest.raises(WeightsError, match="of variant 4B, the weights are of variant 8B"):
        load(checkpoint)
    edit_config(checkpoint, hidden_size=3584)
    assert read_release(checkpoint).variant == "8B"


def test_another_model_is_refused_by_name(load: Load, checkpoint: Path) -> None:
    edit_config(checkpoint, model_type="qwen2_5_vl")
    with pytest.raises(WeightsError, match="model_type='qwen2_5_vl'"):
        load(checkpoint)


def test_a_missing_decoder_file_is_named(load: Load, checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "diffusion-decoder" / "scheduler")
    with pytest.raises(WeightsError, match=r"scheduler_config.json cannot be read"):
        load(checkpoint)


def test_a_tokenizer_of_another_release_is_refused(load: Load, checkpoint: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"):
        path = checkpoint / name
        path.write_text(path.read_text().replace("[IMG]", "[XYZ]"))
    with pytest.raises(WeightsError, match=r"has no token '\[IMG\]'"):
        load(checkpoint)


def test_scheduler_and_autoencoder_values_come_from_their_files(load: Load, checkpoint: Path) -> None:
    scheduler = checkpoint / "diffusion-decoder" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "use_karras_sigmas": True}))
    request = [ImageRequest("two red bands", 1)]
    karras, plain = load(checkpoint), load()
    sigmas = [b.model.decoder.scheduler(4, torch.device("cpu")).sigmas for b in (karras, plain)]
    assert not torch.allclose(sigmas[0], sigmas[1])
    images = [b.generate(request, ImageSampling())[0].image.tobytes() for b in (karras, plain)]
    assert images[0] != images[1]


def test_the_head_width_of_the_tower_must_divide_it(load: Load) -> None:
    with pytest.raises(ConfigError, match="eva_head_width=7"):
        load(real_image_target=True, eva_head_width=7)


def test_understanding_only_leaves_the_decoder_out_and_keeps_every_text_role(load: Load, tmp_path: Path) -> None:
    backbone, whole = load(drawing=False), load()
    assert all(parameter.is_meta for parameter in backbone.model.decoder.parameters())
    request = [TextRequest("What is on the left?", None, 1)]
    assert backbone.solve(request, TextSampling(4))[0].token_ids == whole.solve(request, TextSampling(4))[0].token_ids
    with pytest.raises(CapabilityError, match="understanding only"):
        backbone.generate([ImageRequest("a photo", 1)], ImageSampling())
    for role in Role:
        backbone.save_role(role, tmp_path / role.value)
        whole.load_role(role, tmp_path / role.value)


@pytest.mark.parametrize("part", ["", "diffusion-decoder/unet", "diffusion-decoder/vae"])
@pytest.mark.parametrize("absolute", [False, True])
def test_no_index_of_any_part_can_name_a_file_outside_its_folder(
    load: Load, checkpoint: Path, part: str, absolute: bool
) -> None:
    folder = checkpoint / part
    if part:
        (file,) = folder.glob("*.safetensors")
        tensors, stem = load_file(file), "diffusion_pytorch_model"
        file.unlink()
    else:
        tensors, stem = all_tensors(checkpoint), "model"
    outside = folder.parent / "outside.safetensors"
    save_file(tensors, outside)
    name = str(outside) if absolute else "../outside.safetensors"
    index = {"weight_map": dict.fromkeys(tensors, name)}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=r"outside\.safetensors") as caught:
        load(checkpoint)
    assert "no path inside" in caught.value.why


def test_a_tokenizer_configuration_cannot_name_a_file_outside_the_folder(load: Load, checkpoint: Path) -> None:
    config = checkpoint / "tokenizer_config.json"
    names = ["../tokenizer.4.0.json", "tokenizer.json"]
    config.write_text(json.dumps({**json.loads(config.read_text()), "fast_tokenizer_files": names}))
    with pytest.raises(WeightsError, match=r"\.\./tokenizer\.4\.0\.json"):
        load(checkpoint)
