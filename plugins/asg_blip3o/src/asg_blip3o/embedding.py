"""Images and texts in one vector space, from the base language model: the state that is about to sum the item up.

The prompt asks for a one-word summary; the last hidden state, from which that word would be predicted, is the embedding
(the approach of E5-V, arXiv 2407.12580, without its fine-tuning).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional as F

from asg_blip3o.conditioning import hidden_states
from asg_blip3o.language import LanguageModel
from asg_core.decoding import join_segments

IMAGE_PROMPT = "Summarize the image above in one word:"
TEXT_PROMPT = "{text}\nSummarize the sentence above in one word:"
_ROWS = 16


def embed_items(language: LanguageModel, items: Sequence[Image | str]) -> Tensor:
    """(n, D) float32 unit vectors of images and texts, under the adapters that are active. At most 16 rows per pass."""
    vectors = []
    for start in range(0, len(items), _ROWS):
        part = items[start : start + _ROWS]
        prefixes = language.prefixes([None if isinstance(item, str) else item for item in part])
        prompts = [
            language.prompt(TEXT_PROMPT.replace("{text}", item) if isinstance(item, str) else IMAGE_PROMPT)
            for item in part
        ]
        whole = [join_segments(pair) for pair in zip(prefixes, prompts, strict=True)]
        states = hidden_states(language.model, [s.embeds for s in whole], [s.positions for s in whole])
        vectors += [F.normalize(state[-1].float(), dim=-1) for state in states]
    return torch.stack(vectors) if vectors else torch.zeros(0, language.model.latent_queries.shape[-1])
