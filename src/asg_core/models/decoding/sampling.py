"""Sampling over a prefix tree, with log-probs and entropies captured on the way (METHOD, understanding steps 1 to 4).

One host transfer per decoding pass: the token ids, which decide who goes on. A sample's randomness is its own: uniforms
from a generator seeded with the request's seed, turned into tokens by the inverse cumulative distribution.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import repeat

import torch
from torch import Tensor

from asg_core.backbones.devices import moved_to, tensor_on
from asg_core.backbones.interface import TextRequest, TextSample, TextSampling, TextSamplings, broadcast_sampling
from asg_core.models.decoding.causal_model import CausalModel
from asg_core.models.decoding.compiled import CompiledDecode, StaticSlots
from asg_core.models.decoding.logits import policy_logprobs, raw_logits, suppressed_ids, token_entropy
from asg_core.models.decoding.prefix_cache import PrefixCache
from asg_core.models.decoding.prefix_tree import append_token
from asg_core.models.decoding.request_tree import prefill
from asg_core.models.decoding.token_text import TokenTextDecoder
from asg_core.models.limits import VOCABULARY_ROWS

_COMPACT_AT = 0.75
"""Finished rows leave the batch when at most this share is still going: copying the cache costs about one pass."""


@dataclass(eq=False)
class _Completion:
    """What one request has so far."""

    token_ids: list[int] = field(default_factory=list)
    stopped: bool = False
    ended: bool = False

    def take(self, token: int, limit: int, stops: Collection[int], broken: bool) -> None:
        """Append a token, unless the completion has ended."""
        if not self.ended:
            self.token_ids.append(token)
            self.stopped = token in stops
            self.ended = self.stopped or broken or len(self.token_ids) == limit


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
    chooser = _Chooser(model, device)
    draws = _Draws.of(requests, each, length, nodes.last)
    completions = [_Completion() for _ in requests]
    owners = list(range(len(requests)))
    measures: list[Tensor] = []
    places: list[int] = []
    for step in range(length):
        ids, measured, broken = chooser(rows.last, draws, step)
        measures.append(measured)
        places.extend(owners)
        for owner, token, is_broken in zip(owners, *torch.stack([ids, broken.long()]).tolist(), strict=True):
            completions[owner].take(token, each[owner].max_new_tokens, model.stop_token_ids, bool(is_broken))
        going = [row for row, owner in enumerate(owners) if not completions[owner].ended]
        if not going:
            break
        if isinstance(rows, StaticSlots):
            rows.append_token(ids)
            continue
        if len(going) <= _COMPACT_AT * len(owners):
            index = tensor_on(device, going)
            owners = [owners[row] for row in going]
            rows = rows.fork(going, growing=True)
            draws, ids = draws.select(index), ids.index_select(0, index)
        rows = append_token(model, rows, ids)
    return _records(model, requests, each, completions, places, torch.cat(measures, dim=1))


@dataclass(frozen=True, eq=False)
class _Draws:
    """How each row takes its next tokens.

    Attributes:
        temperature: (B, 1) of the policy, 1 where greedy.
        greedy: (B,) bool.
        uniforms: (B, length); None if all rows are greedy.
    """

    temperature: Tensor
    greedy: Tensor
    uniforms: Tensor | None

    @classmethod
    def of(cls, requests: Sequence[TextRequest], each: Sequence[TextSampling], length: int, hidden: Tensor) -> _Draws:
        """``hidden`` is of the model: its device, and its dtype if wider than float32."""
        device, wide = hidden.device, torch.promote_types(hidden.dtype, torch.float32)
        greedy = [one.temperature == 0 for one in each]
        uniforms = None
        if not all(greedy):
            uniforms = uniforms_of([request.seed for request in requests], length, device)
        temperature = tensor_on(device, [one.temperature or 1.0 for one in each], wide)
        return cls(temperature[:, None], tensor_on(device, greedy), uniforms)

    def select(self, rows: Tensor) -> _Draws:
        uniforms = None if self.uniforms is None else self.uniforms.index_select(0, rows)
        return _Draws(self.temperature.index_select(0, rows), self.greedy.index_select(0, rows), uniforms)


class _Chooser:
    """Draws next tokens, at most 128 rows of logits at a time."""

    def __init__(self, model: CausalModel, device: torch.device) -> None:
        self.model = model
        self.suppressed = suppressed_ids(model, device)
        barred = {*model.suppressed_token_ids, *model.stop_token_ids}
        self.placeholder = next(token for token in range(len(barred) + 1) if token not in barred)

    def __call__(self, hidden: Tensor, draws: _Draws, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """(B, D) hidden -> (B,) ids, (2, B) log-probs and entropies, (B,) bool: logits not finite."""
        uniforms = repeat(None) if draws.uniforms is None else torch.split(draws.uniforms[:, step], VOCABULARY_ROWS)
        columns = (torch.split(column, VOCABULARY_ROWS) for column in (hidden, draws.temperature, draws.greedy))
        chunks = zip(*columns, uniforms, strict=False)
        ids, measures, broken = zip(*(self._choose(*chunk) for chunk in chunks), strict=True)
        return torch.cat(ids), torch.cat(measures, dim=1), torch.cat(broken)

    def _choose(
        self, hidden: Tensor, temperature: Tensor, greedy: Tensor, uniforms: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits = raw_logits(self.model, hidden)
        finite = logits.isfinite().all(-1)
        policy = policy_logprobs(logits, temperature, self.suppressed)
        ids = policy.argmax(-1)
        if uniforms is not None:
            ids = torch.where(greedy, ids, pick(policy, uniforms))
        ids = torch.where(finite, ids, self.placeholder)
        logprobs = policy.gather(-1, ids[:, None])[:, 0].masked_fill(~finite, torch.nan)
        return ids, torch.stack([logprobs, token_entropy(logits)]), ~finite


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


def _records(
    model: CausalModel,
    requests: Sequence[TextRequest],
    each: Sequence[TextSampling],
    completions: Sequence[_Completion],
    places: Sequence[int],
    measures: Tensor,
) -> list[TextSample]:
    """``measures`` (2, n) holds log-probs and entropies of all passes; column j belongs to request ``places[j]``."""
    logprobs: list[list[float]] = [[] for _ in requests]
    entropies: list[list[float]] = [[] for _ in requests]
    for owner, logprob, entropy in zip(places, *measures.tolist(), strict=True):
        logprobs[owner].append(logprob)
        entropies[owner].append(entropy)
    pieces_of = TokenTextDecoder(model.decode)
    samples = []
    for i, (request, completion) in enumerate(zip(requests, completions, strict=True)):
        count = len(completion.token_ids)
        pieces = pieces_of(completion.token_ids[: count - completion.stopped])
        samples.append(
            TextSample(
                request=request,
                text="".join(pieces),
                token_ids=tuple(completion.token_ids),
                pieces=(*pieces, "") if completion.stopped else pieces,
                logprobs=tuple(logprobs[i][:count]),
                entropies=tuple(entropies[i][:count]),
                finish_reason="stop" if completion.stopped else "length",
                temperature=each[i].temperature or 1.0,
            )
        )
    return samples
