"""Drawing as 16 codes: <bos> <draw> caption <image> c1 ... c16, each code sampled given the ones before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from asg_core.backbones.devices import tensor_on
from asg_core.tiny.model import CELLS, TinyModel


@dataclass(frozen=True)
class Prompts:
    """Token ids of several prompts, padded on the left so that what follows stands in the same columns. All (B, L).

    Attributes:
        ids: token ids.
        real: True where a token is not padding.
        positions: rotary positions, 0 at each prompt's first real token.
        lengths: (B, 1) real tokens.
    """

    ids: Tensor
    real: Tensor
    positions: Tensor
    lengths: Tensor

    def mask(self, query_from: int, more: int) -> Tensor:
        """(B, 1, L + more - query_from, L + more) bool: causal attention of the columns from ``query_from`` on.

        A padded column sees itself, because a row without any key has no softmax.
        """
        total = self.ids.shape[1] + more
        keys = torch.cat([self.real, self.real.new_ones(len(self.real), more)], 1)
        causal = torch.ones(total, total, dtype=torch.bool, device=keys.device).tril()
        own = torch.eye(total, dtype=torch.bool, device=keys.device)
        return ((causal & keys[:, None]) | own)[:, None, query_from:]


def left_pad(prompts: Sequence[Sequence[int]], device: torch.device) -> Prompts:
    """Lay out prompts of different lengths in one batch."""
    longest = max(map(len, prompts))
    ids = tensor_on(device, [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    lengths = tensor_on(device, [[len(prompt)] for prompt in prompts])
    columns = torch.arange(longest, device=device) - (longest - lengths)
    return Prompts(ids, columns >= 0, columns.clamp(min=0), lengths)


def code_logits(model: TinyModel, prompts: Prompts, codes: Tensor) -> Tensor:
    """Teacher-forced scores: codes (B, 16) -> (B, 16, 64) float32 logits, differentiable."""
    length = prompts.ids.shape[1]
    drawn = model.code_embedding(codes[:, :-1]) + model.cell_positions()[:-1]
    positions = torch.cat([prompts.positions, prompts.lengths + torch.arange(CELLS - 1, device=codes.device)], 1)
    embeds = torch.cat([model.trunk.embed_tokens(prompts.ids), drawn], 1)
    hidden = model.run(embeds, prompts.mask(0, CELLS - 1), positions)
    scores: Tensor = model.code_head(hidden[:, length - 1 :])
    return scores.float()


def sample_codes(model: TinyModel, prompts: Prompts, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Draw codes from softmax(logits / temperature).

    Args:
        model: the model under whichever adapter is active.
        prompts: B captions in their template.
        uniforms: (B, 16) float64 in [0, 1), each row a sample's own random stream; inverted through the cumulative
            distribution, so a sample does not depend on the rest of the batch.
        temperature: > 0.

    Returns:
        codes (B, 16) and their log-probs (B, 16) in nats, float32.
    """
    length = prompts.ids.shape[1]
    cache = DynamicCache(config=model.trunk.config)
    embeds, positions = model.trunk.embed_tokens(prompts.ids), prompts.positions
    place = model.cell_positions()
    codes, logprobs = [], []
    for cell in range(CELLS):
        mask = prompts.mask(0, 0) if cell == 0 else prompts.mask(length + cell - 1, cell)
        hidden = model.trunk(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state[:, -1]
        scores = torch.log_softmax(model.code_head(hidden).float() / temperature, -1)
        steps = scores.double().exp().cumsum(-1)
        code = torch.searchsorted(steps, uniforms[:, cell : cell + 1] * steps[:, -1:], right=True).clamp(
            max=scores.shape[-1] - 1
        )
        codes.append(code)
        logprobs.append(scores.gather(-1, code))
        embeds, positions = model.code_embedding(code) + place[cell], prompts.lengths + cell
    return torch.cat(codes, 1), torch.cat(logprobs, 1)
