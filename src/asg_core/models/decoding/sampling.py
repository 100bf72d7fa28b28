"""Sampling over a prefix tree, with log-probs and entropies captured on the way (METHOD, understanding steps 1 to 4).

One host transfer per decoding pass: what was drawn decides who goes on. A sample's randomness is its own: uniforms
from a generator seeded with the request's seed, turned into tokens by the inverse cumulative distribution. What is as
wide as the vocabulary has at most 128 rows at a time, in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from os.path import commonprefix

import torch
from torch import Tensor

from asg_core.backbones.devices import moved_to, tensor_on
from asg_core.backbones.interface import TextRequest, TextSample, TextSampling, TextSamplings, broadcast_sampling
from asg_core.models.decoding.causal_model import CausalModel
from asg_core.models.decoding.compiled import CompiledDecode, StaticSlots
from asg_core.models.decoding.prefix_tree import PrefixCache, append_token, prefill
from asg_core.models.limits import VOCABULARY_ROWS

_COMPACT_AT = 0.75
"""Finished rows leave the batch when at most this share is still going: copying the cache costs about one pass."""


@dataclass(eq=False)
class _Completion:
    """What one request has so far: each token with its log-prob and entropy."""

    request: TextRequest
    sampling: TextSampling
    tokens: list[tuple[int, float, float]] = field(default_factory=list)
    stopped: bool = False
    ended: bool = False

    def take(self, token: int, logprob: float, entropy: float, stops: Collection[int]) -> None:
        """Append a token, unless the completion has ended; without a log-prob (NaN) it is the last."""
        if not self.ended:
            self.tokens.append((token, logprob, entropy))
            self.stopped = token in stops
            full = len(self.tokens) == self.sampling.max_new_tokens
            self.ended = self.stopped or full or math.isnan(logprob)

    def sample(self, decode: Callable[[tuple[int, ...]], str]) -> TextSample:
        token_ids, logprobs, entropies = zip(*self.tokens, strict=True)
        pieces = token_pieces(decode, token_ids[: len(token_ids) - self.stopped])
        return TextSample(
            request=self.request,
            text="".join(pieces),
            token_ids=token_ids,
            pieces=(*pieces, "") if self.stopped else pieces,
            logprobs=logprobs,
            entropies=entropies,
            finish_reason="stop" if self.stopped else "length",
            temperature=self.sampling.temperature or 1.0,
        )


@torch.no_grad()
def sample_text(
    model: CausalModel,
    requests: Sequence[TextRequest],
    sampling: TextSamplings,
    *,
    prefixes: PrefixCache | None = None,
    compiled: CompiledDecode | None = None,
) -> list[TextSample]:
    """Complete every request; one sample per request, in order.

    The adapters that are active now are the policy. A row whose logits are not finite ends there with "length", its
    last token (a placeholder) carrying NaN as log-prob and entropy.

    Args:
        model: in eval mode.
        requests: those with the same image object share its prefix, those with the same prompt too share all of it.
        sampling: of all requests, or one each; temperature 0 is greedy, and log-probs then refer to temperature 1.
        prefixes: image prefixes kept between calls.
        compiled: runs the passes after the first token, with the same results up to rounding; None: eagerly. Finished
            rows then stay in the batch, because every other number of rows is another program.

    Raises:
        ConfigError: a pass cannot be compiled here.
    """
    if not requests:
        return []
    nodes, node_of = prefill(model, requests, prefixes)
    each = broadcast_sampling(sampling, len(requests))
    length = max(one.max_new_tokens for one in each)
    device = nodes.counter.device
    rows = nodes.fork(node_of, growing=True) if compiled is None else compiled.fill(nodes, node_of, length)
    chooser = _Chooser(model, requests, each, nodes.last)
    completions = [_Completion(*of_request) for of_request in zip(requests, each, strict=True)]
    owners = list(range(len(requests)))
    for step in range(length):
        chosen = chooser(rows.last, step)
        for owner, token, logprob, entropy in zip(owners, *chosen.tolist(), strict=True):
            completions[owner].take(int(token), logprob, entropy, model.stop_token_ids)
        going = [row for row, owner in enumerate(owners) if not completions[owner].ended]
        if not going:
            break
        ids = chosen[0].long()
        if isinstance(rows, StaticSlots):
            rows.append_token(ids)
            continue
        if len(going) <= _COMPACT_AT * len(owners):
            index = tensor_on(device, going)
            owners = [owners[row] for row in going]
            rows = rows.fork(going, growing=True)
            chooser.keep(index)
            ids = ids.index_select(0, index)
        rows = append_token(model, rows, ids)
    decode = cache(model.decode)
    return [completion.sample(decode) for completion in completions]


class _Chooser:
    """Draws the next tokens of each row, at most 128 rows of logits at a time.

    Args:
        hidden: (B, D) of the model: its device, and its dtype if wider than float32.
    """

    def __init__(
        self, model: CausalModel, requests: Sequence[TextRequest], each: Sequence[TextSampling], hidden: Tensor
    ) -> None:
        self.model = model
        device, wide = hidden.device, torch.promote_types(hidden.dtype, torch.float32)
        self.suppressed = tensor_on(device, tuple(model.suppressed_token_ids), torch.long)
        barred = {*model.suppressed_token_ids, *model.stop_token_ids}
        self.placeholder = next(token for token in range(len(barred) + 1) if token not in barred)
        self.temperature = tensor_on(device, [one.temperature or 1.0 for one in each], wide)[:, None]
        self.greedy = tensor_on(device, [one.temperature == 0 for one in each])
        length = max(one.max_new_tokens for one in each)
        self.uniforms = uniforms_of([request.seed for request in requests], length, device)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        columns = self.temperature, self.greedy, self.uniforms
        self.temperature, self.greedy, self.uniforms = (column.index_select(0, rows) for column in columns)

    def __call__(self, hidden: Tensor, step: int) -> Tensor:
        """(B, D) hidden -> (3, B) ids, exact up to 2**24, log-probs, entropies; NaN where logits are not finite."""
        columns = hidden, self.temperature, self.greedy, self.uniforms[:, step]
        chunks = zip(*(torch.split(column, VOCABULARY_ROWS) for column in columns), strict=True)
        return torch.cat([self._choose(*chunk) for chunk in chunks], dim=1)

    def _choose(self, hidden: Tensor, temperature: Tensor, greedy: Tensor, uniforms: Tensor) -> Tensor:
        logits = raw_logits(self.model, hidden)
        finite = logits.isfinite().all(-1)
        policy = policy_logprobs(logits, temperature, self.suppressed)
        ids = torch.where(greedy, policy.argmax(-1), pick(policy, uniforms))
        ids = torch.where(finite, ids, self.placeholder)
        logprobs = policy.gather(-1, ids[:, None])[:, 0].masked_fill(~finite, torch.nan)
        return torch.stack([ids.to(logprobs.dtype), logprobs, token_entropy(logits)])


def uniforms_of(seeds: Sequence[int], length: int, device: torch.device) -> Tensor:
    """(B, length) in [0, 1) on ``device``: row i from seed i alone, drawn on the CPU."""
    draws = [torch.rand(length, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    # mps has no float64. Below 1 by more than a rounding error, so that no token behind the last probable one is drawn.
    wide = torch.float32 if device.type == "mps" else torch.float64
    return moved_to(device, torch.stack(draws).to(wide).clamp(max=1 - 4 * torch.finfo(wide).eps))


def pick(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens by the inverse cumulative distribution: (B, V) nats, (B,) of :func:`uniforms_of` -> (B,) ids.

    A row's token depends on that row alone, so a sample does not depend on its batch. A row of NaN gives the last id.
    """
    cumulative = logprobs.exp().to(uniforms.dtype).cumsum(-1)
    ids = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)[:, 0]
    return ids.clamp(max=logprobs.shape[-1] - 1)


