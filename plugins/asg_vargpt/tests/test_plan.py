"""What ``asg plan`` says of VARGPT: equal to what is loaded, and the known figures at the released size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asg_vargpt.options import VargptOptions
from asg_vargpt.plan import plan, shape_of
from asg_vargpt.released import ARCHITECTURE, CONFIG
from asg_vargpt.weights_map import empty_model
from PIL import Image

from asg_core.backbones.interface import ImageRequest, ImageSampling, Role
from asg_core.backbones.manifest import LoadRequest, LoraSettings
from asg_core.planning.shape import ModelShape

SMALL = {"resolution": "0.06M"}


def planned(golden: Path, dtype: Any = "float32", **options: Any) -> ModelShape:
    chosen = VargptOptions.model_validate({"rollout": SMALL, "quality": SMALL, **options})
    return plan(LoadRequest(weights=golden / "ckpt", dtype=dtype, options=chosen, lora=LoraSettings(rank=4, alpha=8)))


@pytest.mark.parametrize(
    "options", [{}, {"generation": False}, {"generator_adapter": "language_model_and_decoder"}], ids=str
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_counts_are_those_of_the_loaded_model(
    load: Callable[..., Any], golden: Path, options: dict[str, Any], dtype: str
) -> None:
    backbone, shape = load(dtype=dtype, **options), planned(golden, dtype, **options)
    base = [p for name, p in backbone.model.named_parameters() if "lora_" not in name]
    assert shape.parameters == sum(p.numel() for p in base)
    assert shape.weight_bytes == sum(p.nbytes for p in base)
    held = {role: sum(p.numel() for p in backbone.trainable(role).values()) for role in shape.adapters}
    assert shape.adapters == held
    assert (Role.GENERATOR in held) == (shape.drawing is not None)


@pytest.mark.parametrize("size", [(60, 88), (28, 28), (300, 40)])
def test_tokens_are_those_of_the_segments(
    awake: Any, golden: Path, picture: Callable[..., Image.Image], size: tuple[int, int]
) -> None:
    shape = planned(golden)
    assert shape.see(*size).tokens == len(awake.text.prefixes([picture(1, *size)])[0].embeds)
    for text in ("", "what is it?", "the <|im_end|> cat"):
        assert shape.prompt_tokens(text) == len(awake.text.prompt(text).embeds)


def test_drawing_is_what_is_drawn(backbone: Any, golden: Path) -> None:
    shape = planned(golden)
    calls: list[int] = []
    backbone.model.decoder.register_forward_hook(lambda *_: calls.append(1))
    drawn = backbone.generate([ImageRequest("a cat", 1)], ImageSampling())
    assert shape.drawing is not None
    assert shape.drawing.size == drawn[0].image.size
    assert shape.drawing.stages[0].calls == len(calls)


def test_the_released_size_costs_what_is_known_of_it(golden: Path) -> None:
    """20 GiB, 15.4 without drawing; 92 TFLOP and 1.47 GiB of caches an image of 512 x 512."""
    shape = shape_of(empty_model(CONFIG, ARCHITECTURE), golden / "ckpt", LoadRequest(dtype="bfloat16"))
    counts = {part.name: part.parameters for part in shape.parts}
    assert counts["vision"] == 675_759_104
    assert counts["text"] == 7_070_619_136 + 544_997_376
    assert counts["autoencoder"] == 110_118_083 - 32  # its mask is never read
    assert shape.weight_bytes / 2**30 == pytest.approx(20.0, abs=0.05)
    assert shape.drawing is not None
    assert sum(stage.flops for stage in shape.drawing.stages) == pytest.approx(92e12, rel=0.01)
    assert shape.drawing.cache_per_image / 2**30 == pytest.approx(0.145 + 1.325, abs=0.01)
    request = LoadRequest(dtype="bfloat16", options=VargptOptions(generation=False))
    text_only = shape_of(empty_model(CONFIG, ARCHITECTURE, generation=False), golden / "ckpt", request)
    assert text_only.weight_bytes / 2**30 == pytest.approx(15.5, abs=0.1)
    assert text_only.drawing is None
