"""The released size without its files, and models of any size with random weights: for checks and benchmarks.

Sizes of the image modules come from the names and shapes of the release, not from its ``config.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asg_core.backbones.manifest import LoadRequest
from asg_core.models.weights.loader import LoadReport
from asg_vargpt.backbone import VargptBackbone
from asg_vargpt.config import Architecture, DecoderShape, GenerationTokens, VaeShape
from asg_vargpt.weights_map import empty_model

CONFIG: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "vision_config": {"model_type": "vargpt_qwen2_vl"},
    "special_tokens": {
        "image_gen_start_token_id": 151657,
        "image_gen_end_token_id": 151658,
        "image_gen_pad_token_id": 151659,
    },
}
"""``config.json`` as far as it matters: that of Qwen2-VL-7B and three tokens."""

ARCHITECTURE = Architecture(
    DecoderShape(
        width=2048, heads=16, chunks=(4,) * 8, ffn_width=8192, bits=32, levels=15, uncond_rows=512, pool_heads=16
    ),
    VaeShape(widths=(128, 256, 512, 512, 512), encoder_blocks=2, decoder_blocks=3, bits=32),
    GenerationTokens(start=151657, end=151658, pad=151659),
)
"""Infinity-2B and its 32-bit tokenizer."""


def random_backbone(
    files: Path,
    request: LoadRequest,
    config: Mapping[str, Any] = CONFIG,
    architecture: Architecture = ARCHITECTURE,
) -> VargptBackbone:
    """A model with seeded random weights behind the four roles, for timing. 21 GB in bfloat16 at the released size.

    Matrices N(0, 0.02), norms 1, other vectors 0; made tensor by tensor on the device.

    Args:
        files: a folder with tokenizer files of the family; any vocabulary that is not larger will do.
        request: device, dtype, adapters, options; its weights are not read.
        config, architecture: sizes.
    """
    device = torch.device(request.device)
    dtype: torch.dtype = getattr(torch, request.dtype)
    generation = request.options is None or request.options.generation
    model = empty_model(config, architecture, generation=generation)
    stream = torch.Generator(device).manual_seed(request.seed)
    for path, module in model.named_modules():
        is_norm = "norm" in type(module).__name__.lower()
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            value = torch.empty(
                parameter.shape, device=device, dtype=torch.float32 if path.startswith("vae") else dtype
            )
            if value.dim() > 1:
                value.normal_(std=0.02, generator=stream)
            else:
                value.fill_(1.0 if is_norm and name == "weight" else 0.0)
            module._parameters[name] = nn.Parameter(value, requires_grad=False)
    model.rebuild_rotary_tables(device)
    for name, buffer in model.named_buffers():
        if buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            model.get_submodule(owner)._buffers[leaf] = torch.zeros(buffer.shape, device=device, dtype=dtype)
    return VargptBackbone(model.eval(), files, request, LoadReport())
