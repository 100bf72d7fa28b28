"""BAGEL behind the four roles of asg_core, and where their adapters sit.

Text roles sit on the understanding expert, the Generator on the generation expert. The two sets of layers are disjoint,
so the Generator's adapter leaves every text computation untouched, and it always draws under the base model's prefix.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from asg_bagel.drawing import Drawing
from asg_bagel.modeling_bagel import Bagel
from asg_bagel.options import BagelOptions
from asg_bagel.plugin import MANIFEST
from asg_bagel.processing import BagelTokenizer, ResizeRule
from asg_bagel.text import BagelText, SegmentBuilder
from asg_bagel.weights_map import load_model
from asg_core.backbones.interface import (
    GenerationLoss,
    ImageRequest,
    ImageSample,
    ImageSampling,
    Role,
)
from asg_core.backbones.manifest import BackboneManifest, LoadRequest, LoraSettings
from asg_core.errors import CapabilityError, ConfigError, WeightsError
from asg_core.models.causal import CausalBackbone
from asg_core.models.lora import RoleAdapters
from asg_core.models.weights.loader import LoadReport

MODULE = "language_model"

UNDERSTANDING = r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
GENERATION = r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj_moe_gen|mlp_moe_gen\.(gate|up|down)_proj)"
"""Whole layer names below ``language_model``. A suffix match would put text adapters on the generation expert's MLP and
no adapter at all on its attention."""


def inject_adapters(model: Bagel, settings: LoraSettings, seed: int) -> RoleAdapters:
    """Put fresh, zero-effect adapters on the model.

    Without the generation half the Generator's adapter is there too, on the host: it can be loaded and saved, not used.
    """
    targets = {
        Role.PROPOSER: {MODULE: UNDERSTANDING},
        Role.SOLVER: {MODULE: UNDERSTANDING},
        Role.GENERATOR: {MODULE: GENERATION},
    }
    return RoleAdapters({MODULE: model.language_model}, targets, settings, seed)


class BagelBackbone(CausalBackbone):
    """All roles on one frozen BAGEL.

    Args:
        model: loaded, frozen.
        tokenizer: of the same checkpoint.
        request: options, adapters' shape and seed, checkpointing.
        report: what the checkpoint held.

    Attributes:
        model, tokenizer, builder, adapters: the parts, for whoever needs more than the roles.
        load_report: what the checkpoint held.

    Raises:
        ConfigError: a size option does not fit the checkpoint.
    """

    def __init__(self, model: Bagel, tokenizer: BagelTokenizer, request: LoadRequest, report: LoadReport) -> None:
        options = request.options or BagelOptions()
        self.model, self.tokenizer, self.load_report = model, tokenizer, report
        self.manifest = MANIFEST if model.generation else _understanding_only()
        self.builder = SegmentBuilder(model, tokenizer, vision_rule(model, options))
        text = BagelText(self.builder)
        super().__init__(
            text,
            inject_adapters(model, request.lora, request.seed),
            list(model.language_model.model.layers) if request.gradient_checkpointing else [],
            options,
        )
        self._drawing = (
            Drawing(self.builder, self.adapters, options, request.gradient_checkpointing) if model.generation else None
        )

    def shardable(self) -> tuple[torch.nn.Module, Sequence[torch.nn.Module]]:
        """See Backbone."""
        return self.model, list(self.model.language_model.model.layers)

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
        """See Backbone. Trajectory: final latent tokens (n, w) float32 and their grid (2,).

        Only the Generator's adapter ever acts while drawing: with a text role the base model draws.
        """
        return self._can_draw.draw(requests, sampling, role)

    def generation_loss(self, samples: Sequence[ImageSample], noise_seeds: Sequence[int]) -> GenerationLoss:
        """See Backbone: flow matching on the stored final latent, squared velocity difference to the base."""
        return self._can_draw.loss(samples, noise_seeds)

    @property
    def _can_draw(self) -> Drawing:
        if self._drawing is None:
            raise _cannot_draw()
        return self._drawing


def load(request: LoadRequest) -> BagelBackbone:
    """The manifest's factory: released files in ``request.weights`` -> backbone with fresh adapters.

    Raises:
        WeightsError: the files are missing, damaged or of another model. ConfigError: an option does not fit them.
    """
    if request.weights is None:
        raise WeightsError(
            "BAGEL needs weights", "they are not part of the plugin", "give weights=DIR with the files of the release"
        )
    options = request.options or BagelOptions()
    model, report = load_model(
        request.weights,
        device=request.device,
        dtype=getattr(torch, request.dtype),
        generation=options.generation,
    )
    return BagelBackbone(model, BagelTokenizer(request.weights), request, report)


def vision_rule(model: Bagel, options: BagelOptions) -> ResizeRule:
    """How pictures are sized for the vision tower: once, by BAGEL's demo rule. Raises ConfigError beyond its table."""
    longest = model.config.max_vision_size if options.vision_longest is None else options.vision_longest
    if not model.config.vision.patch_size <= longest <= model.config.max_vision_size:
        raise ConfigError(
            f"vision_longest={longest} cannot be used",
            f"the vision tower has positions for {model.config.max_vision_size} pixels",
            f"use at most {model.config.max_vision_size}",
        )
    return ResizeRule(longest, min(options.vision_shortest, longest), model.config.vision.patch_size)


def _understanding_only() -> BackboneManifest:
    return MANIFEST.model_copy(update={"capabilities": MANIFEST.capabilities.model_copy(update={"image_loss": None})})


def _cannot_draw() -> CapabilityError:
    return CapabilityError(
        "this BAGEL cannot draw",
        "it was loaded with generation=false, without its generation expert",
        "load it with generation=true",
    )
