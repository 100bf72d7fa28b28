"""The embedded model behind the roles of ``backbones.interface``. It knows pictures and words, never scenes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from asg_core.backbones.devices import moved_to
from asg_core.backbones.interface import (
    GenerationLoss,
    ImageRequest,
    ImageSample,
    ImageSampling,
    Role,
)
from asg_core.backbones.manifest import BackboneManifest, LoadRequest
from asg_core.backbones.options import BackboneOptions
from asg_core.errors import CapabilityError
from asg_core.models.causal import CausalBackbone
from asg_core.models.lora import RoleAdapters
from asg_core.tiny import flow
from asg_core.tiny.causal import TinyCausal
from asg_core.tiny.generation import Prompts, code_logits, left_pad, sample_codes
from asg_core.tiny.model import CELLS, GRID, PIXELS, TinyModel
from asg_core.tiny.plugin import FLOW_MANIFEST, MANIFEST
from asg_core.tiny.vocabulary import BOS, DRAW, EMBED, IMAGE, Vocabulary
from asg_core.tiny.weights import load_base, to_device

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class FlowOptions(BackboneOptions):
    """Settings of ``backbone=tiny_flow``."""

    rollout_steps: int = Field(8, ge=1, le=256, description="Euler steps of a training candidate")
    quality_steps: int = Field(16, ge=1, le=256, description="Euler steps of an image for people")


class TinyBackbone(CausalBackbone):
    """Draws as image tokens; :class:`TinyFlowBackbone` draws by rectified flow.

    Args:
        model: frozen base.
        vocabulary: word ids.
        request: shape and seed of the adapters, and options.
    """

    manifest: BackboneManifest = MANIFEST
    text: TinyCausal

    def __init__(self, model: TinyModel, vocabulary: Vocabulary, request: LoadRequest) -> None:
        if request.gradient_checkpointing:
            raise CapabilityError(
                "the tiny backbone has no gradient checkpointing",
                "its activations are small",
                "set gradient_checkpointing=false",
            )
        self._model = model
        self._vocabulary = vocabulary
        adapters = RoleAdapters(
            {"trunk": model.trunk}, {role: {"trunk": LINEAR} for role in Role}, request.lora, request.seed
        )
        super().__init__(TinyCausal(model, vocabulary), adapters, options=request.options)

    def shardable(self) -> tuple[torch.nn.Module, Sequence[torch.nn.Module]]:
        """See Backbone."""
        return self._model, list(self._model.trunk.layers)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self._model.rows.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen base."""
        return self._model.rows.dtype

    def generate(
        self, requests: Sequence[ImageRequest], sampling: ImageSampling, role: Role | None = Role.GENERATOR
    ) -> list[ImageSample]:
        """See Backbone. Trajectory: codes (16,) long and the temperature they were sampled at."""
        if not requests:
            return []
        uniforms = torch.stack([torch.rand(CELLS, generator=_stream(r.seed), dtype=torch.float64) for r in requests])
        with torch.no_grad(), self.adapters.use(role):
            codes, logprobs = sample_codes(
                self._model, self._prompts(requests), moved_to(self.device, uniforms), sampling.temperature
            )
        return [
            ImageSample(
                request,
                picture,
                {"codes": row.clone(), "temperature": torch.tensor(sampling.temperature)},
                row_logprobs.clone(),
            )
            for request, picture, row, row_logprobs in zip(
                requests, self._pictures(codes), codes.cpu(), logprobs.cpu(), strict=True
            )
        ]

    def as_drawn(self, request: ImageRequest, image: Picture) -> ImageSample:
        """See Backbone: the codes whose patches are nearest to the image's cells, at temperature 1."""
        codes = self._codes(image)
        return ImageSample(request, image, {"codes": codes, "temperature": torch.tensor(1.0)})

    def _codes(self, image: Picture) -> Tensor:
        """(16,) long, CPU."""
        pixels = torch.from_numpy(np.asarray(image.resize((PIXELS, PIXELS)), dtype=np.float32))
        side = PIXELS // GRID
        cells = pixels.reshape(GRID, side, GRID, side, 3).transpose(1, 2).reshape(CELLS, -1)
        return torch.cdist(cells, self._model.codebook.flatten(1).float().cpu()).argmin(-1)

    def generation_loss(self, samples: Sequence[ImageSample], noise_seeds: Sequence[int]) -> GenerationLoss:
        """See Backbone: mean negative log-prob of the stored codes, exact KL per code to the adapters-off model."""
        prompts = self._prompts([sample.request for sample in samples])
        codes, temperature = (
            moved_to(self.device, torch.stack([sample.trajectory[name] for sample in samples]))
            for name in ("codes", "temperature")
        )
        temperature = temperature[:, None, None]
        with self.adapters.use(Role.GENERATOR):
            policy = torch.log_softmax(code_logits(self._model, prompts, codes) / temperature, -1)
        with torch.no_grad(), self.adapters.use(None):
            base = torch.log_softmax(code_logits(self._model, prompts, codes) / temperature, -1)
        logprobs = policy.gather(-1, codes[..., None])[..., 0]
        return GenerationLoss(-logprobs.mean(-1), (policy.exp() * (policy - base)).sum(-1).mean(-1), logprobs)

    def embed(self, items: Sequence[Picture | str]) -> Tensor:
        """See Backbone: (n, 64), on the CPU; trained to match pictures with their captions."""
        vectors = torch.zeros(len(items), self._model.config.embedding)
        with torch.no_grad(), self.adapters.use(None):
            pictures = {i: item for i, item in enumerate(items) if not isinstance(item, str)}
            if pictures:
                vectors[list(pictures)] = self._embed_pictures(list(pictures.values()))
            texts = {i: item for i, item in enumerate(items) if isinstance(item, str)}
            if texts:
                vectors[list(texts)] = self._embed_texts(list(texts.values()))
        return vectors

    def _embed_pictures(self, pictures: Sequence[Picture]) -> Tensor:
        embeds = torch.stack([segment.embeds for segment in self.text.prefixes(pictures)])
        full = torch.ones(1, 1, embeds.shape[1], embeds.shape[1], dtype=torch.bool, device=self.device)
        positions = torch.arange(embeds.shape[1], device=self.device).expand(len(pictures), -1)
        hidden = self._model.run(embeds, full.expand(len(pictures), -1, -1, -1), positions)
        return F.normalize(self._model.embed_head(hidden[:, 1:].mean(1)).float(), dim=-1).cpu()

    def _embed_texts(self, texts: Sequence[str]) -> Tensor:
        special = self._vocabulary.special
        prompts = left_pad(
            [[special[BOS], *ids, special[EMBED]] for ids in self._vocabulary.encode_batch(texts)], self.device
        )
        hidden = self._model.run(self._model.trunk.embed_tokens(prompts.ids), prompts.mask(0, 0), prompts.positions)
        return F.normalize(self._model.embed_head(hidden[:, -1]).float(), dim=-1).cpu()

    def _prompts(self, requests: Sequence[ImageRequest]) -> Prompts:
        special = self._vocabulary.special
        captions = self._vocabulary.encode_batch([request.prompt for request in requests])
        return left_pad([[special[BOS], special[DRAW], *ids, special[IMAGE]] for ids in captions], self.device)

    def _pictures(self, codes: Tensor) -> list[Picture]:
        return [Image.fromarray(pixels) for pixels in self._model.pictures(codes).cpu().numpy()]


