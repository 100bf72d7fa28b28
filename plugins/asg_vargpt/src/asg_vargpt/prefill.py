"""Prompts of image generation: prefilled once each, left-padded to one batch, to be continued by many candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from asg_core.backbones.devices import tensor_on
from asg_core.errors import CapabilityError
from asg_vargpt.modeling_decoder import Context
from asg_vargpt.modeling_vargpt import Vargpt


@dataclass(frozen=True, eq=False)
class Prefilled:
    """P prompts in the language model's cache.

    Attributes:
        cache: keys and values of P rows.
        lengths: tokens per prompt, start token included.
        mask: (P, n) bool, False at left padding.
        hidden: (P, n, D) normed hidden states.
    """

    cache: DynamicCache
    lengths: tuple[int, ...]
    mask: Tensor
    hidden: Tensor

    @property
    def padded(self) -> bool:
        """Whether any row has padding."""
        return len(set(self.lengths)) > 1


def prefill(model: Vargpt, prompts: Sequence[Sequence[int]]) -> Prefilled:
    """Run the language model over prompts, each of which ends with the start token of image generation."""
    lengths = tuple(map(len, prompts))
    width = max(lengths)
    device = model.device
    ids = tensor_on(device, [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.arange(width, device=device) >= width - tensor_on(device, lengths)[:, None]
    causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    # A padding query sees itself: attention over nothing is undefined, and its values would spread as NaN.
    visible = (causal & mask[:, None, :]) | torch.eye(width, dtype=torch.bool, device=device)
    positions = (mask.long().cumsum(1) - 1).clamp_min(0)
    cache = DynamicCache()
    hidden = model.language_model(
        inputs_embeds=model.language_model.embed_tokens(ids),
        attention_mask=visible[:, None],
        position_ids=positions.expand(3, -1, -1),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return Prefilled(cache, lengths, mask, hidden)


def context_rows(model: Vargpt, prompts: Prefilled) -> Tensor:
    """(P, n - 1, C): what cross-attention reads, everything before the start token."""
    return model.projector_out(prompts.hidden[:, :-1])  # type: ignore[no-any-return]


def unconditional_rows(model: Vargpt, prompts: Prefilled) -> Tensor:
    """(P, n - 1, C): the first learned unconditional rows, as many as the prompt has, aligned to the right.

    Raises:
        CapabilityError: a prompt has more tokens than there are rows; guidance is not defined for it.
    """
    table = model.decoder.cfg_uncond
    longest = max(prompts.lengths) - 1
    if longest > len(table):
        raise CapabilityError(
            f"a drawing prompt has {longest} tokens of context, guidance works up to {len(table)}",
            "VARGPT learned that many unconditional context rows",
            "shorten the prompt, or draw without guidance (guidance=1)",
        )
    positions = (prompts.mask[:, :-1].long().cumsum(1) - 1).clamp_min(0)
    return table[positions]


def decoder_context(model: Vargpt, prompts: Prefilled, owner: Tensor, *, guided: bool) -> Context:
    """Cross-attention keys and values for N candidates, then, with ``guided``, for their N unconditional rows.

    Computed once per distinct prompt and once per image, not once per scale.

    Args:
        model: loaded.
        prompts: P prompts.
        owner: (N,) long, the prompt of each candidate.
        guided: whether to add the unconditional rows.
    """
    rows = context_rows(model, prompts)
    mask = prompts.mask[:, :-1]
    if guided:
        rows = torch.cat((rows, unconditional_rows(model, prompts)))
        mask = torch.cat((mask, mask))
        owner = torch.cat((owner, owner + len(prompts.mask)))
    prepared = model.decoder.context(rows, mask if prompts.padded else None)
    layers = tuple((keys[owner], values[owner]) for keys, values in prepared.layers)
    return Context(layers, None if prepared.mask is None else prepared.mask[owner])
