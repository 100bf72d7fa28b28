"""The sizes of a BLIP3o release for ``asg plan``: configuration files and headers, and a model without memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from asg_blip3o.backbone import FLOW_MODULE, FLOW_TARGETS, LANGUAGE_MODULE, LANGUAGE_TARGETS
from asg_blip3o.modeling_blip3o import Blip3oModel
from asg_blip3o.modeling_decoder import PixelDecoder, vae_dtype
from asg_blip3o.options import Blip3oOptions, Sampler
from asg_blip3o.processing import ASSISTANT, SYSTEM, USER, ImagePatches, Vocabulary, clamp_size
from asg_blip3o.weights_map import empty_model, read_release
from asg_core.backbones.interface import Role
from asg_core.backbones.manifest import LoadRequest
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


def plan(request: LoadRequest) -> ModelShape:
    """The manifest's plan target. Raises WeightsError or ConfigError as loading does."""
    release = read_release(Path(str(request.weights)))
    options: Blip3oOptions = request.options or Blip3oOptions()
    return shape_of(empty_model(release, options), release.folder, request)


def shape_of(model: Blip3oModel, files: Path, request: LoadRequest) -> ModelShape:
    """The shape of a model without memory.

    Args:
        model: as ``build_empty`` makes it.
        files: tokenizer files and, if there is one, ``preprocessor_config.json``.
        request: dtype, options, adapters' rank.
    """
    options: Blip3oOptions = request.options or Blip3oOptions()
    dtype: torch.dtype = getattr(torch, request.dtype)
    model.to("meta", dtype).requires_grad_(False)
    vocabulary = Vocabulary(files)
    sizes = model.vlm.config.text_config
    language = model.vlm.model.language_model
    trunk = Trunk(
        layers=sizes.num_hidden_layers,
        width=sizes.hidden_size,
        heads=sizes.num_attention_heads,
        kv_heads=sizes.num_key_value_heads,
        head_width=sizes.hidden_size // sizes.num_attention_heads,
        ffn=sizes.intermediate_size,
        vocabulary=model.vlm.lm_head.out_features,
        parameters=matrix_parameters(language),
        itemsize=dtype.itemsize,
    )
    carried = {
        LANGUAGE_MODULE: adapter_parameters(language, LANGUAGE_TARGETS, request.lora.rank),
        FLOW_MODULE: adapter_parameters(model.flow, FLOW_TARGETS, request.lora.rank),
    }
    joint = carried[LANGUAGE_MODULE] if options.generator_language_lora else 0
    patches = ImagePatches(files, options.min_image_side, options.max_image_side)
    tail, header = (len(vocabulary.encode(text)) for text in (ASSISTANT, SYSTEM + USER))
    return ModelShape(
        parts=_parts(model, options, dtype),
        trunk=trunk,
        adapters={
            Role.PROPOSER: carried[LANGUAGE_MODULE],
            Role.SOLVER: carried[LANGUAGE_MODULE],
            Role.GENERATOR: carried[FLOW_MODULE] + joint,
        },
        see=_seeing(model, patches, header, dtype),
        prompt_tokens=lambda text: len(vocabulary.encode_plain(text)) + tail,
        drawing=_drawing(model, options, trunk, dtype) if options.drawing else None,
    )


def _parts(model: Blip3oModel, options: Blip3oOptions, dtype: torch.dtype) -> tuple[Part, ...]:
    # without drawing the decoder is not read and the flow stays on the host
    drawing = (
        part_of("queries and flow", dtype, model.latent_queries, model.flow),
        part_of("decoder", dtype, model.decoder.unet),
        part_of("autoencoder", vae_dtype(dtype), model.decoder.vae),
    )
    tower = () if model.eva is None else (part_of("EVA-CLIP tower", dtype, model.eva),)
    return (
        part_of("text", dtype, model.vlm.model.language_model, model.vlm.lm_head),
        part_of("vision", dtype, model.vlm.model.visual),
        *(drawing if options.drawing else [part_of("queries", dtype, model.latent_queries)]),
        *tower,
    )


