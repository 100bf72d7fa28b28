"""The 8B release as settings: to build it without its files, for name and shape checks and for timing.

Values of the language model and its vision tower are those of Qwen2.5-VL-7B; decoder values are the SDXL layout with
condition width 1792. They were gathered without opening the released files: whatever is loaded reads its own files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from asg_blip3o.backbone import Blip3oBackbone
from asg_blip3o.config import EvaDims, FlowDims
from asg_blip3o.modeling_blip3o import Blip3oModel, build_empty
from asg_blip3o.weights_map import Release
from asg_core.backbones.manifest import LoadRequest
from asg_core.models.weights.loader import LoadReport

CONFIG: dict[str, Any] = {
    "architectures": ["blip3oQwenForCausalLM"],
    "model_type": "blip3o_qwen",
    "vocab_size": 151668,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 128000,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": {"rope_type": "default", "type": "default", "mrope_section": [16, 24, 24]},
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "use_sliding_window": False,
    "sliding_window": 32768,
    "max_window_layers": 28,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "gen_hidden_size": 1792,
    "gen_pooling": "early_pool2d_4",
    "gen_vision_tower": "eva-clip-E-14-plus",
    "n_query": 64,
    "vision_config": {
        "model_type": "qwen2_5_vl",
        "depth": 32,
        "hidden_size": 1280,
        "num_heads": 16,
        "intermediate_size": 3420,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "hidden_act": "silu",
        "in_channels": 3,
    },
}
FLOW_DIMS = FlowDims(
    width=1792, channels=1792, heads=28, kv_heads=28, layers=24, ffn=4864, condition=3584, context=1792
)
GRID = 8
EVA_DIMS, EVA_HEAD_WIDTH = EvaDims(width=1792, layers=64, mlp=15360, patch=14, patches=32), 112
UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "cross_attention_dim": 1792,
    "projection_class_embeddings_input_dim": 3328,
    "sample_size": 128,
}
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.13025,
    "sample_size": 1024,
}
SCHEDULER: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


def full_size_model(*, eva: bool = False) -> Blip3oModel:
    """The 8B model with every parameter on the meta device."""
    tower = (EVA_DIMS, EVA_HEAD_WIDTH) if eva else None
    return build_empty(CONFIG, CONFIG["n_query"], FLOW_DIMS, GRID, (UNET, VAE, SCHEDULER), tower)


def randomise(model: Blip3oModel, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
    """Give an empty model seeded random weights, made tensor by tensor on ``device``.

    Norms 1, other vectors 0, matrices N(0, 0.02): activations stay finite at every size.
    """
    stream = torch.Generator(device).manual_seed(seed)
    for module in model.modules():
        is_norm = "norm" in type(module).__name__.lower()
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            value = torch.empty(parameter.shape, device=device, dtype=dtype)
            if value.dim() > 1:
                value.normal_(std=0.02, generator=stream)
            else:
                value.fill_(1.0 if is_norm and name == "weight" else 0.0)
            module._parameters[name] = nn.Parameter(value, requires_grad=False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = buffer.to(device) if buffer is not None else None
    model.settle()


def random_backbone(files: Path, request: LoadRequest, model: Blip3oModel | None = None) -> Blip3oBackbone:
    """A model with random weights behind the four roles, for timing; the 8B one takes 24.6 GB in bfloat16.

    Args:
        files: a folder with tokenizer files of the family; any vocabulary that is not larger will do.
        request: device, dtype, adapters, options; its weights are not read.
        model: an empty one of other sizes, as ``build_empty`` makes it; None: the 8B release.
    """
    model = full_size_model() if model is None else model
    randomise(model, torch.device(request.device), getattr(torch, request.dtype), request.seed)
    release = Release(files, CONFIG, (UNET, VAE, SCHEDULER), {}, {}, {}, "8B")
    return Blip3oBackbone(model, LoadReport(), release, request)
