"""Dimensions that no config file of the release holds, inferred from tensor names and shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asg_core.errors import WeightsError

FLOW = "model.dit.model."
"""Prefix of the flow network's tensors in the main checkpoint."""
EVA = "model.gen_vision_tower.vision_tower.model."
"""Prefix of the EVA-CLIP tower's tensors in the main checkpoint; a separate tower file has none."""
DEAD = ("model.vae.",)
"""Prefixes that no code path of the model reads: a left-over autoencoder."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class FlowDims:
    """Next-DiT: model width, feature channels, attention heads, layers, FFN width, and the widths of its condition."""

    width: int
    channels: int
    heads: int
    kv_heads: int
    layers: int
    ffn: int
    condition: int
    context: int


@dataclass(frozen=True)
class EvaDims:
    """EVA-CLIP tower: width, blocks, MLP width, patch side in pixels, patches per side."""

    width: int
    layers: int
    mlp: int
    patch: int
    patches: int

    @property
    def image_size(self) -> int:
        """Side of the square input, pixels."""
        return self.patch * self.patches


def flow_dims(shapes: Shapes, prefix: str = FLOW) -> FlowDims:
    """Read the flow network's dimensions off its tensors. Raises WeightsError naming a tensor that is not there."""
    width, channels = _shape(shapes, f"{prefix}patch_embedder.proj.weight", 2)
    context, condition = _shape(shapes, f"{prefix}caption_projection.linear_1.weight", 2)
    (heads,) = _shape(shapes, f"{prefix}layers.0.gate", 1)
    return FlowDims(
        width=width,
        channels=channels,
        heads=heads,
        kv_heads=_shape(shapes, f"{prefix}layers.0.attn1.to_k.weight", 2)[0] * heads // width,
        layers=_count(shapes, f"{prefix}layers."),
        ffn=_shape(shapes, f"{prefix}layers.0.feed_forward.linear_1.weight", 2)[0],
        condition=condition,
        context=context,
    )


def eva_dims(shapes: Shapes, prefix: str = EVA) -> EvaDims:
    """Read the tower's dimensions off its tensors. Raises WeightsError naming a tensor that is not there."""
    width, _, patch, _ = _shape(shapes, f"{prefix}patch_embed.proj.weight", 4)
    return EvaDims(
        width=width,
        layers=_count(shapes, f"{prefix}blocks."),
        mlp=_shape(shapes, f"{prefix}blocks.0.mlp.fc1.weight", 2)[0],
        patch=patch,
        patches=math.isqrt(_shape(shapes, f"{prefix}pos_embed", 3)[1] - 1),
    )


def pool_stride(config: Mapping[str, Any]) -> int:
    """Stride of the average pooling over tower features, from ``gen_pooling`` such as ``early_pool2d_4``."""
    found = re.fullmatch(r"early_pool2d_(\d+)", str(config.get("gen_pooling")))
    if found is None:
        raise WeightsError(
            f"gen_pooling={config.get('gen_pooling')!r} in config.json is not known",
            "only early_pool2d_<stride> is implemented",
            "use a BLIP3o checkpoint of the diffusion family (4B or 8B)",
        )
    return int(found[1])


def latent_grid(shapes: Shapes, config: Mapping[str, Any], n_query: int, override: int | None) -> int:
    """Side of the feature grid: ``override``, else the tower's patches per side / pool stride, else sqrt(n_query).

    Raises:
        WeightsError: the checkpoint has no tower and ``n_query`` is no square number.
    """
    if override is not None:
        return override
    if f"{EVA}pos_embed" in shapes:
        return eva_dims(shapes).patches // pool_stride(config)
    side = math.isqrt(n_query)
    if side * side != n_query:
        raise WeightsError(
            "the side of the feature grid is unknown",
            f"the checkpoint has no {EVA}pos_embed, and {n_query} queries form no square",
            "set backbone_options.latent_grid",
        )
    return side


def _shape(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None or len(shape) != rank:
        raise WeightsError(
            f"tensor {name!r} is {'missing' if shape is None else f'of shape {list(shape)}, expected {rank} axes'}",
            "the model's dimensions are read off it",
            "give the directory of a complete BLIP3o release (4B or 8B, not BLIP3o-NEXT)",
        )
    return shape


def _count(shapes: Shapes, prefix: str) -> int:
    found = {int(name[len(prefix) :].split(".", 1)[0]) for name in shapes if name.startswith(prefix)}
    return max(found, default=-1) + 1
