"""Nothing depends on the fixture's sizes: another checkpoint of the family plays every role."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from asg_blip3o.backbone import Blip3oBackbone
from asg_blip3o.config import FlowDims
from asg_blip3o.modeling_blip3o import Blip3oModel, build_empty
from asg_blip3o.weights_map import main_slots
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from asg_core.backbones.interface import ImageRequest, ImageSampling, Role, TextRequest, TextSampling
from asg_core.models.weights.loader import module_slots

Load = Callable[..., Blip3oBackbone]

DIMS = FlowDims(width=48, channels=20, heads=3, kv_heads=3, layers=3, ffn=136, condition=72, context=40)
GRID, QUERIES = 3, 9
UNET = {
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [1, 2, 2],
    "transformer_layers_per_block": [1, 1, 1],
    "cross_attention_dim": 20,
    "projection_class_embeddings_input_dim": 20 + 6 * 8,
}
TEXT = {
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "rope_scaling": {"mrope_section": [2, 2, 2], "rope_type": "default", "type": "default"},
    "n_query": QUERIES,
    "gen_hidden_size": 20,
}


def tensors_of(model: Blip3oModel, stream: torch.Generator) -> dict[str, torch.Tensor]:
    return {name: torch.randn(slot.shape, generator=stream) * 0.05 for name, slot in main_slots(model).items()}


def part_of(module: nn.Module, stream: torch.Generator) -> dict[str, torch.Tensor]:
    return {name: torch.randn(slot.shape, generator=stream) * 0.05 for name, slot in module_slots(module).items()}


@pytest.fixture
def other(released: Path, tmp_path: Path) -> Path:
    """A release of other sizes in every part, without a tower, in one file, stored in bfloat16."""
    folder = Path(shutil.copytree(released, tmp_path / "other", ignore=shutil.ignore_patterns("*.safetensors*")))

    def edit(name: str, changes: dict[str, Any]) -> dict[str, Any]:
        path = folder / name
        merged = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps(merged))
        return merged

    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    vision.update(hidden_size=24, num_heads=2, depth=3, out_hidden_size=72, intermediate_size=30)
    config = edit("config.json", {**TEXT, "vision_config": vision})
    decoder = (
        edit("diffusion-decoder/unet/config.json", UNET),
        edit("diffusion-decoder/vae/config.json", {"block_out_channels": [4, 8], "norm_num_groups": 2}),
        edit("diffusion-decoder/scheduler/scheduler_config.json", {"timestep_spacing": "trailing"}),
    )
    model = build_empty(config, QUERIES, DIMS, GRID, decoder)
    stream = torch.Generator().manual_seed(0)
    main = {name: tensor.bfloat16() for name, tensor in tensors_of(model, stream).items()}
    save_file(main, folder / "model.safetensors", metadata={"format": "pt"})
    for name, module in (("unet", model.decoder.unet), ("vae", model.decoder.vae)):
        save_file(part_of(module, stream), folder / "diffusion-decoder" / name / "diffusion_pytorch_model.safetensors")
    return folder


def test_another_checkpoint_of_the_family_plays_every_role(
    other: Path, load: Load, picture: Callable[..., Image.Image]
) -> None:
    backbone = load(other)
    assert backbone.model.flow.dims == DIMS
    assert backbone.model.flow.sample_shape == (20, GRID, GRID)
    image = picture(1)
    requests = [TextRequest("What is on the left?", image, seed) for seed in range(2)]
    samples = backbone.solve(requests, TextSampling(4))
    scores = backbone.token_logits(samples, Role.SOLVER)
    assert torch.allclose(scores[0].logprobs.detach(), torch.tensor(samples[0].logprobs), atol=1e-5)
    drawn = backbone.generate([ImageRequest("two red bands", 1)], ImageSampling())
    assert drawn[0].image.size == (32, 32)
    assert drawn[0].trajectory["features"].shape == (20, GRID, GRID)
    backbone.generation_loss(drawn, [1]).loss.sum().backward()
    assert any(p.grad is not None and bool(p.grad.abs().sum()) for p in backbone.trainable(Role.GENERATOR).values())
    assert backbone.embed([image, "two red bands"]).shape == (2, 72)


def test_a_grid_that_cannot_be_inferred_is_asked_for(other: Path, load: Load) -> None:
    from asg_core.errors import WeightsError

    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "n_query": 7}))
    with pytest.raises(WeightsError, match="feature grid"):
        load(other)
