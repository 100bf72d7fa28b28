"""The sizes of a BAGEL checkpoint for ``asg plan``: JSON files and headers, and a model without memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from asg_bagel.backbone import GENERATION, UNDERSTANDING, vision_rule
from asg_bagel.config import BagelConfig
from asg_bagel.drawing import grid_of, rollout_side
from asg_bagel.modeling_bagel import Bagel
from asg_bagel.modeling_language import EXPERTS
from asg_bagel.modeling_vae import decode_latent
from asg_bagel.options import BagelOptions
from asg_bagel.processing import BagelTokenizer
from asg_bagel.sampling import guidance_on, time_grid
from asg_bagel.text import MARKERS
from asg_bagel.weights_map import is_generation, read_config, slots
from asg_core.backbones.interface import Role
from asg_core.backbones.manifest import LoadRequest
from asg_core.planning.allocation import counted_bytes
from asg_core.planning.model_size import adapter_parameters, counted_flops, matrix_parameters
from asg_core.planning.shape import (
    DRAWING_PROMPT,
    LONGEST_DRAWING_PROMPT,
    Drawing,
    DrawingStage,
    ModelShape,
    Part,
    SeenImage,
    Trunk,
)


def plan(request: LoadRequest) -> ModelShape:
    """The manifest's plan target. Raises WeightsError or ConfigError as loading does."""
    folder = Path(str(request.weights))
    tokenizer = BagelTokenizer(folder)
    return shape_of(read_config(folder), request, lambda text: len(tokenizer.text_segment(text)) + 1)


def shape_of(config: BagelConfig, request: LoadRequest, prompt_tokens: Callable[[str], int]) -> ModelShape:
    """The shape for given sizes; ``prompt_tokens`` as in ModelShape."""
    options: BagelOptions = request.options or BagelOptions()
    dtype: torch.dtype = getattr(torch, request.dtype)
    with torch.device("meta"):
        model = Bagel(config, generation=options.generation).to(dtype)
    layers = model.language_model.model.layers
    und, gen = (_expert_matrices(model, suffix) for suffix in EXPERTS)
    trunk = Trunk(
        layers=len(layers),
        width=config.llm.hidden_size,
        heads=config.llm.num_attention_heads,
        kv_heads=config.llm.num_key_value_heads,
        head_width=config.head_dim,
        ffn=config.llm.intermediate_size,
        vocabulary=config.llm.vocab_size,
        parameters=und,
        itemsize=dtype.itemsize,
        also_saved=(4 + dtype.itemsize)
        * config.head_dim
        * (config.llm.num_attention_heads + config.llm.num_key_value_heads),
        causal_images=False,
    )
    text = adapter_parameters(model.language_model, UNDERSTANDING, request.lora.rank)
    drawn = adapter_parameters(model.language_model, GENERATION, request.lora.rank)
    return ModelShape(
        parts=_parts(model, dtype),
        trunk=trunk,
        adapters={Role.PROPOSER: text, Role.SOLVER: text, Role.GENERATOR: drawn},
        see=_seeing(model, options, dtype),
        prompt_tokens=prompt_tokens,
        drawing=_drawing(model, options, trunk, gen) if options.generation else None,
    )


def _expert_matrices(model: Bagel, suffix: str) -> int:
    """Matrix parameters of one expert in all layers."""
    mine = re.compile(rf"layers\.\d+\.(self_attn\.[qkvo]_proj{suffix}|mlp{suffix}\..*)")
    named = model.language_model.model.named_modules()
    return sum(matrix_parameters(module) for name, module in named if mine.fullmatch(name))


def _parts(model: Bagel, dtype: torch.dtype) -> tuple[Part, ...]:
    counts = {"text": 0, "vision": 0, "drawing": 0}
    vision = ("vit_model.", "connector.", "vit_pos_embed.")
    for name, slot in slots(model).items():
        if is_generation(name):
            # layers of an expert that was left out hold placeholders
            counts["drawing"] += slot.tensor.numel() if model.generation else 0
        else:
            counts["vision" if name.startswith(vision) else "text"] += slot.tensor.numel()
    return tuple(Part(name, count, count * dtype.itemsize) for name, count in counts.items() if count)


def _seeing(model: Bagel, options: BagelOptions, dtype: torch.dtype) -> Callable[[int, int], SeenImage]:
    rule, vision = vision_rule(model, options), model.config.vision
    matrices = matrix_parameters(model.vit_model) + matrix_parameters(model.connector)
    block: Any = model.vit_model.vision_model.encoder.layers[0]
    few = torch.empty(1, 64, vision.hidden_size, device="meta", dtype=dtype)
    per_patch = (
        counted_bytes(block, few, None) // 64 + few.nbytes // 64 + 2 * dtype.itemsize * model.config.llm.hidden_size
    )

    def see(width: int, height: int) -> SeenImage:
        columns, rows = (side // vision.patch_size for side in rule.size(width, height))
        patches = rows * columns
        attention = 4.0 * vision.num_hidden_layers * vision.hidden_size * patches**2
        flops = 2.0 * matrices * patches + attention
        return SeenImage(patches + 2, flops, vision.num_hidden_layers, per_patch * patches)

    return see


def _drawing(model: Bagel, options: BagelOptions, trunk: Trunk, gen: int) -> Drawing:
    config, sampler = model.config, options.rollout
    rows, columns = grid_of(config, sampler, rollout_side(config))
    tokens = rows * columns
    times = time_grid(sampler.num_timesteps, sampler.timestep_shift)[:-1].tolist()
    guided = sum(guidance_on(sampler, time) for time in times)
    context = DRAWING_PROMPT + MARKERS + tokens
    attention = trunk.attention_flops(tokens + MARKERS, context)
    forward = 2.0 * gen * tokens + 2.0 * trunk.parameters * MARKERS + attention
    side = (rows * config.latent_patch, columns * config.latent_patch)
    latent = torch.empty(1, config.vae.z_channels, *side, device="meta", dtype=torch.float32)
    width, height = columns * config.image_stride, rows * config.image_stride
    return Drawing(
        size=(width, height),
        stages=(
            DrawingStage("denoise", len(times), (len(times) + guided) * forward, gen + trunk.parameters, trunk.layers),
            DrawingStage(
                "pixels",
                1,
                counted_flops(decode_latent, model.vae, latent),
                sum(parameter.numel() for parameter in model.vae.decoder.parameters()),
                len(config.vae.ch_mult) * config.vae.num_res_blocks,
            ),
        ),
        batch=options.draw_batch,
        # prompts as read, as rows of their own, and as guided rows: the half without a prompt is padded to the other
        cache_per_image=4 * LONGEST_DRAWING_PROMPT * trunk.kv_bytes,
        bytes_per_image=trunk.forward_bytes(2, tokens + MARKERS, LONGEST_DRAWING_PROMPT),
        bytes_once=counted_bytes(decode_latent, model.vae, latent),
        loss_flops=forward,
        loss_attention_flops=attention,
        loss_layers=trunk.layers,
        loss=trunk.activations(1, tokens + MARKERS, LONGEST_DRAWING_PROMPT),
    )
