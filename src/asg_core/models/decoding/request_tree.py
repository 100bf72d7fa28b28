"""From requests to a prefix tree: every distinct image is read once, every distinct prompt of an image once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from asg_core.errors import PluginError
from asg_core.models.decoding.causal_model import CausalModel, Segment, join_segments
from asg_core.models.decoding.prefix_cache import PrefixCache
from asg_core.models.decoding.prefix_tree import Rows, extend, prefill_roots

if TYPE_CHECKING:
    from PIL.Image import Image

    from asg_core.backbones.interface import TextRequest


def prefill_prompts(
    model: CausalModel, requests: Sequence[TextRequest], kept: PrefixCache | None = None
) -> tuple[Rows, list[Segment], list[int]]:
    """Prefill every distinct image once and fork it to the distinct prompts of that image.

    Images are distinct by object identity, never by their tokens; None (text only) counts as one image.

    Args:
        requests: at least one.
        kept: prefixes of earlier calls to go on from; left alone where gradients are needed.

    Returns:
        One row per distinct (image, prompt) in order of first appearance, the prompt to append to each row (empty
        where it is there already), and for each request its row.

    Raises:
        PluginError: if the model's prompt segment is empty.
    """
    images: dict[int, Image | None] = {}
    nodes: dict[tuple[int, str], int] = {}
    node_of = []
    for request in requests:
        images.setdefault(id(request.image), request.image)
        node_of.append(nodes.setdefault((id(request.image), request.prompt), len(nodes)))
    prompts = {text: model.prompt(text) for text in dict.fromkeys(text for _, text in nodes)}
    if empty := [text for text, segment in prompts.items() if not len(segment.embeds)]:
        raise PluginError(
            f"the model has no position for the prompt {empty[0]!r}",
            "the first token of an answer is predicted from the last position of the prompt",
            "let prompt() return the template tail at least",
        )
    distinct = list(images.values())
    if torch.is_grad_enabled():
        kept = None
    if kept is None and len(nodes) == len(images):
        # no prefix is kept or shared between prompts, so image and prompt may be one pass
        pairs = list(zip(model.prefixes(distinct), (prompts[text] for _, text in nodes), strict=True))
        if all(segment.causal for pair in pairs for segment in pair):
            rows = prefill_roots(model, [join_segments(pair) for pair in pairs])
            return rows, [Segment(p.embeds[:0], p.positions[:, :0], 0) for _, p in pairs], node_of
    found = kept.find(distinct) if kept is not None else None
    if found is None:
        found = prefill_roots(model, model.prefixes(distinct)), list(range(len(distinct)))
        if kept is not None:
            kept.keep(distinct, found[0])
    trunk, places = found
    row_of = dict(zip(images, places, strict=True))
    return trunk.fork([row_of[image] for image, _ in nodes]), [prompts[text] for _, text in nodes], node_of


def prefill(
    model: CausalModel, requests: Sequence[TextRequest], kept: PrefixCache | None = None
) -> tuple[Rows, list[int]]:
    """:func:`prefill_prompts`, then prefill every distinct prompt of an image once; rows ready to fork into samples."""
    rows, prompts, node_of = prefill_prompts(model, requests, kept)
    return extend(model, rows, prompts)[1], node_of
