"""Unit vectors for images and texts from the base model itself, for cycle consistency.

VARGPT has no trained joint space. The vector of an item is the hidden state at the end of a prompt that asks for it in
one word, which makes images and texts comparable (E5-V, arXiv 2407.12580), less the mean vector of contentless items of
the same kind: what all such prompts have in common would otherwise outweigh the content.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image as PilImage
from PIL.Image import Image
from torch import Tensor

from asg_core.decoding.tree import grow
from asg_core.lora import RoleAdapters
from asg_core.roles import TextRequest
from asg_vargpt.text import VargptText

IMAGE_PROMPT = "Summary of the image above in one word:"
TEXT_PROMPT = "{text}\nSummary of the sentence above in one word:"

_EMPTY: dict[bool, tuple[Image | str, ...]] = {
    False: tuple(PilImage.new("RGB", (56, 56), colour) for colour in ("black", "gray", "white")),
    True: ("", "An image.", "Something."),
}


class Embedding:
    """Embeds with all adapters off.

    Args:
        text: the text side.
        adapters: switched off while embedding.
    """

    def __init__(self, text: VargptText, adapters: RoleAdapters) -> None:
        self._text, self._adapters = text, adapters
        self._centres: dict[bool, Tensor] = {}

    @torch.no_grad()
    def __call__(self, items: Sequence[Image | str]) -> Tensor:
        """(n, D) float32 unit vectors on the model's device."""
        if not items:
            return torch.zeros(0, self._text.model.hidden_size, device=self._text.model.device)
        with self._adapters.use(None):
            states = self._states(items)
            centres = torch.stack([self._centre(isinstance(item, str)) for item in items])
        return F.normalize(states - centres, dim=-1)

    def _centre(self, is_text: bool) -> Tensor:
        if is_text not in self._centres:
            self._centres[is_text] = self._states(_EMPTY[is_text]).mean(0)
        return self._centres[is_text]

    def _states(self, items: Sequence[Image | str]) -> Tensor:
        requests = [
            TextRequest(TEXT_PROMPT.replace("{text}", item), None, 0)
            if isinstance(item, str)
            else TextRequest(IMAGE_PROMPT, item, 0)
            for item in items
        ]
        rows, row_of = grow(self._text, requests)
        return rows.last[row_of].float()
