"""One vector space for pictures and texts out of a language model that was never trained to give one.

The vector of an item is the hidden state at the end of a prompt that asks to sum it up in one word, which makes the two
kinds comparable (E5-V, arXiv 2407.12580, without its fine-tuning), less the mean vector of blank items of the same
kind: what all such prompts have in common would otherwise outweigh the content.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from PIL import Image as PilImage
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional as F

from asg_core.backbones.devices import tensor_on
from asg_core.backbones.interface import TextRequest
from asg_core.models.decoding.causal_model import CausalModel
from asg_core.models.decoding.prefix_tree import prefill
from asg_core.models.lora import RoleAdapters

IMAGE_PROMPT = "Summary of the image above in one word:"
TEXT_PROMPT = "{text}\nSummary of the sentence above in one word:"
_BLANK_IMAGES = tuple(PilImage.new("RGB", (56, 56), colour) for colour in ("black", "gray", "white"))
_BLANK_TEXTS = ("", "An image.", "Something.")


class PromptEmbedding:
    """Embeds with all adapters off; ``embed`` of a backbone without a trained joint space.

    How well it ranks depends on the model: measure before you trust it.
    """

    def __init__(self, model: CausalModel, adapters: RoleAdapters) -> None:
        self._model, self._adapters = model, adapters

    @torch.no_grad()
    def __call__(self, items: Sequence[Image | str]) -> Tensor:
        """(n, D) float32 unit vectors on the model's device."""
        if not items:
            return self._centres[:0]
        states = self._states(items)
        kinds = tensor_on(states.device, [int(isinstance(item, str)) for item in items])
        return F.normalize(states - self._centres.index_select(0, kinds), dim=-1)

    @cached_property
    def _centres(self) -> Tensor:
        """(2, D): of pictures, of texts."""
        return torch.stack([self._states(blank).mean(0) for blank in (_BLANK_IMAGES, _BLANK_TEXTS)])

    def _states(self, items: Sequence[Image | str]) -> Tensor:
        requests = [
            TextRequest(TEXT_PROMPT.replace("{text}", item), None, 0)
            if isinstance(item, str)
            else TextRequest(IMAGE_PROMPT, item, 0)
            for item in items
        ]
        with self._adapters.use(None):
            rows, row_of = prefill(self._model, requests)
        return rows.last.index_select(0, tensor_on(rows.last.device, row_of)).float()
