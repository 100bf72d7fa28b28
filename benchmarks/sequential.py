"""The plain way to take a step: one request at a time, each from its image on, as a loop around a stock model does.

Nothing is shared or kept: the vision tower and the prompt run again for every sample, every answer decodes alone, and
the update runs every sample through the model twice more, under the policy and with the adapters off. The numbers are
those of the core, and the loop knows nothing of its prefix tree, caches, padding or chunks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import DynamicCache

from asg_core.backbones.interface import (
    Role,
    TextRequest,
    TextSample,
    TextSampling,
    TextSamplings,
    TokenLogits,
    broadcast_sampling,
)
from asg_core.models.decoding import Segment, join_segments, pick, token_entropy, uniforms_of
from asg_core.testing.qwen import QwenBackbone


class SequentialQwen(QwenBackbone):
    """The model of :class:`asg_core.testing.qwen.QwenBackbone`, one request at a time."""

    def ask(
        self, requests: Sequence[TextRequest], sampling: TextSamplings, role: Role | None = Role.PROPOSER
    ) -> list[TextSample]:
        """See Backbone."""
        each = zip(requests, broadcast_sampling(sampling, len(requests)), strict=True)
        with self.adapters.use(role):
            return [self._sample(request, how) for request, how in each]

    def solve(
        self, requests: Sequence[TextRequest], sampling: TextSamplings, role: Role | None = Role.SOLVER
    ) -> list[TextSample]:
        """See Backbone."""
        each = zip(requests, broadcast_sampling(sampling, len(requests)), strict=True)
        with self.adapters.use(role):
            return [self._sample(request, how) for request, how in each]

    def prefill(self, images: Sequence[Image], roles: Sequence[Role | None]) -> None:
        """Nothing: nothing is kept."""

    def token_logits(
        self, samples: Sequence[TextSample], role: Role | None, *, base: bool = False, logits: bool = False
    ) -> list[TokenLogits]:
        """See Backbone; ``base`` always, ``logits`` never."""
        return [self._score(sample, role) for sample in samples]

    def _row(self, request: TextRequest) -> Segment:
        """Header, image and prompt of one request."""
        text = self.text
        parts = [text.text_segment(text.header, special=True)]
        if request.image is not None:
            parts += text.encode([request.image])
        return join_segments([*parts, text.prompt(request.prompt)])

    def _logprobs(self, logits: Tensor, temperature: float) -> Tensor:
        """(n, V) raw -> nats of the sampling policy."""
        logits = logits.clone()
        logits[:, list(self.text.suppressed_token_ids)] = -torch.inf
        return (logits / temperature).log_softmax(-1)

    @torch.no_grad()
    def _sample(self, request: TextRequest, sampling: TextSampling) -> TextSample:
        decoder, text = self.model.model.language_model, self.text
        row = self._row(request)
        embeds, positions, cache = row.embeds[None], row.positions[:, None], DynamicCache()
        ids: list[int] = []
        logprobs, entropies = [], []
        uniforms = uniforms_of([request.seed], sampling.max_new_tokens, self.device)[0]
        for step in range(sampling.max_new_tokens):
            hidden = decoder(inputs_embeds=embeds, position_ids=positions, past_key_values=cache).last_hidden_state
            logits = self.model.lm_head(hidden[:, -1]).float()
            policy = self._logprobs(logits, sampling.temperature or 1.0)
            chosen = policy.argmax(-1) if sampling.temperature == 0 else pick(policy, uniforms[step : step + 1])
            ids.append(int(chosen))
            logprobs.append(float(policy[0, chosen]))
            entropies.append(float(token_entropy(logits)))
            if ids[-1] in text.stop_token_ids:
                break
            embeds = text.embed_tokens(chosen[None])
            positions = torch.full((3, 1, 1), row.advance + step, device=self.device)
        stopped = ids[-1] in text.stop_token_ids
        words = text.decode(ids[:-1] if stopped else ids)
        pieces = (words, *[""] * (len(ids) - 1))
        end = "stop" if stopped else "length"
        return TextSample(
            request, words, tuple(ids), pieces, tuple(logprobs), tuple(entropies), end, sampling.temperature or 1.0
        )

    def _score(self, sample: TextSample, role: Role | None) -> TokenLogits:
        row = self._row(sample.request)
        answer = self.text.token_segment(sample.token_ids[:-1])
        whole = join_segments([row, answer])
        count = len(sample.token_ids)
        with self.adapters.use(role):
            logits = self._completion_logits(whole, count)
        with torch.no_grad(), self.adapters.use(None):
            reference = self._logprobs(self._completion_logits(whole, count), sample.temperature)
        policy = self._logprobs(logits, sample.temperature)
        ids = torch.tensor(sample.token_ids, device=self.device)[:, None]
        difference = (policy - reference).nan_to_num(nan=0.0)  # suppressed tokens: -inf less -inf
        return TokenLogits(
            policy.gather(-1, ids)[:, 0],
            token_entropy(logits.detach()),
            reference.gather(-1, ids)[:, 0],
            (policy.exp() * difference).sum(-1),
        )

    def _completion_logits(self, whole: Segment, count: int) -> Tensor:
        hidden = self.model.model.language_model(
            inputs_embeds=whole.embeds[None], position_ids=whole.positions[:, None], use_cache=False
        ).last_hidden_state
        logits: Tensor = self.model.lm_head(hidden[0, -count:]).float()
        return logits
