"""Models for ``gpu.py``: the released sizes, a slice of them, or the recorded fixtures' sizes; weights are random."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from asg_core.backbones.interface import Backbone
from asg_core.backbones.manifest import LoadRequest
from asg_core.models.weights.inventory import read_inventory, read_json, shapes
from asg_core.models.weights.loader import LoadReport
from asg_core.planning.shape import Drawing, ModelShape

PLUGINS = Path(__file__).resolve().parent.parent / "plugins"
NAMES = ("vargpt", "blip3o", "bagel")
"""Fastest first, so that what they leave of the time goes to the slower ones."""

Scale = Literal["full", "slice", "tiny"]


@dataclass(frozen=True)
class Built:
    """A model behind its roles, its shape, how each profile draws, and a square input image's side in pixels."""

    backbone: Backbone
    shape: ModelShape
    drawings: Mapping[str, Drawing]
    side: int

    def prefill_flops(self, prompt: str) -> float:
        """FLOPs of an image and then a prompt through tower and layers; no head."""
        seen, own = self.shape.see(self.side, self.side), self.shape.prompt_tokens(prompt)
        trunk = self.shape.trunk
        return seen.flops + trunk.flops(seen.tokens, seen.tokens) + trunk.flops(own, seen.tokens + own)


def installed(name: str) -> bool:
    """Whether the plugin can be imported."""
    return find_spec(f"asg_{name}") is not None


def build(name: str, scale: Scale, device: str, dtype: str, *, checkpointing: bool = False) -> Built:
    """A model with seeded random weights, made on ``device``.

    Tokenizers are those of the recorded fixtures: a few hundred tokens, so prompts have more tokens than with the
    released one. "slice" has the released widths and two layers of everything; its "quality" is more steps than its
    "rollout".
    """
    request = LoadRequest(device=device, dtype=dtype, gradient_checkpointing=checkpointing)
    backbone, shape_with = {"bagel": _bagel, "blip3o": _blip3o, "vargpt": _vargpt}[name](scale, request)
    shapes = {profile: shape_with(profile) for profile in ("quality", "rollout")}
    drawings = {profile: shape.drawing for profile, shape in shapes.items() if shape.drawing is not None}
    return Built(backbone, shapes["rollout"], drawings, 56 if scale == "tiny" else 448)


