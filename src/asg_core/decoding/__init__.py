"""Batched decoding and scoring over a prefix tree: image -> prompt -> samples.

A backbone hands over a :class:`CausalModel` (embeddings in, hidden states out); everything about batching, padding,
caching, sampling and scoring is here, once, for all backbones:

* :func:`sample_text` prefills every distinct image once, every distinct prompt of an image once, and decodes all
  samples as one batch, capturing log-probs and entropies on the way;
* :func:`token_logits` scores stored samples over the same tree, differentiably: the shared prefix carries gradients;
* :class:`ImageFeatureCache` keeps vision features, :class:`PrefixCache` prefilled prefixes, while the image lives;
* :class:`TransformersCausalModel` turns a stock transformers decoder into a :class:`CausalModel`.
"""

from __future__ import annotations

from asg_core.decoding.images import ImageFeatureCache
from asg_core.decoding.model import CausalModel, Segment, join_segments
from asg_core.decoding.prefixes import PrefixCache
from asg_core.decoding.sampling import sample_text
from asg_core.decoding.scoring import token_logits
from asg_core.decoding.transformers_model import TransformersCausalModel

__all__ = [
    "CausalModel",
    "ImageFeatureCache",
    "PrefixCache",
    "Segment",
    "TransformersCausalModel",
    "join_segments",
    "sample_text",
    "token_logits",
]
