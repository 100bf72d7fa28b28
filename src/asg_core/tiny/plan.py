"""The sizes of a tiny checkpoint for ``asg plan``: its header and a model without memory."""

from __future__ import annotations

import torch

from asg_core.backbones.interface import Role
from asg_core.backbones.manifest import LoadRequest
from asg_core.planning.model_size import adapter_parameters, matrix_parameters, part_of
from asg_core.planning.shape import (
    DRAWING_PROMPT,
    LONGEST_DRAWING_PROMPT,
    Drawing,
    DrawingStage,
    ModelShape,
    SeenImage,
    Trunk,
)
from asg_core.tiny.backbone import LINEAR, FlowOptions
from asg_core.tiny.model import CELLS, PIXELS, TinyConfig, TinyModel
from asg_core.tiny.vocabulary import Vocabulary
from asg_core.tiny.weights import read_sizes


def plan(request: LoadRequest) -> ModelShape:
    """Of ``backbone=tiny``: one trunk pass per code."""
    model, trunk = _empty(request)
    codes = DrawingStage("codes", CELLS, _drawn(trunk), trunk.parameters, trunk.layers)
    return _shape(request, model, trunk, (codes,), CELLS - 1)


def plan_flow(request: LoadRequest) -> ModelShape:
    """Of ``backbone=tiny_flow``: one trunk pass over all cells per Euler step."""
    model, trunk = _empty(request)
    steps = (request.options or FlowOptions()).rollout_steps
    euler = DrawingStage("denoise", steps, steps * _drawn(trunk), trunk.parameters, trunk.layers)
    return _shape(request, model, trunk, (euler,), CELLS)


def _empty(request: LoadRequest) -> tuple[TinyModel, Trunk]:
    sizes = read_sizes(request.weights)
    with torch.device("meta"):
        model = TinyModel(sizes)
    return model, _trunk(model, sizes, getattr(torch, request.dtype))


def _trunk(model: TinyModel, sizes: TinyConfig, dtype: torch.dtype) -> Trunk:
    return Trunk(
        layers=sizes.layers,
        width=sizes.width,
        heads=sizes.heads,
        kv_heads=sizes.heads,
        head_width=sizes.width // sizes.heads,
        ffn=sizes.intermediate,
        vocabulary=sizes.words,
        parameters=matrix_parameters(model.trunk),
        itemsize=dtype.itemsize,
    )


def _drawn(trunk: Trunk) -> float:
    return trunk.flops(CELLS, DRAWING_PROMPT)


def _shape(
    request: LoadRequest, model: TinyModel, trunk: Trunk, stages: tuple[DrawingStage, ...], cells: int
) -> ModelShape:
    dtype: torch.dtype = getattr(torch, request.dtype)
    vocabulary = Vocabulary()
    flow = (model.flow_in, model.flow_time, model.flow_out)
    seen = SeenImage(1 + CELLS, 2.0 * sum(p.numel() for p in model.stem.parameters()) * CELLS, 3, 0)
    return ModelShape(
        parts=(
            part_of("text", dtype, model.trunk, model.word_head),
            part_of("vision", dtype, model.stem, model.rows, model.columns),
            part_of("drawing", dtype, model.code_embedding, model.code_head, *flow),
            part_of("embedding", dtype, model.embed_head),
        ),
        trunk=trunk,
        adapters={role: adapter_parameters(model.trunk, LINEAR, request.lora.rank) for role in Role},
        see=lambda width, height: seen,
        prompt_tokens=lambda text: len(vocabulary.encode(text)) + 1,
        drawing=Drawing(
            size=(PIXELS, PIXELS),
            stages=stages,
            batch=1 << 16,
            cache_per_image=trunk.kv_bytes * (LONGEST_DRAWING_PROMPT + CELLS),
            bytes_per_image=trunk.forward_bytes(1, CELLS, LONGEST_DRAWING_PROMPT),
            bytes_once=0,
            loss_flops=trunk.flops(DRAWING_PROMPT + cells, DRAWING_PROMPT),
            loss_attention_flops=trunk.attention_flops(DRAWING_PROMPT + cells, DRAWING_PROMPT),
            loss_layers=trunk.layers,
            loss=trunk.activations(1, LONGEST_DRAWING_PROMPT + cells),
        ),
    )
