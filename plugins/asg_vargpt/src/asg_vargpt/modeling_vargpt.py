"""VARGPT-v1.1 as modules: stock Qwen2-VL, two projectors, the image decoder and the VAE."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLTextConfig

from asg_vargpt.config import Architecture
from asg_vargpt.modeling_decoder import ImageDecoder
from asg_vargpt.modeling_vae import Vae


def qwen_config(config: Mapping[str, Any]) -> Qwen2VLConfig:
    """The Qwen2-VL configuration in a released ``config.json``, which is flat and of a type unknown to transformers.

    Values that equal the original's defaults are not in the file; transformers' defaults are the same.
    """
    vision = {key: value for key, value in config.get("vision_config", {}).items() if key != "model_type"}
    text = {key: config[key] for key in inspect.signature(Qwen2VLTextConfig).parameters if key in config}
    scaling = config.get("rope_scaling") or {}
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": config.get("rope_theta", Qwen2VLTextConfig.default_theta),
        "mrope_section": scaling.get("mrope_section", [16, 24, 24]),
    }
    text["attention_dropout"] = 0.0
    names = (name for name in inspect.signature(Qwen2VLConfig).parameters if name.endswith("_id"))
    outer = {name: config[name] for name in names if name in config}
    built = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **outer)
    built._attn_implementation = "sdpa"
    return built


class Projector(nn.Module):
    """Linear, GELU (erf), Linear. The released layer norm in front of it is never applied."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return self.mlp(x)  # type: ignore[no-any-return]


class Vargpt(nn.Module):
    """All modules of one checkpoint.

    Args:
        config: parsed ``config.json``.
        architecture: sizes of the image modules.
        generation: False leaves out everything that is only needed to draw.
    """

    def __init__(self, config: Mapping[str, Any], architecture: Architecture, *, generation: bool = True) -> None:
        super().__init__()
        self.architecture, self.generation = architecture, generation
        width = architecture.decoder.width
        self.qwen = Qwen2VLForConditionalGeneration(qwen_config(config))
        if not generation:
            return
        hidden = self.hidden_size
        self.projector_in = Projector(width, width, hidden)
        self.projector_out = Projector(hidden, hidden, width)
        self.sos_embedding = nn.Parameter(torch.zeros(width))
        self.decoder = ImageDecoder(architecture.decoder)
        self.vae = Vae(architecture.vae)

    @property
    def language_model(self) -> Any:
        """Qwen2-VL's text stack: embeddings in, normed hidden states out."""
        return self.qwen.model.language_model

    @property
    def visual(self) -> Any:
        """Qwen2-VL's vision tower."""
        return self.qwen.model.visual

    @property
    def hidden_size(self) -> int:
        """Width of the language model."""
        return int(self.qwen.config.text_config.hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of everything but the VAE."""
        return self.qwen.lm_head.weight.dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.qwen.lm_head.weight.device  # type: ignore[no-any-return]

    def rebuild_rotary_tables(self, device: torch.device) -> None:
        """Compute Qwen2-VL's rotary frequencies, which are in no file; float32 on ``device``."""
        for owner, name in ((self.language_model, "rotary_emb"), (self.visual, "rotary_pos_emb")):
            old = getattr(owner, name)
            setattr(owner, name, type(old)(config=old.config).to(device).eval())