def pictures(count: int, side: int) -> list[Image.Image]:
    """``count`` fresh square images of random pixels; equal pixels in every call, never the same objects."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in pixels]


ShapeWith = Callable[[str], ModelShape]
"""Profile -> the shape of a model that draws its training candidates with that profile."""


def _with(request: LoadRequest, options: Any) -> LoadRequest:
    return request.model_copy(update={"options": options})


def _drawing_with(request: LoadRequest, profile: str) -> LoadRequest:
    options = request.options
    return _with(request, options.model_copy(update={"rollout": getattr(options, profile)}))


def _bagel(scale: Scale, request: LoadRequest) -> tuple[Backbone, ShapeWith]:
    from asg_bagel.backbone import BagelBackbone
    from asg_bagel.config import build_config
    from asg_bagel.options import BagelOptions, Sampler
    from asg_bagel.plan import shape_of
    from asg_bagel.processing import BagelTokenizer
    from asg_bagel.released import LLM, VISION, random_model, released_config
    from asg_bagel.weights_map import read_config

    files = PLUGINS / "asg_bagel/tests/fixtures/golden/checkpoint"
    if scale == "full":
        config, quality, rollout = released_config(), Sampler(height=512, width=512), Sampler(height=640, width=640)
    elif scale == "slice":
        config = build_config(
            {**LLM, "num_hidden_layers": 2},
            {**VISION, "num_hidden_layers": 3},
            {},
            vision_rows=70**2,
            latent_rows=64**2,
            latent_width=64,
        )
        rollout = Sampler(height=256, width=256, num_timesteps=3)
        quality = rollout.model_copy(update={"num_timesteps": 8})
    else:
        config = read_config(files)
        largest = config.max_image_size
        quality, rollout = Sampler(height=largest, width=largest, num_timesteps=5), Sampler(num_timesteps=4)
    # candidates of 640 x 640 are judged at 448 x 448: at full size eight images would not fit 80 GB
    longest, shortest = (None, 28) if scale == "tiny" else (448, 224)
    options = BagelOptions(quality=quality, rollout=rollout, vision_longest=longest, vision_shortest=shortest)
    request = _with(request, options)
    import torch

    model = random_model(config, device=request.device, dtype=getattr(torch, request.dtype))
    tokenizer = BagelTokenizer(files)

    def shape(profile: str) -> ModelShape:
        drawing = _drawing_with(request, profile)
        return shape_of(config, drawing, lambda text: len(tokenizer.text_segment(text)) + 1)

    return BagelBackbone(model, tokenizer, request, LoadReport()), shape


def _blip3o(scale: Scale, request: LoadRequest) -> tuple[Backbone, ShapeWith]:
    from asg_blip3o import released
    from asg_blip3o.modeling_blip3o import Blip3oModel, build_empty
    from asg_blip3o.options import Blip3oOptions, Sampler
    from asg_blip3o.plan import shape_of
    from asg_blip3o.weights_map import empty_model, read_release

    files = PLUGINS / "asg_blip3o/tests/fixtures/golden/checkpoint"
    short = Sampler(flow_steps=3, decoder_steps=2, height=256, width=256)
    long = short.model_copy(update={"flow_steps": 8, "decoder_steps": 8})
    options = {
        "full": Blip3oOptions(),
        "slice": Blip3oOptions(quality=long, rollout=short),
        "tiny": Blip3oOptions(
            quality=Sampler(flow_steps=3, decoder_steps=3, height=64, width=64),
            rollout=Sampler(flow_steps=3, decoder_steps=2, height=32, width=32),
        ),
    }[scale]
    request = _with(request, options)

    def empty() -> Blip3oModel:
        if scale == "full":
            return released.full_size_model()
        if scale == "tiny":
            return empty_model(read_release(files), options)
        vision = {**released.CONFIG["vision_config"], "depth": 2, "fullatt_block_indexes": [1]}
        config = {**released.CONFIG, "num_hidden_layers": 2, "max_window_layers": 2, "vision_config": vision}
        unet = {**released.UNET, "transformer_layers_per_block": [1, 1, 1]}
        decoder = (unet, released.VAE, released.SCHEDULER)
        return build_empty(config, config["n_query"], replace(released.FLOW_DIMS, layers=2), released.GRID, decoder)

    def shape(profile: str) -> ModelShape:
        return shape_of(empty(), files, _drawing_with(request, profile))

    return released.random_backbone(files, request, empty()), shape


def _vargpt(scale: Scale, request: LoadRequest) -> tuple[Backbone, ShapeWith]:
    from asg_vargpt import released
    from asg_vargpt.config import infer
    from asg_vargpt.options import Sampler, VargptOptions
    from asg_vargpt.plan import shape_of
    from asg_vargpt.weights_map import empty_model

    files = PLUGINS / "asg_vargpt/tests/fixtures/golden/ckpt"
    small, native = Sampler(resolution="0.06M"), Sampler(resolution="0.25M")
    options = VargptOptions(quality=small, rollout=native if scale == "full" else small)
    config, architecture = released.CONFIG, released.ARCHITECTURE
    if scale == "tiny":
        config = read_json(files / "config.json")
        architecture = infer(config, shapes(read_inventory(files)))
    elif scale == "slice":
        config = {**config, "num_hidden_layers": 2, "vision_config": {**config["vision_config"], "depth": 2}}
        architecture = replace(architecture, decoder=replace(architecture.decoder, chunks=(2,)))
    request = _with(request, options)
    backbone = released.random_backbone(files, request, config, architecture)
    return backbone, lambda profile: shape_of(empty_model(config, architecture), files, _drawing_with(request, profile))