def _seeing(
    model: Blip3oModel, patches: ImagePatches, header: int, dtype: torch.dtype
) -> Callable[[int, int], SeenImage]:
    vision: Any = model.vlm.config.vision_config
    merge = vision.spatial_merge_size
    blocks = matrix_parameters(model.vlm.model.visual.blocks)
    merger = matrix_parameters(model.vlm.model.visual.merger)
    full = len(vision.fullatt_block_indexes)
    window = (vision.window_size // vision.patch_size) ** 2

    def see(width: int, height: int) -> SeenImage:
        clamped = clamp_size(width, height, patches.min_side, patches.max_side, patches.multiple)
        rows, columns = (side // vision.patch_size for side in patches.target_size(clamped[1], clamped[0]))
        count = rows * columns
        tokens = count // merge**2
        keys = full * count + (vision.depth - full) * min(window, count)
        attention = 4.0 * vision.hidden_size * count * keys
        flops = 2.0 * (blocks * count + merger * tokens) + attention
        made = rotary_tower_bytes(count, vision.hidden_size, vision.intermediate_size, dtype.itemsize)
        return SeenImage(header + 1 + tokens + 1, flops, vision.depth, made)

    return see


def _drawing(model: Blip3oModel, options: Blip3oOptions, trunk: Trunk, dtype: torch.dtype) -> Drawing:
    sampler, flow, decoder = options.rollout, model.flow, model.decoder
    tokens = flow.grid**2
    query = DRAWING_PROMPT + 1 + model.n_query
    longest = LONGEST_DRAWING_PROMPT + 1 + model.n_query

    def empty(*sizes: int) -> torch.Tensor:
        return torch.empty(*sizes, device="meta", dtype=dtype)

    steps = torch.zeros(1, device="meta", dtype=torch.long)
    velocity = counted_flops(flow, empty(1, *flow.sample_shape), steps, empty(1, model.n_query, flow.dims.context))
    denoised = sampler.flow_steps * (2 if sampler.flow_guidance != 1 else 1) * velocity
    reading, read = trunk.flops(query, query / 2), trunk.attention_flops(query, query / 2)
    attending = 4.0 * flow.dims.layers * flow.dims.width * tokens * (tokens + model.n_query)
    denoise, noise = _denoising_step(decoder, sampler, empty(1, tokens, flow.dims.channels))
    step = counted_flops(denoise)
    dit = matrix_parameters(flow)
    return Drawing(
        size=(sampler.width, sampler.height),
        stages=(
            # the negative of the pixel decoder is one more prompt, drawn once
            DrawingStage("queries", 1, 0.0, trunk.parameters, trunk.layers, reading, reading),
            DrawingStage("features", sampler.flow_steps, denoised, dit, flow.dims.layers, once_flops=denoised),
            DrawingStage(
                "decoder",
                sampler.decoder_steps,
                sampler.decoder_steps * step,
                sum(p.numel() for p in decoder.unet.parameters()),
                sum(type(m).__name__ in ("BasicTransformerBlock", "ResnetBlock2D") for m in decoder.unet.modules()),
            ),
            DrawingStage(
                "pixels",
                1,
                counted_flops(decoder.vae.decode, noise, return_dict=False),
                sum(p.numel() for p in decoder.vae.decoder.parameters()),
                sum(type(m).__name__ == "ResnetBlock2D" for m in decoder.vae.decoder.modules()),
            ),
        ),
        batch=options.images_per_batch,
        cache_per_image=0,
        # prompts are read together, then features are drawn together, then latents
        bytes_per_image=max(trunk.forward_bytes(1, longest), counted_bytes(denoise)),
        bytes_once=counted_bytes(decoder.vae.decode, noise, return_dict=False)
        * vae_dtype(dtype).itemsize
        // dtype.itemsize,
        loss_flops=velocity + (reading if options.generator_language_lora else 0.0),
        loss_attention_flops=attending + (read if options.generator_language_lora else 0.0),
        loss_layers=flow.dims.layers + trunk.layers,
        loss=_loss(model, trunk, longest, dtype, language=options.generator_language_lora),
        loss_prompt_flops=0.0 if options.generator_language_lora else reading,
        loss_recomputed=False,
    )


def _denoising_step(
    decoder: PixelDecoder, sampler: Sampler, features: torch.Tensor
) -> tuple[Callable[[], object], torch.Tensor]:
    """One step of the pixel decoder for one image, to be counted, and the noise that it starts from.

    Args:
        decoder: without memory.
        sampler: the image's size, and whether guidance doubles the batch.
        features: (1, tokens, channels).
    """
    rows = 2 if sampler.decoder_guidance != 1 else 1
    shown = features.new_empty(rows, *features.shape[1:])
    noise = features.new_empty(1, *decoder.latent_shape(sampler.height, sampler.width))
    added = {"text_embeds": shown.mean(dim=1), "time_ids": decoder.time_ids(noise, rows)}
    step = partial(
        decoder.unet,
        noise.expand(rows, -1, -1, -1),
        torch.zeros((), device="meta"),
        encoder_hidden_states=shown,
        added_cond_kwargs=added,
    )
    return step, noise


def _loss(model: Blip3oModel, trunk: Trunk, longest: int, dtype: torch.dtype, *, language: bool) -> Activations:
    """Of one candidate; no layer is run again, with gradient checkpointing or without."""
    flow, tokens = model.flow, model.flow.grid**2
    block: Any = flow.dit.layers[0]

    def empty(*sizes: int) -> torch.Tensor:
        return torch.empty(1, *sizes, device="meta", dtype=dtype)

    angles = torch.empty(1, tokens, flow.dims.width // flow.dims.heads // 2, device="meta", dtype=torch.complex64)
    masks = [torch.ones(1, count, device="meta", dtype=torch.bool) for count in (tokens, model.n_query)]
    context, time = empty(model.n_query, flow.dims.context), empty(min(flow.dims.width, 1024))

    def run(x: torch.Tensor) -> torch.Tensor:
        return block(x, masks[0], angles, context, masks[1], time, {})  # type: ignore[no-any-return]

    with adapted(layer for name, layer in block.named_modules() if name.endswith(FLOW_TARGETS)):
        loss = counted_activations(run, empty(tokens, flow.dims.width), flow.dims.layers)
    read = trunk.activations(1, longest)
    if language:
        loss = loss + replace(read, saved=read.saved + 4 * trunk.width * longest)
    projected = model.n_query * (flow.dims.condition + 3 * flow.dims.context) * dtype.itemsize
    # at both ends of the network, in float32: noise, target, their mixture, velocities, differences and squares
    saved = loss.saved + projected + 12 * 4 * math.prod(flow.sample_shape)
    return replace(loss, saved=saved, inputs=saved, layer=0, forward=max(loss.forward, read.forward))
