"""All modules of one BLIP3o model, and the pass that turns a prompt into the flow network's condition.

The condition is made of prompt, ``[IMG]`` and learned queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from asg_blip3o.config import EvaDims, FlowDims
from asg_blip3o.modeling_decoder import PixelDecoder
from asg_blip3o.modeling_eva import EvaTower
from asg_blip3o.modeling_flow import FlowNetwork
from asg_core.backbones.devices import tensor_on


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


def hidden_states(model: Blip3oModel, sequences: Sequence[Tensor], positions: Sequence[Tensor]) -> list[Tensor]:
    """Final-normed hidden states of embedded sequences of different lengths, in one causal pass.

    Padding goes to the right, where causal attention makes it harmless, so no sequence sees another one's length.

    Args:
        model: the loaded model.
        sequences: each (L_i, D).
        positions: each (3, L_i), positions on the three rotary axes.

    Returns:
        Each (L_i, D).
    """
    longest = max(len(sequence) for sequence in sequences)
    embeds = sequences[0].new_zeros(len(sequences), longest, sequences[0].shape[1])
    axes = torch.zeros(3, len(sequences), longest, dtype=torch.long, device=embeds.device)
    rows = []
    for i, (sequence, position) in enumerate(zip(sequences, positions, strict=True)):
        rows.append(torch.cat([sequence, embeds[i, len(sequence) :]]))
        axes[:, i, : len(sequence)] = position
    out = model.vlm.model.language_model(
        inputs_embeds=torch.stack(rows), position_ids=axes, use_cache=False
    ).last_hidden_state
    return [out[i, : len(sequence)] for i, sequence in enumerate(sequences)]


def query_states(model: Blip3oModel, prompts: Sequence[Sequence[int]], img: int) -> Tensor:
    """Conditions of several prompts in one right-padded pass.

    Positions are 0, 1, 2, ... on all three rotary axes, as the original has them even with an image in the prompt.

    Args:
        model: the loaded model.
        prompts: token ids of each complete prompt, without ``[IMG]``.
        img: id of ``[IMG]``.

    Returns:
        (B, n_query, D): states of the query positions after the final norm.
    """
    queries = model.latent_queries[0]
    sequences = [
        torch.cat([model.embed_tokens(tensor_on(model.device, [*prompt, img])), queries]) for prompt in prompts
    ]
    positions = [torch.arange(len(sequence), device=model.device).expand(3, -1) for sequence in sequences]
    return torch.stack([hidden[-model.n_query :] for hidden in hidden_states(model, sequences, positions)])
