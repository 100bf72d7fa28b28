"""Batched decoding and scoring over a prefix tree: image -> prompt -> samples.

A backbone hands over a :class:`CausalModel` (embeddings in, hidden states out); everything about batching, padding,
caching, sampling and scoring is here, once, for all backbones:

* :func:`sample_text` prefills every distinct image once, every distinct prompt of an image once, and decodes all
  samples as one batch, capturing log-probs and entropies on the way;
* :func:`token_logits` scores stored samples over the same tree, differentiably: the shared prefix carries gradients;
* :class:`CompiledDecode` lets :func:`sample_text` decode by compiled passes of fixed shapes;
* :class:`ImageFeatureCache` keeps vision features, :class:`PrefixCache` prefilled prefixes, while the image lives;
* :class:`PromptEmbedding` compares pictures and texts by the model's own hidden states;
* :func:`prefill_roots`, :func:`prefill`, :func:`append_token`, :func:`pick` are the steps of sampling, for decoders
  that do more per token (guidance, image tokens);
* :class:`TransformersCausalModel` turns a stock transformers decoder into a :class:`CausalModel`.
"""

from __future__ import annotations

from asg_core.models.decoding.causal_model import CausalModel, Segment, join_segments
from asg_core.models.decoding.compiled import CompiledDecode
from asg_core.models.decoding.feature_cache import ImageFeatureCache
from asg_core.models.decoding.logits import token_entropy
from asg_core.models.decoding.prefix_cache import PrefixCache
from asg_core.models.decoding.prefix_tree import Rows, append_token, prefill_roots
from asg_core.models.decoding.prompt_embedding import PromptEmbedding
from asg_core.models.decoding.request_tree import prefill
from asg_core.models.decoding.sampling import pick, sample_text, uniforms_of
from asg_core.models.decoding.scoring import recomputed, token_logits
from asg_core.models.decoding.transformers_model import TransformersCausalModel

__all__ = [
    "CausalModel",
    "CompiledDecode",
    "ImageFeatureCache",
    "PrefixCache",
    "PromptEmbedding",
    "Rows",
    "Segment",
    "TransformersCausalModel",
    "append_token",
    "join_segments",
    "pick",
    "prefill",
    "prefill_roots",
    "recomputed",
    "sample_text",
    "token_entropy",
    "token_logits",
    "uniforms_of",
]
