"""Teacher forcing: the conditional bit logits of a whole image from one parallel forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asg_core.backbones.devices import moved_to, tensor_on
from asg_vargpt.modeling_attention import rope_of
from asg_vargpt.modeling_decoder import Condition, level_of_positions, scale_mask
from asg_vargpt.modeling_vargpt import Vargpt
from asg_vargpt.quantizer import inputs_of
from asg_vargpt.sampling import first_cells, start_condition
from asg_vargpt.scales import Schedule


def image_cells(model: Vargpt, condition: Condition, inputs: Tensor) -> Tensor:
    """(B, L, C): the first cell and the embedded sums (B, L - 1, bits) that each later scale starts from."""
    return torch.cat((first_cells(model, condition), model.decoder.word_embed(inputs.to(model.dtype))), dim=1)


def language_hidden(model: Vargpt, embeds: Tensor) -> Tensor:
    """(B, n, D) embeddings of prompt and image -> (B, n, D) normed hidden states; causal, plain positions."""
    positions = torch.arange(embeds.shape[1], device=embeds.device)
    return model.language_model(  # type: ignore[no-any-return]
        inputs_embeds=embeds, position_ids=positions.expand(3, len(embeds), -1), use_cache=False
    ).last_hidden_state


def decode_logits(
    model: Vargpt, image_hidden: Tensor, context_hidden: Tensor, condition: Condition, schedule: Schedule
) -> Tensor:
    """Bit logits (B, L, bits, 2) float32.

    Args:
        model: loaded.
        image_hidden: (B, L, D) hidden states at the image's positions.
        context_hidden: (B, n - 1, D) hidden states before the start token.
        condition: B rows.
        schedule: of the image.
    """
    device = image_hidden.device
    shape = model.decoder.shape
    return model.decoder(  # type: ignore[no-any-return]
        model.projector_out(image_hidden),
        level_of_positions(schedule.lengths, device),
        condition,
        model.decoder.context(model.projector_out(context_hidden)),
        rope_of(schedule, shape.width // shape.heads, device),
        mask=scale_mask(schedule.lengths, device),
    )


def conditional_logits(model: Vargpt, prompt: Sequence[int], bits: Tensor, schedule: Schedule) -> Tensor:
    """The logits under which each bit of B images of one prompt was drawn, guidance off, temperature 1.

    Args:
        model: loaded, with the wanted adapter active.
        prompt: token ids, ending with the start token.
        bits: (B, L, bits) as drawn.
        schedule: of the images.

    Returns:
        (B, L, bits, 2) float32, differentiable.
    """
    batch, length = len(bits), len(prompt)
    bits = moved_to(model.device, bits)
    condition = start_condition(model, batch)
    ids = tensor_on(model.device, [list(prompt)]).expand(batch, -1)
    cells = image_cells(model, condition, inputs_of(bits, schedule))
    embeds = torch.cat((model.language_model.embed_tokens(ids), model.projector_in(cells)), dim=1)
    hidden = language_hidden(model, embeds)
    return decode_logits(model, hidden[:, length:], hidden[:, : length - 1], condition, schedule)


@dataclass(frozen=True, eq=False)
class BitScores:
    """Log-probs of every bit of B images, nats, float32; the exact log-prob of an image is their sum.

    Attributes:
        logprobs: (B, L, bits).
        schedule: of the images.
    """

    logprobs: Tensor
    schedule: Schedule

    @property
    def per_image(self) -> Tensor:
        """(B,) log-prob of each image."""
        return self.logprobs.sum((1, 2))

    @property
    def per_scale(self) -> Tensor:
        """(B, scales) log-prob of each scale given the ones before."""
        return torch.stack([part.sum((1, 2)) for part in self._parts], dim=1)

    @property
    def mean_per_scale(self) -> Tensor:
        """(B, scales) mean log-prob of a bit of each scale."""
        return torch.stack([part.mean((1, 2)) for part in self._parts], dim=1)

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        return torch.split(self.logprobs, self.schedule.lengths, dim=1)


def bit_scores(logits: Tensor, bits: Tensor, schedule: Schedule) -> BitScores:
    """Log-probs of ``bits`` (B, L, bits) under ``logits`` (B, L, bits, 2)."""
    chosen = moved_to(logits.device, bits).long().unsqueeze(-1)
    return BitScores(logits.float().log_softmax(-1).gather(-1, chosen).squeeze(-1), schedule)
