"""Nothing depends on the recorded checkpoint's sizes: another member of the family loads, answers, draws and learns."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from asg_bagel.backbone import BagelBackbone
from asg_bagel.config import build_config
from asg_bagel.released import random_model
from asg_bagel.weights_map import slots
from asg_core.backbones.interface import ImageRequest, ImageSampling, Role, TextRequest, TextSampling

from bagel_fixtures import GOLDEN, picture, stir

LLM = {
    "model_type": "qwen2",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "vocab_size": 300,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
}
VISION = {
    "hidden_size": 40,
    "image_size": 42,
    "intermediate_size": 60,
    "num_attention_heads": 5,
    "num_hidden_layers": 4,
}
VAE = {"ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 2, "z_channels": 3, "scale_factor": 0.5, "shift_factor": 0.25}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: 6 x 6 patches of 7 pixels; 5 x 5 latent tokens of 3 x 3 cells of 4 pixels."""
    directory = tmp_path_factory.mktemp("other")
    vision = {**VISION, "patch_size": 7}
    config = build_config(LLM, vision, VAE, vision_rows=36, latent_rows=25, latent_width=27)
    model = random_model(config)
    for table in (model.vit_pos_embed, model.latent_pos_embed):
        table.pos_embed.normal_(std=0.5)
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        shutil.copyfile(GOLDEN / "checkpoint" / file, directory / file)
    for file, content in (("llm_config", LLM), ("vit_config", vision), ("config", {"vae_config": VAE})):
        (directory / f"{file}.json").write_text(json.dumps(content))
    tensors = {name: slot.tensor.detach().reshape(slot.shape).clone() for name, slot in slots(model).items()}
    vae = {name for name in tensors if name.startswith(("encoder.", "decoder."))}
    save_file({name: tensors[name] for name in vae}, directory / "ae.safetensors")
    save_file({name: tensors[name] for name in tensors.keys() - vae}, directory / "ema.safetensors")
    return directory


def test_another_size_of_the_family_plays_every_role(load: Callable[..., BagelBackbone], other: Path) -> None:
    backbone = load(other, vision_shortest=14)
    config = backbone.model.config
    assert (config.image_stride, config.max_image_size, config.max_vision_size) == (12, 60, 42)
    for role in Role:
        stir(backbone, role)
    requests = [TextRequest("the cat", picture(1), 1), TextRequest("what is it?", None, 2)]
    samples = backbone.solve(requests, TextSampling(5))
    for sample, scores in zip(samples, backbone.token_logits(samples, Role.SOLVER), strict=True):
        torch.testing.assert_close(scores.logprobs, torch.tensor(sample.logprobs), atol=1e-5, rtol=0)
    drawn = backbone.generate([ImageRequest("a cat", 1), ImageRequest("a hat", 2)], ImageSampling("quality"))
    assert {sample.image.size for sample in drawn} == {(60, 60)}
    backbone.generation_loss(drawn, [1, 2]).loss.sum().backward()
    assert all(float(p.grad.norm()) > 0 for p in backbone.trainable(Role.GENERATOR).values() if p.grad is not None)
    assert backbone.embed([drawn[0].image, "a cat"]).shape == (2, 48)
