"""From logits of a bit to a bit: filtering and seeded drawing."""

from __future__ import annotations

import torch
from torch import Tensor

from asg_core.backbones.devices import moved_to


def filtered_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Rule out the unlikelier bit value where the filters say so.

    Args:
        logits: (..., 2).
        top_k: keep that many values of a bit; 0, 2 and more keep both, 1 keeps the likelier.
        top_p: the unlikelier value goes if its probability is at most 1 - ``top_p``; 1 keeps both, 0 only the likelier.
    """
    if (top_k == 0 or top_k >= 2) and top_p >= 1:
        return logits
    probabilities = logits.float().softmax(-1)
    rare, index = probabilities.min(-1)
    drop = torch.full_like(rare, top_k == 1, dtype=torch.bool)
    if top_p < 1:
        drop |= rare <= 1 - top_p
    losing = torch.nn.functional.one_hot(index, 2).bool() & drop[..., None]
    return logits.masked_fill(losing, -torch.inf)


def draw_bits(logits: Tensor, generators: list[torch.Generator]) -> Tensor:
    """One draw per bit, positions first; each image from its own CPU stream, whatever the batch and the device.

    Args:
        logits: (N, n, bits, 2) float32.
        generators: one per image.

    Returns:
        (N, n, bits) uint8 on the device of ``logits``.
    """
    probabilities = logits.float().softmax(-1).cpu()
    drawn = [
        torch.multinomial(rows.reshape(-1, 2), 1, generator=generator).view(rows.shape[:-1])
        for rows, generator in zip(probabilities, generators, strict=True)
    ]
    return moved_to(logits.device, torch.stack(drawn), torch.uint8)
