"""The sizes of a VARGPT checkpoint for ``asg plan``: configuration and headers, and a model without memory."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from asg_core.backbones.interface import Role
from asg_core.backbones.manifest import LoadRequest
from asg_core.models.weights.inventory import read_inventory, read_json, shapes
from asg_core.planning.activations import Activations
from asg_core.planning.allocation import adapted, counted_activations, counted_bytes
from asg_core.planning.model_size import adapter_parameters, counted_flops, matrix_parameters, part_of
from asg_core.planning.shape import (
    DRAWING_PROMPT,
    LONGEST_DRAWING_PROMPT,
    Drawing,
    DrawingStage,
    ModelShape,
    Part,
    SeenImage,
    Trunk,
    rotary_tower_bytes,
)
from asg_vargpt.backbone import DECODER, LANGUAGE_MODEL
from asg_vargpt.config import infer
from asg_vargpt.modeling_attention import Rope, ScaleCache
from asg_vargpt.modeling_vargpt import Vargpt
from asg_vargpt.options import VargptOptions, per_scale
from asg_vargpt.processing import load_tokenizer
from asg_vargpt.scales import schedule
from asg_vargpt.text import HEADER, TAIL
from asg_vargpt.weights_map import CONFIG, empty_model


def plan(request: LoadRequest) -> ModelShape:
    """The manifest's plan target. Raises WeightsError or ConfigError as loading does."""
    folder = Path(str(request.weights))
    config = read_json(folder / CONFIG)
    options: VargptOptions = request.options or VargptOptions()
    architecture = infer(config, shapes(read_inventory(folder)))
    return shape_of(empty_model(config, architecture, generation=options.generation), folder, request)


