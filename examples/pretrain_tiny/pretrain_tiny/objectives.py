"""The five pre-training losses of the tiny model, all by teacher forcing. Reads ground truth through the curriculum."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from asg_core.tiny.flow import embed_noisy
from asg_core.tiny.generation import left_pad
from asg_core.tiny.model import CELLS, GRID, TinyModel
from asg_core.tiny.vocabulary import BOS, EMBED, Vocabulary
from asg_core.tiny.world import CELL, PIXELS, THING_CODES, scene_codes
from pretrain_tiny.curriculum import Curriculum, Tasks
from pretrain_tiny.packing import pack

PREFIX = 1 + CELLS
"""Tokens of a picture prefix: <bos> and 16 vision tokens."""

MATCH_TEMPERATURE = 0.07


def photographs(patches: Tensor, codes: Tensor, noise: torch.Generator) -> Tensor:
    """(n, 16) codes -> (n, 3, 32, 32) pictures in [0, 1], noisy as ``world.photograph`` takes them; a third exact."""
    cells = patches[codes].reshape(-1, GRID, GRID, CELL, CELL, 3)
    exact = cells.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, PIXELS, PIXELS) / 255
    noisy = (torch.rand(len(codes), 1, 1, 1, generator=noise) < 0.67).float()
    cast = torch.randn(len(codes), 3, 1, 1, generator=noise) * 0.04
    brightness = torch.randn(len(codes), 1, 1, 1, generator=noise) * 0.06
    grain = torch.randn(exact.shape, generator=noise) * (6 / 255)
    return (exact * (1 + noisy * (cast + brightness)) + noisy * grain).clamp(0, 1)


def picture_losses(
    model: TinyModel, words: Vocabulary, curriculum: Curriculum, tasks: Tasks, pictures: int, noise: torch.Generator
) -> dict[str, Tensor]:
    """Losses on pictures: "text", "see" and "match".

    text: cross-entropy of completions given picture and prompt, nats per token. see: cross-entropy of each cell's look
    from the stem alone. match: symmetric InfoNCE of pictures and captions in the shared space, nats.
    """
    scenes = [curriculum.scene() for _ in range(pictures)]
    codes = torch.tensor([scene_codes(scene) for scene in scenes])
    packed = pack([curriculum.texts(scene, tasks) for scene in scenes], PREFIX, 0)
    vision = model.see(photographs(model.codebook, codes, noise))
    start = model.trunk.embed_tokens(torch.full((pictures, 1), words.special[BOS]))
    positions = torch.cat([torch.arange(PREFIX).expand(pictures, -1), packed.positions], 1)
    hidden = model.run(
        torch.cat([start, vision, model.trunk.embed_tokens(packed.ids)], 1), packed.mask, positions
    )  # (B, P + L, width)
    learnt = packed.targets >= 0
    text = F.cross_entropy(model.word_head(hidden[:, PREFIX:][learnt]), packed.targets[learnt])

    seen = model.code_head(vision - model.cell_positions())
    # The tints differ by less than the noise of a photograph: to the eye they are one "blank".
    blank = seen[..., THING_CODES:].logsumexp(-1, keepdim=True)
    looks = torch.cat([seen[..., :THING_CODES], blank], -1)
    see = F.cross_entropy(looks.flatten(0, 1), codes.clamp(max=THING_CODES).flatten())

    captions = [[words.special[BOS], *curriculum.description(scene), words.special[EMBED]] for scene in scenes]
    prompts = left_pad(captions, codes.device)
    said = model.run(model.trunk.embed_tokens(prompts.ids), prompts.mask(0, 0), prompts.positions)[:, -1]
    text_vectors = F.normalize(model.embed_head(said), dim=-1)
    picture_vectors = F.normalize(model.embed_head(hidden[:, 1:PREFIX].mean(1)), dim=-1)
    scores = picture_vectors @ text_vectors.T / MATCH_TEMPERATURE
    own = torch.arange(pictures)
    return {"text": text, "see": see, "match": (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2}


def drawing_losses(
    model: TinyModel, words: Vocabulary, curriculum: Curriculum, drawings: int, noise: torch.Generator
) -> dict[str, Tensor]:
    """Losses on captions to draw: "draw", cross-entropy in nats per code, and "flow", squared error of the velocity.

    Each row holds its caption once, then the codes and the noisy latents, which do not see each other.
    """
    scenes = [curriculum.scene() for _ in range(drawings)]
    codes = torch.tensor([scene_codes(scene) for scene in scenes])
    prompts = left_pad([[words.special[BOS], *curriculum.drawing(scene)] for scene in scenes], codes.device)
    length = prompts.ids.shape[1]
    # Times near the middle are the hard ones (logit-normal; Esser et al. 2024, arXiv 2403.03206).
    time = torch.sigmoid(torch.randn(drawings, generator=noise))
    target = model.latents[codes]
    start = torch.randn(target.shape, generator=noise)
    mixed = (1 - time)[:, None, None] * start + time[:, None, None] * target
    drawn = (model.code_embedding(codes) + model.cell_positions())[:, :-1]
    embeds = torch.cat([model.trunk.embed_tokens(prompts.ids), drawn, embed_noisy(model, mixed, time)], 1)
    mask = prompts.mask(0, 2 * CELLS - 1).clone()
    latents = slice(length + CELLS - 1, length + 2 * CELLS - 1)
    mask[:, :, latents, length : length + CELLS - 1] = False
    mask[:, :, latents, latents] = True
    places = prompts.lengths + torch.arange(CELLS)
    hidden = model.run(embeds, mask, torch.cat([prompts.positions, places[:, :-1], places], 1))
    scores = model.code_head(hidden[:, length - 1 : length + CELLS - 1])
    draw = F.cross_entropy(scores.flatten(0, 1), codes.flatten())
    return {"draw": draw, "flow": F.mse_loss(model.flow_out(hidden[:, latents]), target - start)}
