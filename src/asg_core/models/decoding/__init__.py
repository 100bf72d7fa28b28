"""Batched decoding and scoring over a prefix tree: image -> prompt -> samples.

A backbone hands over a :class:`CausalModel` (embeddings in, hidden states out); everything about batching, padding,
caching, sampling and scoring is here, once, for all backbones. Decoders that do more per token (guidance, image tokens)
take the steps of sampling: :func:`prefill_roots`, :func:`prefill`, :func:`append_token`, :func:`pick`.
"""

from __future__ import annotations

from asg_core.models.decoding.causal_model import CausalModel as CausalModel
from asg_core.models.decoding.causal_model import Segment as Segment
from asg_core.models.decoding.causal_model import TransformersCausalModel as TransformersCausalModel
from asg_core.models.decoding.causal_model import join_segments as join_segments
from asg_core.models.decoding.compiled import CompiledDecode as CompiledDecode
from asg_core.models.decoding.feature_cache import ImageFeatureCache as ImageFeatureCache
from asg_core.models.decoding.prefix_tree import PrefixCache as PrefixCache
from asg_core.models.decoding.prefix_tree import Rows as Rows
from asg_core.models.decoding.prefix_tree import append_token as append_token
from asg_core.models.decoding.prefix_tree import prefill as prefill
from asg_core.models.decoding.prefix_tree import prefill_roots as prefill_roots
from asg_core.models.decoding.prompt_embedding import PromptEmbedding as PromptEmbedding
from asg_core.models.decoding.sampling import pick as pick
from asg_core.models.decoding.sampling import sample_text as sample_text
from asg_core.models.decoding.sampling import token_entropy as token_entropy
from asg_core.models.decoding.sampling import uniforms_of as uniforms_of
from asg_core.models.decoding.scoring import recomputed as recomputed
from asg_core.models.decoding.scoring import token_logits as token_logits
