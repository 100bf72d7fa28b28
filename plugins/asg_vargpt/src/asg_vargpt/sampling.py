"""The scale loop: a prompt stream through the language model, an unconditional one, and the image decoder over both.

Per scale:  cells -> projector -> language model (prompt and all scales before | this scale alone) -> projector
            -> decoder -> logits / tau -> g * conditional + (1 - g) * unconditional -> bits -> sum of codes
            -> cells of the next scale
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asg_core.backbones.devices import moved_to, tensor_on
from asg_vargpt.modeling_attention import ScaleCache, rope_of
from asg_vargpt.modeling_decoder import Condition
from asg_vargpt.modeling_vargpt import Vargpt
from asg_vargpt.prefill import Prefilled, decoder_context
from asg_vargpt.quantizer import Accumulator
from asg_vargpt.scales import Schedule


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


Choose = Callable[[int, Tensor], Tensor]
"""(scale, guided logits (N, n, bits, 2)) -> bits (N, n, bits) uint8."""


@dataclass(frozen=True, eq=False)
class ScaleStep:
    """What one scale produced for N candidates; n positions.

    Attributes:
        scale: index.
        hidden: (N or 2N, n, D) of the language model; unconditional rows last.
        logits: (N or 2N, n, bits, 2) float32 before temperature and guidance.
        guided: (N, n, bits, 2) float32, what bits are drawn from.
        bits: (N, n, bits) uint8.
        latent: (N, bits, H, W) float32, the sum up to this scale.
    """

    scale: int
    hidden: Tensor
    logits: Tensor
    guided: Tensor
    bits: Tensor
    latent: Tensor


def start_condition(model: Vargpt, conditional: int, unconditional: int = 0) -> Condition:
    """The decoder's condition for so many rows of either kind; it is the same for all prompts."""
    start = torch.stack((model.sos_embedding, model.decoder.cfg_uncond[0]))
    both = model.decoder.condition(start)
    rows = tensor_on(start.device, [0] * conditional + [1] * unconditional)
    return Condition(both.vector[rows], both.modulation[rows], (both.head[0][rows], both.head[1][rows]))


def first_cells(model: Vargpt, condition: Condition) -> Tensor:
    """(B, 1, C): the single cell that the first scale starts from."""
    return condition.vector[:, None] + model.decoder.pos_start


def draw(
    model: Vargpt,
    prompts: Prefilled,
    owner: Sequence[int],
    schedule: Schedule,
    guidance: Sequence[float],
    tau: Sequence[float],
    choose: Choose,
) -> Iterator[ScaleStep]:
    """Draw N images scale by scale. Use under ``torch.no_grad``.

    Args:
        model: loaded, with the wanted adapter active.
        prompts: consumed; its cache grows.
        owner: the prompt of each candidate.
        schedule: of the images.
        guidance: g per scale; where all are 1 there is no unconditional stream.
        tau: temperature per scale, > 0.
        choose: picks the bits.

    Raises:
        CapabilityError: a prompt is too long for guidance.
    """
    device, rows = model.device, len(owner)
    guided = any(g != 1 for g in guidance)
    selected = tensor_on(device, owner)
    context = decoder_context(model, prompts, selected, guided=guided)
    prompts.cache.batch_select_indices(selected)
    stream = _PromptStream(model, prompts, selected)
    condition = start_condition(model, rows, rows if guided else 0)
    rope = rope_of(schedule, model.decoder.shape.width // model.decoder.shape.heads, device)
    accumulator = Accumulator(schedule, rows, model.decoder.shape.bits, device)
    cache = ScaleCache()
    offset = 0
    for scale, length in enumerate(schedule.lengths):
        if scale == 0:
            cells = first_cells(model, condition)
        else:
            cells = model.decoder.word_embed(accumulator.cells_for(scale).to(model.dtype))
            cells = torch.cat((cells, cells)) if guided else cells
        embeds = model.projector_in(cells)
        hidden = stream.extend(embeds[:rows])
        if guided:
            hidden = torch.cat((hidden, scale_alone(model, embeds[rows:])))
        levels = torch.full((length,), scale, device=device)
        logits = model.decoder(
            model.projector_out(hidden), levels, condition, context, rope.part(offset, offset + length), cache=cache
        )
        mixed = logits[:rows] / tau[scale]
        if guided:
            mixed = guidance[scale] * mixed + (1 - guidance[scale]) * (logits[rows:] / tau[scale])
        bits = choose(scale, mixed)
        accumulator.add(scale, bits)
        offset += length
        yield ScaleStep(scale, hidden, logits, mixed, bits, accumulator.total)


def scale_alone(model: Vargpt, embeds: Tensor) -> Tensor:
    """The unconditional stream: (N, n, D) of one scale through the language model without any past."""
    positions = torch.arange(embeds.shape[1], device=embeds.device)
    return model.language_model(  # type: ignore[no-any-return]
        inputs_embeds=embeds, position_ids=positions.expand(3, len(embeds), -1), use_cache=False
    ).last_hidden_state


class _PromptStream:
    """The conditional stream: candidates continue their prompt's cache, plain positions, causal."""

    def __init__(self, model: Vargpt, prompts: Prefilled, owner: Tensor) -> None:
        self.model, self.cache = model, prompts.cache
        self.visible = prompts.mask[owner] if prompts.padded else prompts.mask[:1]
        self.positions = tensor_on(owner.device, prompts.lengths)[owner]

    def extend(self, embeds: Tensor) -> Tensor:
        """(N, n, D) -> (N, n, D) normed hidden states."""
        length = embeds.shape[1]
        steps = torch.arange(length, device=embeds.device)
        past = self.visible[:, None, :].expand(-1, length, -1)
        own = (steps[:, None] >= steps[None, :]).expand(len(past), -1, -1)
        hidden = self.model.language_model(
            inputs_embeds=embeds,
            attention_mask=torch.cat((past, own), dim=-1)[:, None],
            position_ids=(self.positions[:, None] + steps).expand(3, -1, -1),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        self.visible = torch.cat((self.visible, self.visible.new_ones(len(self.visible), length)), dim=1)
        self.positions = self.positions + length
        return hidden  # type: ignore[no-any-return]
