"""Unit vectors for pictures and texts from the base model itself, for cycle consistency.

BAGEL has no trained joint space. The vector of a picture or a text is the hidden state at the end of a prompt that
asks for it in one word, which a language model makes comparable across the two (E5-V, arXiv 2407.12580), less the mean
vector of contentless items of the same kind: without that, what all prompts have in common outweighs the content.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor

from asg_bagel.language import BagelText
from asg_core.decoding.tree import grow
from asg_core.lora import RoleAdapters
from asg_core.roles import TextRequest

IMAGE_PROMPT = "Summary of the image in one word:"
TEXT_PROMPT = "{text}\nSummary of the text in one word:"

_BLANK_IMAGES = tuple(Image.new("RGB", (8, 8), colour) for colour in ("black", "white"))
_BLANK_TEXTS = ("", "A picture.")


class Embedding:
    """Embeds with all adapters off.

    Args:
        text: the model.
        adapters: switched off while embedding.
    """

    def __init__(self, text: BagelText, adapters: RoleAdapters) -> None:
        self._text, self._adapters = text, adapters

    def __call__(self, items: Sequence[Image.Image | str]) -> Tensor:
        """(n, D) float32 unit vectors, on the model's device."""
        centres = self._centres
        kinds = torch.tensor([int(isinstance(item, str)) for item in items], dtype=torch.long, device=centres.device)
        vectors = self._states(items) - centres[kinds]
        unit: Tensor = vectors / vectors.norm(dim=-1, keepdim=True)
        return unit

    @cached_property
    def _centres(self) -> Tensor:
        """(2, D): of pictures, of texts."""
        return torch.stack([self._states(items).mean(0) for items in (_BLANK_IMAGES, _BLANK_TEXTS)])

    @torch.no_grad()
    def _states(self, items: Sequence[Image.Image | str]) -> Tensor:
        if not items:
            model = self._text.builder.model
            return torch.zeros(0, model.config.llm.hidden_size, device=model.device)
        requests = [
            TextRequest(TEXT_PROMPT.replace("{text}", item), None, 0)
            if isinstance(item, str)
            else TextRequest(IMAGE_PROMPT, item, 0)
            for item in items
        ]
        with self._adapters.use(None):
            rows, row_of = grow(self._text, requests)
        return rows.last[row_of].float()