def shape_of(model: Vargpt, files: Path, request: LoadRequest) -> ModelShape:
    """The shape of a model without memory; ``files`` holds its tokenizer."""
    options: VargptOptions = request.options or VargptOptions()
    dtype: torch.dtype = getattr(torch, request.dtype)
    sizes = model.qwen.config.text_config
    trunk = Trunk(
        layers=sizes.num_hidden_layers,
        width=sizes.hidden_size,
        heads=sizes.num_attention_heads,
        kv_heads=sizes.num_key_value_heads,
        head_width=sizes.hidden_size // sizes.num_attention_heads,
        ffn=sizes.intermediate_size,
        vocabulary=sizes.vocab_size,
        parameters=matrix_parameters(model.language_model),
        itemsize=dtype.itemsize,
    )
    tokenizer = load_tokenizer(files)

    def count(text: str, special: bool) -> int:
        return len(tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"])

    tail = count(TAIL, special=True)
    text = adapter_parameters(model.language_model, LANGUAGE_MODEL, request.lora.rank)
    adapters = {Role.PROPOSER: text, Role.SOLVER: text}
    if model.generation:
        on_decoder = options.generator_adapter == "language_model_and_decoder"
        more = adapter_parameters(model.decoder, DECODER, request.lora.rank) if on_decoder else 0
        adapters[Role.GENERATOR] = text + more
    return ModelShape(
        parts=_parts(model, dtype),
        trunk=trunk,
        adapters=adapters,
        see=_seeing(model, options, count(HEADER, special=True), dtype),
        prompt_tokens=lambda text: count(text, special=False) + tail,
        drawing=_drawing(model, options, trunk, dtype) if model.generation else None,
    )


def _parts(model: Vargpt, dtype: torch.dtype) -> tuple[Part, ...]:
    text = part_of("text", dtype, model.language_model, model.qwen.lm_head)
    vision = part_of("vision", dtype, model.visual)
    if not model.generation:
        return text, vision
    drawing = (model.projector_in, model.projector_out, model.sos_embedding, model.decoder)
    return text, vision, part_of("drawing", dtype, *drawing), part_of("autoencoder", torch.float32, model.vae)


def _seeing(model: Vargpt, options: VargptOptions, header: int, dtype: torch.dtype) -> Callable[[int, int], SeenImage]:
    vision: Any = model.qwen.config.vision_config
    blocks, merger = matrix_parameters(model.visual.blocks), matrix_parameters(model.visual.merger)
    merge = vision.spatial_merge_size

    def see(width: int, height: int) -> SeenImage:
        multiple = vision.patch_size * merge
        resized = smart_resize(height, width, multiple, options.min_pixels, options.max_pixels)
        count = int(resized[0] // vision.patch_size) * int(resized[1] // vision.patch_size)
        tokens = count // merge**2
        flops = 2.0 * (blocks * count + merger * tokens) + 4.0 * vision.depth * vision.embed_dim * count**2
        made = rotary_tower_bytes(count, vision.embed_dim, int(vision.embed_dim * vision.mlp_ratio), dtype.itemsize)
        return SeenImage(header + 1 + tokens + 1, flops, vision.depth, made)

    return see


def _drawing(model: Vargpt, options: VargptOptions, trunk: Trunk, dtype: torch.dtype) -> Drawing:
    sampler, decoder = options.rollout, model.decoder.shape
    plan = schedule(sampler.aspect_ratio, sampler.resolution)
    scales, positions = len(plan.grids), plan.positions
    guided = any(g != 1 for g in per_scale("guidance", sampler.guidance, scales))
    rows = 2 if guided else 1
    seen = list(accumulate(plan.lengths))
    conditional = sum(length * (DRAWING_PROMPT + end) for length, end in zip(plan.lengths, seen, strict=True))
    alone = sum(length**2 / 2 for length in plan.lengths) if guided else 0
    read = positions + DRAWING_PROMPT
    language = 2.0 * trunk.parameters * (read + (rows - 1) * positions)
    language += trunk.attention_flops(1, DRAWING_PROMPT**2 + conditional + alone)
    # Keys and values of the cross-attention are computed once per prompt.
    read_once = sum(matrix_parameters(block.get_submodule("ca.mat_kv")) for block in model.decoder.blocks)
    per_cell = sum(map(matrix_parameters, (model.projector_in, model.projector_out, model.decoder.blocks))) - read_once
    blockwise = sum(length * end for length, end in zip(plan.lengths, seen, strict=True)) + positions * DRAWING_PROMPT
    in_decoder = 4.0 * decoder.depth * decoder.width
    cells = 2.0 * per_cell * positions + in_decoder * blockwise
    width, height = plan.pixels[1], plan.pixels[0]
    last = plan.lengths[-1]
    latent = torch.empty(1, decoder.bits, *plan.grids[-1], device="meta", dtype=torch.float32)
    # an image is scored at once: its scales are told apart by a mask, and a kernel computes what a mask hides
    attending = trunk.attention_flops(read, read / 2) + in_decoder * positions * read
    pixel_parameters = sum(parameter.numel() for parameter in model.vae.decoder.parameters())
    return Drawing(
        size=(width, height),
        stages=(
            DrawingStage("scales, language model", scales, language, trunk.parameters, rows * trunk.layers),
            DrawingStage("scales, decoder", scales, rows * cells, per_cell, decoder.depth),
            # the autoencoder is float32: as many bytes as twice its parameters in bfloat16
            DrawingStage("pixels", 1, counted_flops(model.vae.decode, latent), 2 * pixel_parameters, 20),
        ),
        batch=options.draw_batch,
        cache_per_image=trunk.kv_bytes * (LONGEST_DRAWING_PROMPT + positions)
        + 2 * rows * decoder.depth * decoder.width * (LONGEST_DRAWING_PROMPT + positions) * trunk.itemsize,
        bytes_per_image=max(
            trunk.forward_bytes(1, last, LONGEST_DRAWING_PROMPT + positions - last),
            counted_bytes(_block(model, rows, last, positions - last, dtype), _cells(model, rows, last, dtype)),
        ),
        bytes_once=counted_bytes(model.vae.decode, latent),
        loss_flops=2.0 * (trunk.parameters * read + per_cell * positions) + attending,
        loss_attention_flops=attending,
        loss_layers=trunk.layers + decoder.depth,
        loss=_loss(model, trunk, positions, dtype, adapted_decoder=options.generator_adapter != "language_model"),
        loss_by_prompt=True,
    )


def _loss(model: Vargpt, trunk: Trunk, positions: int, dtype: torch.dtype, *, adapted_decoder: bool) -> Activations:
    """Both halves, and between them the last norm in float32 and the blocks' keys and values of a prompt."""
    block = model.decoder.blocks[0]
    names = [name for name, layer in block.named_modules() if isinstance(layer, torch.nn.Linear)]
    with adapted([block.get_submodule(name) for name in names] if adapted_decoder else []):
        cells = counted_activations(
            _block(model, 1, positions, 0, dtype), _cells(model, 1, positions, dtype), model.decoder.shape.depth
        )
    context = 2 * model.decoder.shape.depth * model.decoder.shape.width * LONGEST_DRAWING_PROMPT * dtype.itemsize
    between = 4 * trunk.width * (positions + LONGEST_DRAWING_PROMPT) + context
    return (
        trunk.activations(1, positions + LONGEST_DRAWING_PROMPT, masked=False)
        + cells
        + Activations(saved=between, inputs=between, layer=0, backward=0, forward=0)
    )


def _cells(model: Vargpt, rows: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(rows, count, model.decoder.shape.width, device="meta", dtype=dtype)


def _block(
    model: Vargpt, rows: int, count: int, before: int, dtype: torch.dtype
) -> Callable[[torch.Tensor], torch.Tensor]:
    """One block over ``count`` cells of as many rows, with ``before`` earlier ones in its cache."""
    block: Any = model.decoder.blocks[0].to(dtype).requires_grad_(False)
    shape = model.decoder.shape
    head_width = shape.width // shape.heads

    def empty(*sizes: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(*sizes, device="meta", dtype=dtype)

    context = tuple(empty(rows, shape.heads, LONGEST_DRAWING_PROMPT, head_width) for _ in range(2))
    angles = Rope(*(empty(count, head_width // 2, dtype=torch.float32) for _ in range(2)))
    modulation = empty(rows, 1, 6, shape.width)

    def run(x: torch.Tensor) -> torch.Tensor:
        cache = ScaleCache()
        if before:
            cache.extend(0, *(empty(rows, shape.heads, before, head_width) for _ in range(2)))
        return block(x, modulation, context, None, angles, None, cache if before else None, 0)  # type: ignore[no-any-return]

    return run
