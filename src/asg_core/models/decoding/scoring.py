"""Teacher-forced scores of stored samples over a prefix tree, differentiable, a few vocabulary rows at a time.

The prefix is prefilled once and its cache, gradients included, is forked to the samples that share it. This gives the
gradient of the unshared computation; detaching the prefix would not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import repeat
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from asg_core.backbones.devices import tensor_on
from asg_core.backbones.interface import Role, TextSample, TokenLogits
from asg_core.models.decoding.cache_layers import running_again
from asg_core.models.decoding.causal_model import CausalModel, Segment, join_segments
from asg_core.models.decoding.prefix_tree import PrefixCache, Rows, extend, prefill_prompts
from asg_core.models.decoding.sampling import policy_logprobs, raw_logits, token_entropy
from asg_core.models.limits import FEW_SAMPLES, VOCABULARY_ROWS

Scores = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


class AdapterSwitch(Protocol):
    """What scoring needs of :class:`asg_core.models.lora.RoleAdapters`, and a model without adapters can offer."""

    def use(self, role: Role | None) -> AbstractContextManager[None]:
        """Make ``role`` (None: no adapter) active inside the block."""


def token_logits(
    model: CausalModel,
    samples: Sequence[TextSample],
    adapters: AdapterSwitch,
    role: Role | None,
    *,
    base: bool = False,
    logits: bool = False,
    checkpoint_layers: Sequence[nn.Module] = (),
    prefixes: PrefixCache | None = None,
) -> list[TokenLogits]:
    """Score stored samples under ``role``, each under its own prompt and image; nothing is re-tokenised.

    With grad mode on, ``logprobs`` and ``kl`` carry gradients into the parameters of ``role``.

    Args:
        samples: as sampled, T_i >= 1 tokens each; temperatures may differ.
        adapters: switches between ``role`` and the base policy.
        base: also give the adapters-off log-probs and the exact KL(policy || base) over the vocabulary.
        logits: also give raw logits, (T, V) per sample: wide, for inspection.
        checkpoint_layers: the decoder layers, to recompute them in the backward pass instead of keeping their
            activations (saves memory, costs a second forward). Do not switch on transformers' own checkpointing: it
            drops the cache.
        prefixes: kept image prefixes, used where no gradient is needed (the base policy).

    Returns:
        One record per sample, in order; float32.
    """
    if not samples:
        return []
    with adapters.use(role), recomputed(checkpoint_layers, partial(adapters.use, role)):
        hidden = _completion_hidden(model, samples, prefixes)
    base_hidden = None
    if base:
        with torch.no_grad(), adapters.use(None):
            base_hidden = _completion_hidden(model, samples, prefixes)
    lengths = [len(sample.token_ids) for sample in samples]
    device = hidden.device
    ids = tensor_on(device, [token for sample in samples for token in sample.token_ids])
    wide = torch.promote_types(hidden.dtype, torch.float32)
    temperature = tensor_on(device, [sample.temperature for sample in samples], wide)
    temperature = temperature.repeat_interleave(tensor_on(device, lengths), output_size=len(ids))[:, None]
    suppressed = tensor_on(device, tuple(model.suppressed_token_ids), torch.long)
    run: Callable[..., Scores] = partial(_score, model, adapters, role, suppressed, logits)
    if torch.is_grad_enabled():
        run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
    inputs = (torch.split(column, VOCABULARY_ROWS) for column in (hidden, ids, temperature))
    base_rows = repeat(None) if base_hidden is None else torch.split(base_hidden, VOCABULARY_ROWS)
    chunks = [run(*chunk) for chunk in zip(*inputs, base_rows, strict=False)]
    columns = [_per_sample(column, lengths) for column in zip(*chunks, strict=True)]
    return [TokenLogits(*of_sample) for of_sample in zip(*columns, strict=True)]


def _score(
    model: CausalModel,
    adapters: AdapterSwitch,
    role: Role | None,
    suppressed: Tensor,
    logits: bool,
    rows: Tensor,
    ids: Tensor,
    temperature: Tensor,
    base_rows: Tensor | None,
) -> Scores:
    """Columns of :class:`TokenLogits` for (n, D) hidden states that predict the (n,) tokens ``ids``."""
    # Entered here and not by the caller, because a checkpoint runs this again in the backward pass.
    with adapters.use(role):
        raw = raw_logits(model, rows)
    policy = policy_logprobs(raw, temperature, suppressed)
    logprobs = policy.gather(-1, ids[:, None])[:, 0]
    base_logprobs = kl = None
    if base_rows is not None:
        with torch.no_grad(), adapters.use(None):
            reference = policy_logprobs(raw_logits(model, base_rows), temperature, suppressed)
        base_logprobs = reference.gather(-1, ids[:, None])[:, 0]
        kl = (policy.exp() * (policy - reference).index_fill(-1, suppressed, 0.0)).sum(-1)
    raw = raw.detach()
    return logprobs, token_entropy(raw), base_logprobs, kl, raw if logits else None


def _per_sample(chunks: Sequence[Tensor | None], lengths: list[int]) -> Sequence[Any]:
    """Chunks of one column over all tokens -> one tensor per sample, or None for each if the column is not there."""
    present = [chunk for chunk in chunks if chunk is not None]
    return torch.split(torch.cat(present), lengths) if present else [None] * len(lengths)


def _completion_hidden(model: CausalModel, samples: Sequence[TextSample], kept: PrefixCache | None) -> Tensor:
    """(n, D) hidden states that predict the n completion tokens, sample after sample.

    Where few samples share a prompt, prompt and completion run as one pass.
    """
    rows, prompts, node_of = prefill_prompts(model, [sample.request for sample in samples], kept)
    completions = _token_segments(model, [sample.token_ids[:-1] for sample in samples], rows)
    if len(samples) <= FEW_SAMPLES * len(prompts) and all(len(prompt.embeds) and prompt.causal for prompt in prompts):
        rows, prompts = rows.fork(node_of), [prompts[node] for node in node_of]
        starts = [len(prompt.embeds) - 1 for prompt in prompts]
        joined = [join_segments(pair) for pair in zip(prompts, completions, strict=True)]
        hidden, _ = extend(model, rows, joined)
    else:
        starts = [0] * len(samples)
        rows = extend(model, rows, prompts)[1].fork(node_of)
        after, _ = extend(model, rows, completions)
        hidden = torch.cat([rows.last[:, None], after], dim=1)
    width = hidden.shape[1]
    wanted = [
        row * width + start + step
        for row, (start, sample) in enumerate(zip(starts, samples, strict=True))
        for step in range(len(sample.token_ids))
    ]
    return hidden.flatten(0, 1).index_select(0, tensor_on(hidden.device, wanted))


def _token_segments(model: CausalModel, ids_of: Sequence[Sequence[int]], rows: Rows) -> list[Segment]:
    width = max(map(len, ids_of))
    device = rows.counter.device
    padded = tensor_on(device, [[*ids, *[0] * (width - len(ids))] for ids in ids_of], torch.long)
    steps = torch.arange(width, device=device).expand(rows.axes, -1)
    return [
        Segment(embeds[: len(ids)], steps[:, : len(ids)], len(ids))
        for ids, embeds in zip(ids_of, model.embed_tokens(padded), strict=True)
    ]


@contextmanager
def recomputed(layers: Sequence[nn.Module], active: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Inside, ``layers`` keep no activations; the backward pass recomputes them under ``active()``.

    A layer that writes to a cache must find the same past again (``cache_layers.BranchLayer`` does).
    """
    layers = layers if torch.is_grad_enabled() else ()

    @contextmanager
    def again() -> Iterator[None]:
        with active(), running_again():
            yield

    run = partial(
        checkpoint, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: (nullcontext(), again())
    )
    own = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = partial(run, layer.forward)
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward
