"""Texts for a model with random weights, so that a step goes all its way: questions parse, votes differ, specs hold.

The tokens, log-probs and entropies of a sample stay those that the model produced, at full length, so every pass costs
what it costs; only the *text* that the step reads is replaced. Rewards and losses therefore mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from asg_core.backbones.interface import (
    Backbone,
    Role,
    TextRequest,
    TextSample,
    TextSampling,
    TextSamplings,
    broadcast_sampling,
)
from asg_core.backbones.proxy import BackboneProxy
from asg_core.method.prompts import CAPTION_PROMPT, QUESTION_PROMPT, SPEC_PROMPT
from asg_core.models.causal import CausalBackbone

SPEC = (
    "Prompt: a red square above a blue circle Q: What colour is the square? A: red "
    "Q: What colour is the circle? A: blue Q: What colour is the background? A: white"
)
COLOURS = ("red", "green", "black", "white", "brown", "pink", "grey", "gold")
"""Of the square, one image after the other: prompts to draw are shared by the candidates of one image only."""
CAPTION = "a red square above a blue circle"
AGREEING = (4, 5, 6)
"""Answers that agree, by question: three different votes, so that the Proposer has something to learn."""


TOP_LOGIT = 28.0
"""Mean largest logit of a confident model, as trained ones have; that of random weights is near 5."""


class EndlessText:
    """A text model that no token stops, so that every completion has the full length; its logits are scaled."""

    stop_token_ids: frozenset[int] = frozenset()

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.gain = 1.0

    def head(self, hidden: Tensor) -> Tensor:
        """See CausalModel."""
        logits: Tensor = self._inner.head(hidden)
        return logits * self.gain

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def endless(backbone: Backbone) -> None:
    """Let no completion of ``backbone`` end early. Raises TypeError if it does not decode through the core."""
    if not isinstance(backbone, CausalBackbone):
        raise TypeError(f"{type(backbone).__name__} is no CausalBackbone")
    backbone.text = EndlessText(backbone.text)


def confident(backbone: CausalBackbone, image: Image) -> None:
    """Scale the logits of an :func:`endless` backbone so that the largest is near 28, measured on ``image``.

    Rounding of hidden states moves log-probs in proportion, so what random weights replay well proves little.
    """
    samples = backbone.solve([TextRequest(QUESTION_PROMPT, image, seed) for seed in range(2)], TextSampling(4))
    with torch.no_grad():
        scores = backbone.token_logits(samples, Role.SOLVER, logits=True)
    top = torch.cat([score.logits for score in scores if score.logits is not None]).amax(-1).mean()
    backbone.text.gain = TOP_LOGIT / float(top)  # type: ignore[attr-defined]


class Scripted(BackboneProxy):
    """Replaces texts.

    Args:
        inner: the real model, or a wrapper of it.
        sources: the images that a step starts from; answers on any other image are about a candidate.
        framings: N, answers to one question in a row.
    """

    def __init__(self, inner: Backbone, sources: Sequence[Image], framings: int) -> None:
        super().__init__(inner)
        self._sources, self._framings = {id(image) for image in sources}, framings

    def ask(
        self, requests: Sequence[TextRequest], sampling: TextSamplings, role: Role | None = Role.PROPOSER
    ) -> list[TextSample]:
        """See Backbone."""
        samples = super().ask(requests, sampling, role)
        return [
            _say(s, _spec(i) if s.request.prompt == SPEC_PROMPT else f"What colour is shape number {i + 1}?")
            for i, s in enumerate(samples)
        ]

    def solve(
        self, requests: Sequence[TextRequest], sampling: TextSamplings, role: Role | None = Role.SOLVER
    ) -> list[TextSample]:
        """See Backbone."""
        samples = super().solve(requests, sampling, role)
        each = broadcast_sampling(sampling, len(requests))
        return [_say(s, self._answer(i, s.request, how)) for i, (s, how) in enumerate(zip(samples, each, strict=True))]

    def _answer(self, index: int, request: TextRequest, sampling: TextSampling) -> str:
        if request.prompt == CAPTION_PROMPT:
            return CAPTION
        if sampling.temperature == 0:
            return "red" if id(request.image) in self._sources else ("red", "blue")[request.seed % 2]
        question, place = divmod(index, self._framings)
        agreeing = AGREEING[question % len(AGREEING)] * self._framings // 7
        return "red" if place < agreeing else ("blue", "green")[place % 2]


def _spec(place: int) -> str:
    return SPEC.replace("a red square", f"a {COLOURS[place % len(COLOURS)]} square")


def _say(sample: TextSample, text: str) -> TextSample:
    """``sample`` with another text, all of it attributed to its first token."""
    return replace(sample, text=text, pieces=(text, *[""] * (len(sample.token_ids) - 1)), finish_reason="stop")
