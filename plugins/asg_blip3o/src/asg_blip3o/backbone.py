"""BLIP3o behind the four roles of asg_core, and which layers carry which role's adapter.

There is one set of role names over all modules, so a switch switches all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from PIL.Image import Image
from torch import Tensor

from asg_blip3o.config import pool_stride
from asg_blip3o.drawing import Drawing
from asg_blip3o.modeling_blip3o import Blip3oModel
from asg_blip3o.modeling_eva import pool_features
from asg_blip3o.options import Blip3oOptions
from asg_blip3o.plugin import MANIFEST
from asg_blip3o.processing import ImagePatches, Vocabulary, eva_pixels
from asg_blip3o.sampling import FlowPoint, draw_point, flow_error, velocity_at
from asg_blip3o.text import LanguageModel
from asg_blip3o.weights_map import Release, load_model, read_release
from asg_core.backbones.devices import moved_to
from asg_core.backbones.interface import (
    GenerationLoss,
    ImageRequest,
    ImageSample,
    ImageSampling,
    Role,
)
from asg_core.backbones.manifest import BackboneManifest, LoadRequest, LoraSettings
from asg_core.errors import CapabilityError, WeightsError
from asg_core.models.causal import CausalBackbone
from asg_core.models.lora import RoleAdapters
from asg_core.models.weights.loader import LoadReport

LANGUAGE_MODULE, FLOW_MODULE = "language", "flow"

LANGUAGE_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Of the language model alone: the vision tower, whose MLP layers bear the same names, is another module."""

FLOW_TARGETS = (
    "attn2.to_q",
    "attn2.to_k",
    "attn2.to_v",
    "attn2.to_out.0",
    "caption_projection.linear_1",
    "caption_projection.linear_2",
)
"""Cross-attention and caption projection of the flow network."""


def role_adapters(model: Blip3oModel, settings: LoraSettings, seed: int, *, generator_language: bool) -> RoleAdapters:
    """Inject the three adapters: text roles on the language model, the generator on the flow network.

    Args:
        model: loaded, without adapters.
        settings: rank and alpha of every adapter.
        seed: of the initialisation.
        generator_language: put the generator on the language model too.
    """
    language = {LANGUAGE_MODULE: LANGUAGE_TARGETS}
    flow = {FLOW_MODULE: FLOW_TARGETS}
    return RoleAdapters(
        {LANGUAGE_MODULE: model.vlm.model.language_model, FLOW_MODULE: model.flow},
        {
            Role.PROPOSER: language,
            Role.SOLVER: language,
            Role.GENERATOR: {**flow, **language} if generator_language else flow,
        },
        settings,
        seed,
    )