def token_pieces(decode: Callable[[tuple[int, ...]], str], ids: Sequence[int]) -> tuple[str, ...]:
    """The text that each token of a completion contributes; the pieces join to ``decode(ids)``.

    Prefixes are decoded as a whole, since a token's text depends on its neighbours. Replacement characters at the end
    of a prefix stand for characters whose bytes are not complete; a token that completes nothing adds "".

    Args:
        decode: token ids -> text; best one that remembers, because samples of one prompt begin alike.
    """
    if not ids:
        return ()
    text = decode(tuple(ids))
    ends = [0]
    for count in range(1, len(ids)):
        prefix = decode(tuple(ids[:count])).rstrip("\ufffd")
        ends.append(max(ends[-1], len(commonprefix([prefix, text]))))  # noqa: RUF071 -- letters are meant, not folders
    ends.append(len(text))
    return tuple(text[start:end] for start, end in pairwise(ends))


def raw_logits(model: CausalModel, hidden: Tensor) -> Tensor:
    """(n, D) -> (n, V) raw logits in float32 (float64 stays, for numerical checks); n <= 128."""
    logits = model.head(hidden)
    return logits if logits.dtype == torch.float64 else logits.float()


def policy_logprobs(logits: Tensor, temperature: Tensor | float, suppressed: Tensor) -> Tensor:
    """(n, V) raw logits -> (n, V) nats of the sampling policy: suppressed tokens out, softmax(logits / temperature).

    Sampling and scoring both use this function, so that replayed log-probs equal the sampled ones.
    """
    return (logits.index_fill(-1, suppressed, -torch.inf) / temperature).log_softmax(-1)


def token_entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) over the last axis, in float32 whatever the input.

    Args:
        logits: (..., V) raw logits at temperature 1, any float dtype.

    Returns:
        (...) float32 nats in [0, ln V]; NaN where a row holds a non-finite logit.
    """
    entropy = torch.special.entr(torch.softmax(logits.float(), dim=-1)).sum(dim=-1)
    entropy = entropy.clamp(0.0, math.log(logits.shape[-1]))
    return torch.where(torch.isfinite(logits).all(dim=-1), entropy, torch.nan)
