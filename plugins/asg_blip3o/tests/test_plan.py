"""What ``asg plan`` says of BLIP3o: equal to what is loaded, and the known figures at the released size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asg_blip3o.backbone import Blip3oBackbone
from asg_blip3o.options import Blip3oOptions, Sampler
from asg_blip3o.plan import plan, shape_of
from asg_blip3o.released import full_size_model
from PIL import Image

from asg_core.backbones.interface import ImageRequest, ImageSampling, Role
from asg_core.backbones.manifest import LoadRequest, LoraSettings
from asg_core.planning.shape import ModelShape

Load = Callable[..., Blip3oBackbone]
SMALL = Sampler(flow_steps=4, decoder_steps=3, height=32, width=32)


def planned(weights: Path, **options: Any) -> ModelShape:
    chosen = Blip3oOptions(rollout=SMALL, quality=SMALL, eva_head_width=16, **options)
    return plan(LoadRequest(weights=weights, options=chosen, lora=LoraSettings(rank=4, alpha=8)))


@pytest.mark.parametrize("options", [{}, {"real_image_target": True}, {"generator_language_lora": True}])
def test_counts_are_those_of_the_loaded_model(load: Load, released: Path, options: dict[str, bool]) -> None:
    backbone, shape = load(**options), planned(released, **options)
    base = {id(p): p for name, p in backbone.model.named_parameters() if "lora_" not in name}
    assert shape.parameters == sum(p.numel() for p in base.values())
    assert shape.weight_bytes == sum(p.nbytes for p in base.values())
    assert shape.adapters == {r: sum(p.numel() for p in backbone.trainable(r).values()) for r in Role}


def test_without_drawing_only_the_understanding_half_is_counted(load: Load, released: Path) -> None:
    backbone, shape = load(drawing=False), planned(released, drawing=False)
    model = backbone.model
    text = {id(p): p for name, p in model.vlm.named_parameters() if "lora_" not in name}
    assert shape.parameters == sum(p.numel() for p in text.values()) + model.latent_queries.numel()
    assert shape.drawing is None


@pytest.mark.parametrize("size", [(60, 88), (28, 28), (300, 40)])
def test_tokens_are_those_of_the_segments(
    backbone: Blip3oBackbone, released: Path, picture: Callable[..., Image.Image], size: tuple[int, int]
) -> None:
    shape = planned(released)
    assert shape.see(*size).tokens == len(backbone.text.prefixes([picture(1, *size)])[0].embeds)
    for text in ("", "what is it?", "the <|im_end|> cat"):
        assert shape.prompt_tokens(text) == len(backbone.text.prompt(text).embeds)


def test_drawing_is_what_is_drawn(backbone: Blip3oBackbone, released: Path) -> None:
    shape = planned(released)
    calls = {"features": 0, "decoder": 0, "pixels": 0}

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    backbone.model.flow.register_forward_hook(count("features"))
    backbone.model.decoder.unet.register_forward_hook(count("decoder"))
    backbone.model.decoder.vae.decoder.register_forward_hook(count("pixels"))
    drawn = backbone.generate([ImageRequest("a cat", 1)], ImageSampling())
    assert shape.drawing is not None
    assert shape.drawing.size == drawn[0].image.size
    assert {s.name: s.calls for s in shape.drawing.stages if s.name != "queries"} == calls


def test_the_released_size_costs_what_is_known_of_it(released: Path) -> None:
    """LM and tower 16.6 GB, flow 2.7, decoder 5.05, autoencoder 0.17; 0.304 and 13.48 TFLOP a step of the stages."""
    request = LoadRequest(dtype="bfloat16", options=Blip3oOptions(rollout=Sampler()))
    shape = shape_of(full_size_model(), released, request)
    gigabytes = {part.name: part.bytes / 1e9 for part in shape.parts}
    assert gigabytes["text"] + gigabytes["vision"] == pytest.approx(16.6, abs=0.05)
    assert gigabytes["queries and flow"] == pytest.approx(2.7, abs=0.05)
    assert gigabytes["decoder"] == pytest.approx(5.05, abs=0.01)
    assert gigabytes["autoencoder"] == pytest.approx(0.17, abs=0.005)
    assert shape.trunk.kv_bytes == 56 * 1024
    assert shape.drawing is not None
    stages = {stage.name: stage for stage in shape.drawing.stages}
    assert stages["features"].flops == pytest.approx(30 * 0.304e12, rel=1e-3)
    assert stages["decoder"].flops == pytest.approx(50 * 13.48e12, rel=1e-3)
    assert stages["pixels"].flops == pytest.approx(10.5e12, rel=0.01)
