"""The released sizes without the files, and models of any size with random weights: for checks and benchmarks."""

from __future__ import annotations

from typing import Any

import torch

from asg_bagel.config import BagelConfig, build_config
from asg_bagel.modeling_bagel import Bagel
from asg_bagel.weights_map import slots

LLM: dict[str, Any] = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
}
"""``llm_config.json``, as far as it matters (that of Qwen2.5-7B-Instruct)."""

VISION: dict[str, Any] = {
    "hidden_size": 1152,
    "image_size": 980,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
}
"""``vit_config.json`` (SigLIP-so400m)."""


def released_config() -> BagelConfig:
    """Sizes of BAGEL-7B-MoT: 70 x 70 vision positions, 64 x 64 latent tokens of 2 x 2 cells with 16 channels."""
    return build_config(LLM, VISION, {}, vision_rows=70**2, latent_rows=64**2, latent_width=2 * 2 * 16)


def random_model(
    config: BagelConfig,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Bagel:
    """A model with seeded random weights, made tensor by tensor on ``device``: norms 1, biases 0, others N(0, 0.02)."""
    with torch.device("meta"):
        model = Bagel(config)
    stream = torch.Generator(device).manual_seed(seed)
    for slot in slots(model).values():
        weight = torch.empty(slot.tensor.shape, dtype=dtype, device=device)
        if slot.attribute == "bias":
            weight.zero_()
        elif weight.dim() == 1:
            weight.fill_(1.0)
        else:
            weight.normal_(0.0, 0.02, generator=stream)
        slot.put(weight)
    model.language_model.model.reset_rope(device)
    return model.eval()
