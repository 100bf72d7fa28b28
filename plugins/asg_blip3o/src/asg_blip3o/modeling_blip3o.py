"""All modules of one BLIP3o model, and which stored tensor belongs to which of their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from asg_blip3o.config import EVA, FLOW, EvaDims, FlowDims
from asg_blip3o.loading import Slot, slots
from asg_blip3o.modeling_decoder import PixelDecoder
from asg_blip3o.modeling_eva import EvaTower
from asg_blip3o.modeling_flow import FlowNetwork


class Blip3oModel(nn.Module):
    """Language model with vision tower, learned queries, flow network, pixel decoder and, on request, the EVA tower.

    Args:
        vlm: configuration of the stock Qwen2.5-VL classes, from :func:`language_config`.
        n_query: learned queries.
        flow: dimensions of the flow network.
        grid: side of its feature grid.
        decoder: UNet, autoencoder and scheduler settings.
        eva: dimensions and head width of the tower, or None to leave it out.
    """

    def __init__(
        self,
        vlm: Qwen2_5_VLConfig,
        n_query: int,
        flow: FlowDims,
        grid: int,
        decoder: tuple[dict[str, Any], dict[str, Any], dict[str, Any]],
        eva: tuple[EvaDims, int] | None = None,
    ) -> None:
        super().__init__()
        self.vlm = Qwen2_5_VLForConditionalGeneration(vlm)
        self.latent_queries = nn.Parameter(torch.zeros(1, n_query, flow.condition), requires_grad=False)
        self.flow = FlowNetwork(flow, grid)
        self.decoder = PixelDecoder(*decoder)
        self.eva = EvaTower(*eva) if eva is not None else None

    @property
    def n_query(self) -> int:
        """Number of learned queries."""
        return self.latent_queries.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.latent_queries.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the frozen weights."""
        return self.latent_queries.dtype

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """(...) token ids to (..., D) embeddings."""
        embedded: Tensor = self.vlm.get_input_embeddings()(ids)
        return embedded

    def settle(self) -> None:
        """After loading: tie a shared head, fill the stock flow class's one parameter that is never used, freeze."""
        if self.vlm.config.tie_word_embeddings:
            self.vlm.tie_weights()
        pad = self.flow.dit.pad_token
        if pad.is_meta:
            self.flow.dit.pad_token = nn.Parameter(torch.zeros(pad.shape, device=self.device, dtype=self.dtype))
        self.requires_grad_(False)
        self.eval()


def language_config(config: Mapping[str, Any]) -> Qwen2_5_VLConfig:
    """The stock configuration of a release's ``config.json``, whose own model type no library knows."""
    return Qwen2_5_VLConfig.from_dict({**config, "model_type": "qwen2_5_vl"})


def build_empty(
    config: Mapping[str, Any],
    n_query: int,
    flow: FlowDims,
    grid: int,
    decoder: tuple[dict[str, Any], dict[str, Any], dict[str, Any]],
    eva: tuple[EvaDims, int] | None = None,
) -> Blip3oModel:
    """The model with all parameters on the meta device; rotary tables and other computed buffers are real."""
    with init_empty_weights(include_buffers=False):
        return Blip3oModel(language_config(config), n_query, flow, grid, decoder, eva)


def main_slots(model: Blip3oModel) -> dict[str, Slot]:
    """Places of the main checkpoint's tensors, by their names there."""
    places = slots(model, main_name)
    if model.vlm.config.tie_word_embeddings:
        places.pop("lm_head.weight")
    return places


def main_name(name: str) -> str | None:
    """Name in the main checkpoint of a parameter of :class:`Blip3oModel`; None if it is stored elsewhere or nowhere."""
    if name == "latent_queries":
        return "model.latent_queries"
    if name == "flow.dit.pad_token":
        return None
    for ours, stored in (
        ("vlm.model.visual.", "visual."),
        ("vlm.model.language_model.", "model."),
        ("vlm.lm_head.", "lm_head."),
        ("flow.dit.", FLOW),
        ("flow.", FLOW),
        ("eva.", EVA),
    ):
        if name.startswith(ours):
            return stored + name.removeprefix(ours)
    return None