class Blip3oBackbone(CausalBackbone):
    """The model with its three adapters.

    Args:
        model: loaded and frozen, without adapters.
        report: what its checkpoint held.
        release: where it came from.
        request: shape and seed of the adapters, options, checkpointing.
    """

    manifest: BackboneManifest = MANIFEST
    text: LanguageModel

    def __init__(self, model: Blip3oModel, report: LoadReport, release: Release, request: LoadRequest) -> None:
        self.options: Blip3oOptions = request.options or Blip3oOptions()
        self.model, self.report, self.release = model, report, release
        self.vocabulary = Vocabulary(release.folder)
        patches = ImagePatches(release.folder, self.options.min_image_side, self.options.max_image_side)
        self.drawing = Drawing(model, self.vocabulary, self.options)
        super().__init__(
            LanguageModel(model, self.vocabulary, patches),
            role_adapters(model, request.lora, request.seed, generator_language=self.options.generator_language_lora),
            list(model.vlm.model.language_model.layers) if request.gradient_checkpointing else [],
            self.options,
        )

    def shardable(self) -> tuple[torch.nn.Module, Sequence[torch.nn.Module]]:
        """See Backbone."""
        return self.model, list(self.model.vlm.model.language_model.layers)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen base."""
        return self.model.dtype

    def generate(
        self, requests: Sequence[ImageRequest], sampling: ImageSampling, role: Role | None = Role.GENERATOR
    ) -> list[ImageSample]:
        """See Backbone. Trajectory: ``features`` (C, g, g) float32, the final latent of stage 1.

        Raises:
            ConfigError: the profile's image size does not fit the decoder.
            CapabilityError: loaded with ``drawing=false``.
        """
        if not requests:
            return []
        self._require_drawing()
        sampler = self.options.rollout if sampling.profile == "rollout" else self.options.quality
        with torch.no_grad(), self.adapters.use(role):
            drawn = self.drawing.features(requests, sampler)
            images = self.drawing.images(requests, drawn, sampler)
        rows = zip(requests, images, drawn.features.cpu(), strict=True)
        return [ImageSample(request, image, {"features": features.clone()}) for request, image, features in rows]

    def generation_loss(self, samples: Sequence[ImageSample], noise_seeds: Sequence[int]) -> GenerationLoss:
        """See Backbone: flow matching on the stored features, under the generation template; guidance off."""
        targets = moved_to(self.device, torch.stack([sample.trajectory["features"] for sample in samples]))
        return self._flow_loss([sample.request.prompt for sample in samples], targets, noise_seeds)

    def real_image_loss(
        self, images: Sequence[Image], captions: Sequence[str], noise_seeds: Sequence[int]
    ) -> GenerationLoss:
        """As :meth:`generation_loss`, on real images: the target is their pooled EVA-CLIP features.

        Not part of the method, which never trains the Generator on real images; for comparison with the original.

        Raises:
            CapabilityError: the tower was not loaded.
        """
        return self._flow_loss(captions, self.real_image_targets(images), noise_seeds)

    def real_image_targets(self, images: Sequence[Image]) -> Tensor:
        """(B, C, g, g) float32 pooled EVA-CLIP features. Raises CapabilityError if the tower was not loaded."""
        tower = self.model.eva
        if tower is None:
            raise CapabilityError(
                "there is no EVA-CLIP tower",
                "it is loaded on request only",
                "set backbone_options.real_image_target=true",
            )
        processor = self.text.patches.processor
        pixels = eva_pixels(images, tower.dims.image_size, processor.image_mean, processor.image_std)
        with torch.no_grad():
            features = tower(moved_to(self.device, pixels, self.dtype))
        return pool_features(features.float(), pool_stride(self.release.config))

    def _flow_loss(self, captions: Sequence[str], targets: Tensor, noise_seeds: Sequence[int]) -> GenerationLoss:
        self._require_drawing()
        point = self._points(noise_seeds)
        frozen_language = not self.options.generator_language_lora
        with self.adapters.use(Role.GENERATOR):
            with torch.no_grad() if frozen_language else nullcontext():
                states = self.drawing.conditions(captions)
            velocity = velocity_at(self.model.flow, self.model.flow.context(states), targets, point)
        with torch.no_grad(), self.adapters.use(None):
            base_states = states if frozen_language else self.drawing.conditions(captions)
            base = velocity_at(self.model.flow, self.model.flow.context(base_states), targets, point)
        penalty = (velocity - base).square().flatten(1).mean(dim=1)
        return GenerationLoss(flow_error(velocity, targets, point.noise), penalty)

    def _require_drawing(self) -> None:
        if not self.options.drawing:
            raise CapabilityError(
                "this backbone was loaded for understanding only",
                "backbone_options.drawing is false, so its decoder was not read",
                "load it with drawing=true, or use schedule.mode=understanding",
            )

    def _points(self, seeds: Sequence[int]) -> FlowPoint:
        shape, shift = self.model.flow.sample_shape, self.options.flow_shift
        drawn = {seed: draw_point(seed, shape, self.device, shift) for seed in seeds}
        points = [drawn[seed] for seed in seeds]
        return FlowPoint(
            torch.cat([point.timesteps for point in points]),
            torch.cat([point.sigmas for point in points]),
            torch.cat([point.noise for point in points]),
        )


def load(request: LoadRequest) -> Blip3oBackbone:
    """The factory behind ``load_backbone("blip3o", weights=DIR)``.

    Raises:
        WeightsError: the folder is no complete BLIP3o release. ConfigError: options that do not fit it.
    """
    if request.weights is None:
        raise WeightsError("blip3o needs weights", "it has none embedded", "give weights=DIR with its released files")
    release = read_release(request.weights)
    options: Blip3oOptions = request.options or Blip3oOptions()
    model, report = load_model(release, options, torch.device(request.device), getattr(torch, request.dtype))
    return Blip3oBackbone(model, report, release, request)