class TinyFlowBackbone(TinyBackbone):
    """The same model and text roles; pictures come from the rectified flow.

    Args:
        model: frozen base.
        vocabulary: word ids.
        request: as for :class:`TinyBackbone`, and FlowOptions.
    """

    manifest: BackboneManifest = FLOW_MANIFEST

    def __init__(self, model: TinyModel, vocabulary: Vocabulary, request: LoadRequest) -> None:
        super().__init__(model, vocabulary, request)
        self._options: FlowOptions = request.options or FlowOptions()

    def generate(
        self, requests: Sequence[ImageRequest], sampling: ImageSampling, role: Role | None = Role.GENERATOR
    ) -> list[ImageSample]:
        """See Backbone. Trajectory: the final latent (16, latent) float32."""
        if not requests:
            return []
        shape = (CELLS, self._model.config.latent)
        noise = torch.stack([torch.randn(shape, generator=_stream(request.seed)) for request in requests])
        steps = self._options.rollout_steps if sampling.profile == "rollout" else self._options.quality_steps
        with torch.no_grad(), self.adapters.use(role):
            latents = flow.sample_latents(self._model, self._prompts(requests), moved_to(self.device, noise), steps)
        pictures = self._pictures(flow.nearest_codes(self._model, latents))
        return [
            ImageSample(request, picture, {"latent": latent.clone()})
            for request, picture, latent in zip(requests, pictures, latents.cpu(), strict=True)
        ]

    def as_drawn(self, request: ImageRequest, image: Picture) -> ImageSample:
        """See Backbone: the latents of the nearest codes."""
        return ImageSample(request, image, {"latent": self._model.latents.float().cpu()[self._codes(image)]})

    def generation_loss(self, samples: Sequence[ImageSample], noise_seeds: Sequence[int]) -> GenerationLoss:
        """See Backbone: flow-matching error on the stored latents, squared distance to the adapters-off velocity."""
        prompts = self._prompts([sample.request for sample in samples])
        target = torch.stack([sample.trajectory["latent"] for sample in samples])
        streams = [_stream(seed) for seed in noise_seeds]
        # Times are drawn as in pre-training.
        time = torch.sigmoid(torch.cat([torch.randn(1, generator=stream) for stream in streams]))
        noise = torch.stack([torch.randn(target.shape[1:], generator=stream) for stream in streams])
        mixed = (1 - time)[:, None, None] * noise + time[:, None, None] * target
        mixed, time, wanted = (moved_to(self.device, tensor) for tensor in (mixed, time, target - noise))
        with self.adapters.use(Role.GENERATOR):
            policy = flow.velocity(self._model, prompts, mixed, time)
        with torch.no_grad(), self.adapters.use(None):
            base = flow.velocity(self._model, prompts, mixed, time)
        return GenerationLoss((policy - wanted).square().mean((1, 2)), (policy - base).square().mean((1, 2)))


def _stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def load(request: LoadRequest) -> TinyBackbone:
    """Factory of ``backbone=tiny``. ``weights`` holds a ``base.safetensors``; None: the shipped one."""
    return TinyBackbone(to_device(load_base(request.weights), request.device, request.dtype), Vocabulary(), request)


def load_flow(request: LoadRequest) -> TinyFlowBackbone:
    """Factory of ``backbone=tiny_flow``; see :func:`load`."""
    return TinyFlowBackbone(to_device(load_base(request.weights), request.device, request.dtype), Vocabulary(), request)
