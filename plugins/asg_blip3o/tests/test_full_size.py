"""The 8B release without its weights: names and shapes that the loader expects, against the inventory."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import asg_blip3o.released
import pytest
from asg_blip3o.config import DEAD, EVA, eva_dims, flow_dims, latent_grid
from asg_blip3o.modeling_blip3o import build_empty
from asg_blip3o.options import Blip3oOptions, Sampler
from asg_blip3o.released import CONFIG, EVA_DIMS, FLOW_DIMS, GRID, full_size_model, random_backbone
from asg_blip3o.weights_map import main_slots, read_release
from PIL import Image

from asg_core.backbones.interface import ImageRequest, ImageSampling, TextRequest, TextSampling
from asg_core.backbones.manifest import LoadRequest
from asg_core.models.weights.loader import Slot, module_slots

Shapes = dict[str, tuple[int, ...]]


def shapes_of(places: dict[str, Slot]) -> Shapes:
    return {name: slot.shape for name, slot in places.items()}


@pytest.fixture(scope="module")
def inventory() -> dict[str, Shapes]:
    files: dict[str, Shapes] = defaultdict(dict)
    for line in (Path(__file__).parent / "fixtures" / "inventory.tsv").read_text().splitlines():
        if not line.startswith("#"):
            name, shape, _, file = line.split("\t")
            files[file][name] = tuple(int(side) for side in shape.split(","))
    return files


def test_expected_names_and_shapes_equal_the_inventory(inventory: dict[str, Shapes]) -> None:
    model = full_size_model(eva=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    main = {**inventory["model.safetensors"], **inventory["model.safetensors[gen_vision_tower]"]}
    assert shapes_of(main_slots(model)) == main
    assert model.eva is not None
    assert shapes_of(module_slots(model.eva)) == inventory["eva_clip_vision_tower/pytorch_model.bin"]
    for part, module in (("unet", model.decoder.unet), ("vae", model.decoder.vae)):
        stored = inventory[f"diffusion-decoder/{part}/diffusion_pytorch_model.bf16.safetensors"]
        assert shapes_of(module_slots(module)) == stored
    dead = inventory["model.safetensors[vae]"]
    assert all(name.startswith(DEAD) for name in dead)
    assert len(main) + len(dead) == 1372 + 772 + 244


def test_dimensions_are_read_off_the_released_tensors(inventory: dict[str, Shapes]) -> None:
    main = {**inventory["model.safetensors"], **inventory["model.safetensors[gen_vision_tower]"]}
    assert flow_dims(main) == FLOW_DIMS
    assert eva_dims(main) == EVA_DIMS
    assert latent_grid(main, CONFIG, CONFIG["n_query"], None) == GRID
    without_tower = {name: shape for name, shape in main.items() if not name.startswith(EVA)}
    assert latent_grid(without_tower, CONFIG, CONFIG["n_query"], None) == GRID


def test_random_weights_behind_the_roles_stay_finite(
    released: Path, monkeypatch: pytest.MonkeyPatch, picture: Callable[..., Image.Image]
) -> None:
    """The timing model, at the fixture's size."""
    tiny = read_release(released)
    shapes = {name: info.shape for name, info in tiny.main.items()}
    monkeypatch.setattr(
        asg_blip3o.released,
        "full_size_model",
        lambda: build_empty(tiny.config, tiny.config["n_query"], flow_dims(shapes), 4, tiny.decoder_configs),
    )
    small = Sampler(flow_steps=2, decoder_steps=2, height=32, width=32)
    backbone = random_backbone(released, LoadRequest(dtype="bfloat16", options=Blip3oOptions(rollout=small)))
    answer = backbone.solve([TextRequest("What?", picture(1), 1)], TextSampling(4))[0]
    assert all(math.isfinite(entropy) for entropy in answer.entropies)
    drawn = backbone.generate([ImageRequest("a photo", 1)], ImageSampling())
    assert drawn[0].trajectory["features"].isfinite().all()
    assert backbone.generation_loss(drawn, [1]).loss.isfinite().all()
