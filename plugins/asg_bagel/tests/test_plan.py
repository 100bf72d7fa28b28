"""What ``asg plan`` says of BAGEL: equal to what is loaded, and the known figures at the released size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from asg_bagel.backbone import BagelBackbone
from asg_bagel.options import BagelOptions, Sampler
from asg_bagel.plan import plan, shape_of
from asg_bagel.released import released_config
from asg_core.backbones.interface import ImageRequest, ImageSampling, Role
from asg_core.backbones.manifest import LoadRequest, LoraSettings
from asg_core.planning.shape import ModelShape

from bagel_fixtures import GOLDEN, OPTIONS, picture


def planned(weights: Path = GOLDEN / "checkpoint", **options: Any) -> ModelShape:
    return plan(LoadRequest(weights=weights, options=BagelOptions.model_validate({**OPTIONS, **options})))


@pytest.mark.parametrize("generation", [True, False])
def test_counts_are_those_of_the_loaded_model(load: Callable[..., BagelBackbone], generation: bool) -> None:
    backbone, shape = load(generation=generation), planned(generation=generation)
    base = [p for name, p in backbone.model.named_parameters() if "lora_" not in name]
    real = [p for p in base if p.untyped_storage().nbytes() >= p.nbytes]  # left-out layers hold placeholders
    assert shape.parameters == sum(p.numel() for p in real)
    assert shape.weight_bytes == sum(p.nbytes for p in real)
    held = {role: sum(p.numel() for p in backbone.trainable(role).values()) for role in Role}
    assert shape.adapters == held
    assert (shape.drawing is None) == (not generation)


@pytest.mark.parametrize("size", [(60, 44), (28, 28), (300, 40)])
def test_tokens_are_those_of_the_segments(backbone: BagelBackbone, size: tuple[int, int]) -> None:
    shape = planned()
    image = picture(1, *size)
    assert shape.see(*size).tokens == len(backbone.text.prefixes([image])[0].embeds)
    for text in ("", "what is it?", "the <|im_end|> cat"):
        assert shape.prompt_tokens(text) == len(backbone.text.prompt(text).embeds)


def test_drawing_is_what_is_drawn(load: Callable[..., BagelBackbone]) -> None:
    backbone, shape = load(), planned()
    calls: list[int] = []
    backbone.model.llm2vae.register_forward_hook(lambda *_: calls.append(1))
    drawn = backbone.generate([ImageRequest("a cat", 1)], ImageSampling())
    assert shape.drawing is not None
    assert shape.drawing.size == drawn[0].image.size
    assert shape.drawing.stages[0].calls == len(calls)


def test_the_released_size_costs_what_is_known_of_it() -> None:
    """29.2 GB and the autoencoder; 16.1 GB without drawing; 13.8 TFLOP a forward at 512 x 512, 1.24 PFLOP an image."""
    options = BagelOptions(rollout=Sampler(height=512, width=512))
    shape = shape_of(released_config(), LoadRequest(dtype="bfloat16", options=options), len)
    assert shape.parameters == 14_607_260_128 + 83_819_683
    assert shape.weight_bytes == 2 * shape.parameters
    assert shape.trunk.kv_bytes == 57_344
    assert shape.see(448, 448).tokens == 1026
    assert shape.see(980, 980).tokens == 4902
    assert shape.see(448, 448).flops == pytest.approx(0.95e12, rel=0.05)
    assert set(shape.adapters.values()) == {40_370_176}
    assert shape.drawing is not None
    denoise, pixels = shape.drawing.stages
    assert denoise.calls == 49
    assert denoise.flops == pytest.approx(1.24e15, rel=0.01)
    assert shape.drawing.loss_flops == pytest.approx(13.8e12, rel=0.01)
    assert pixels.flops == pytest.approx(10e12 / 4, rel=0.05)
    request = LoadRequest(dtype="bfloat16", options=BagelOptions(generation=False))
    text_only = shape_of(released_config(), request, len)
    assert text_only.weight_bytes == pytest.approx(16.1e9, rel=0.01)


def test_rank_and_dtype_count() -> None:
    config = released_config()
    small = shape_of(config, LoadRequest(dtype="float32", lora=LoraSettings(rank=4)), len)
    assert 4 * small.adapters[Role.SOLVER] == 40_370_176
    assert small.weight_bytes == 4 * small.parameters
    assert small.trunk.itemsize == torch.float32.itemsize
