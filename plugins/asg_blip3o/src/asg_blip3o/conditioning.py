"""The language-model pass that turns a prompt into the flow network's condition: prompt, ``[IMG]``, learned queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asg_blip3o.modeling_blip3o import Blip3oModel
from asg_core.backbones.devices import tensor_on


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
