"""Loading: the released layouts, other sizes, and an error that names what does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from asg_janus.backbone import JanusBackbone
from asg_janus.export import export
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import JanusConfig, JanusForConditionalGeneration

from asg_core.backbones.interface import ImageRequest, ImageSampling, Role, TextRequest, TextSampling
from asg_core.errors import ConfigError, WeightsError

Load = Callable[..., JanusBackbone]
NAME = "model.language_model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def edit_json(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(NAME), "1 missing"),
        (lambda tensors: tensors.update({"model.stray": torch.zeros(2)}), "1 unexpected: model.stray"),
        (lambda tensors: tensors.update({NAME: tensors[NAME][:, 1:].contiguous()}), "1 misshapen"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(load: Load, copied: Path, change: Any, message: str) -> None:
    rewrite(copied, change)
    with pytest.raises(WeightsError, match=message) as caught:
        load(copied)
    assert NAME in str(caught.value) or "stray" in message


def test_a_misshapen_tensor_comes_with_both_shapes(load: Load, copied: Path) -> None:
    rewrite(copied, lambda tensors: tensors.update({NAME: tensors[NAME][:, 1:].contiguous()}))
    with pytest.raises(WeightsError, match=r"is \[96, 63\], expected \[96, 64\]"):
        load(copied)


def test_a_truncated_file_is_named_with_the_first_tensor_that_is_cut_off(load: Load, copied: Path) -> None:
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    header.pop("__metadata__")
    last = max(header, key=lambda name: header[name]["data_offsets"][1])
    with pytest.raises(WeightsError, match=f"model.safetensors is truncated: tensor '{last}' is cut off"):
        load(copied)


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]"])
def test_a_file_that_is_no_safetensors_is_refused(load: Load, copied: Path, content: bytes) -> None:
    (copied / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.safetensors is no"):
        load(copied)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json", "processor_config.json"])
def test_a_missing_file_is_a_weights_error(load: Load, copied: Path, missing: str) -> None:
    (copied / missing).unlink()
    with pytest.raises(WeightsError, match="copy"):
        load(copied)


def test_pickled_weights_are_never_read(load: Load, copied: Path) -> None:
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    with pytest.raises(WeightsError):
        load(copied)


def test_another_model_is_refused_by_name(load: Load, copied: Path) -> None:
    edit_json(copied / "config.json", model_type="llama")
    with pytest.raises(WeightsError, match="llama"):
        load(copied)


def test_a_configuration_of_nonsense_is_a_weights_error(load: Load, copied: Path) -> None:
    edit_json(copied / "config.json", vision_config={"hidden_size": "wide"})
    with pytest.raises(WeightsError, match="hidden_size"):
        load(copied)


def test_a_tokenizer_without_image_tokens_is_refused(load: Load, copied: Path) -> None:
    edit_json(copied / "tokenizer_config.json", boi_token=None)
    with pytest.raises(WeightsError, match="boi_token"):
        load(copied)


def test_no_weights_is_a_weights_error(load: Load) -> None:
    with pytest.raises(WeightsError, match="weights"):
        load(None)


def test_shards_and_the_file_layout_of_older_releases_load_the_same(load: Load, checkpoint: Path, copied: Path) -> None:
    settings = json.loads((copied / "processor_config.json").read_text(encoding="utf-8"))
    (copied / "preprocessor_config.json").write_text(json.dumps(settings.pop("image_processor")), encoding="utf-8")
    (copied / "processor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    names = json.loads((copied / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokens = {kind: names.pop(kind) for kind in ("image_token", "boi_token", "eoi_token")}
    older = {**names, "extra_special_tokens": tokens, "tokenizer_class": "LlamaTokenizerFast"}
    (copied / "tokenizer_config.json").write_text(json.dumps(older), encoding="utf-8")
    (copied / "model.safetensors").unlink()
    JanusForConditionalGeneration.from_pretrained(checkpoint).save_pretrained(copied, max_shard_size="500KB")
    assert len(list(copied.glob("model-*.safetensors"))) > 1
    image = Image.linear_gradient("L")
    answers = [
        load(directory).solve([TextRequest("Why?", image, 0)], TextSampling(6))[0] for directory in (checkpoint, copied)
    ]
    assert answers[0].logprobs == answers[1].logprobs
    next(copied.glob("model-00002*")).unlink()
    with pytest.raises(WeightsError, match="model-00002"):
        load(copied)


def test_a_tied_head_is_no_missing_tensor(load: Load, copied: Path) -> None:
    config = JanusConfig.from_pretrained(copied)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    JanusForConditionalGeneration(config).save_pretrained(copied)
    assert "lm_head.weight" not in load_file(copied / "model.safetensors")
    model = load(copied).text.model
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_every_size_is_read_from_the_configuration(load: Load, copied: Path) -> None:
    config = JanusConfig.from_pretrained(copied)
    text, vision, drawing = config.text_config, config.vision_config, config.vq_config
    text.update({"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6, "head_dim": 16})
    vision.update({"image_size": 24, "patch_size": 4, "num_image_tokens": 36, "projection_dim": 96, "depth": 3})
    drawing.update({"num_embeddings": 20, "embed_dim": 4, "projection_dim": 96, "image_token_embed_dim": 96})
    drawing.update({"channel_multiplier": [1, 2], "num_patches": 6})
    torch.manual_seed(0)
    JanusForConditionalGeneration(config).save_pretrained(copied)
    settings = json.loads((copied / "processor_config.json").read_text(encoding="utf-8"))
    settings["image_processor"]["size"] = {"height": 24, "width": 24}
    (copied / "processor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    backbone = load(copied)
    (drawn,) = backbone.generate([ImageRequest("a red cat", 0)], ImageSampling())
    assert drawn.trajectory["codes"].shape == (36,)
    assert int(drawn.trajectory["codes"].max()) < 20
    assert drawn.image.size == (12, 12)
    scored = backbone.generation_loss([drawn], [0])
    torch.testing.assert_close(scored.token_logprobs[0].detach(), drawn.token_logprobs, atol=1e-4, rtol=0)  # type: ignore[index]
    assert backbone.embed([drawn.image, "a cat"]).shape == (2, 96)
    assert len(backbone.trainable(Role.SOLVER)) == 3 * 7 * 2


@pytest.mark.parametrize("absolute", [False, True])
def test_an_index_cannot_name_a_file_outside_the_folder(load: Load, copied: Path, absolute: bool) -> None:
    outside = copied.parent / "outside.safetensors"
    (copied / "model.safetensors").rename(outside)
    placed = dict.fromkeys(load_file(outside), str(outside) if absolute else "../outside.safetensors")
    (copied / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}), encoding="utf-8")
    with pytest.raises(WeightsError, match=r"outside\.safetensors") as caught:
        load(copied)
    assert "no path inside" in caught.value.why


def test_a_tokenizer_configuration_cannot_name_a_file_outside_the_folder(load: Load, copied: Path) -> None:
    edit_json(copied / "tokenizer_config.json", fast_tokenizer_files=["../tokenizer.4.0.json", "tokenizer.json"])
    with pytest.raises(WeightsError, match=r"\.\./tokenizer\.4\.0\.json"):
        load(copied)


def test_an_export_answers_without_adapters_as_the_solver_did(
    awake: JanusBackbone, load: Load, checkpoint: Path, tmp_path: Path
) -> None:
    report = export(awake, checkpoint, tmp_path / "out", [Role.SOLVER], float32=True)
    assert len(report.merged) == 7 * len(awake.text.decoder.layers)
    request = [TextRequest("Why?", Image.linear_gradient("L"), 0)]
    wanted, actual = awake.solve(request, TextSampling(6)), load(tmp_path / "out").solve(request, TextSampling(6), None)
    assert wanted[0].token_ids == actual[0].token_ids
    torch.testing.assert_close(torch.tensor(actual[0].logprobs), torch.tensor(wanted[0].logprobs), atol=1e-4, rtol=0)
    with pytest.raises(ConfigError, match="cannot be merged"):
        export(awake, checkpoint, tmp_path / "both", [Role.SOLVER, Role.PROPOSER])
