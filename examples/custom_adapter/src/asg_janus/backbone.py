"""Janus behind the four roles of asg_core: all but drawing comes from CausalBackbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from asg_core.backbones.interface import GenerationLoss, ImageRequest, ImageSample, ImageSampling, Role
from asg_core.backbones.manifest import BackboneManifest, LoadRequest
from asg_core.errors import WeightsError
from asg_core.models.causal import CausalBackbone
from asg_core.models.decoding import token_logits
from asg_core.models.lora import RoleAdapters
from asg_janus.drawing import ImageTokens, as_text
from asg_janus.options import JanusOptions
from asg_janus.plugin import MANIFEST
from asg_janus.text import JanusText
from asg_janus.weights_map import load_text

_LINEAR = r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


class JanusBackbone(CausalBackbone):
    """All roles on one frozen Janus; the three adapters sit on the language model.

    Args:
        text: the loaded model.
        request: options, shape and seed of the adapters, checkpointing.
    """

    manifest: BackboneManifest = MANIFEST
    text: JanusText

    def __init__(self, text: JanusText, request: LoadRequest) -> None:
        self.options: JanusOptions = request.options or JanusOptions()
        self.image_tokens = ImageTokens(text)
        on = {"language_model": text.decoder}
        targets = {role: dict.fromkeys(on, _LINEAR) for role in Role}
        super().__init__(
            text,
            RoleAdapters(on, targets, request.lora, request.seed),
            list(text.decoder.layers) if request.gradient_checkpointing else [],
            self.options,
        )

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return torch.device(self.text.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen base."""
        dtype: torch.dtype = self.text.model.dtype
        return dtype

    def generate(
        self, requests: Sequence[ImageRequest], sampling: ImageSampling, role: Role | None = Role.GENERATOR
    ) -> list[ImageSample]:
        """See Backbone. Trajectory: codes (L,) long and the temperature.

        Sampling is guided as the options say; ``token_logprobs`` are those of the conditional policy, which is what
        ``generation_loss`` scores. The two policies are one only at guidance 1.
        """
        if not requests:
            return []
        guidance = self.options.guidance if sampling.profile == "quality" else self.options.rollout_guidance
        with self.adapters.use(role):
            codes, logprobs = self.image_tokens.sample(requests, sampling.temperature, guidance)
        temperature = torch.tensor(sampling.temperature, dtype=torch.float64)
        return [
            ImageSample(
                request,
                self.image_tokens.picture(row),
                {"codes": row.cpu(), "temperature": temperature.clone()},
                row_logprobs.cpu(),
            )
            for request, row, row_logprobs in zip(requests, codes, logprobs, strict=True)
        ]

    def generation_loss(self, samples: Sequence[ImageSample], noise_seeds: Sequence[int]) -> GenerationLoss:
        """See Backbone: mean negative log-prob of the stored codes, exact KL per code, at the sample's temperature."""
        scores = token_logits(
            self.image_tokens,
            [as_text(sample) for sample in samples],
            self.adapters,
            Role.GENERATOR,
            base=True,
            checkpoint_layers=self.checkpoint_layers,
        )
        logprobs = torch.stack([score.logprobs for score in scores])
        penalty = torch.stack([score.kl.mean() for score in scores if score.kl is not None])
        return GenerationLoss(-logprobs.mean(-1), penalty, logprobs)


def load(request: LoadRequest) -> JanusBackbone:
    """The manifest's factory: checkpoint directory -> backbone with fresh adapters; WeightsError if it does not fit."""
    if request.weights is None:
        raise WeightsError("Janus needs weights", "they are not part of the plugin", "give weights=DIR")
    return JanusBackbone(load_text(request.weights, request.device, getattr(torch, request.dtype)), request)
