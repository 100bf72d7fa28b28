"""VARGPT-v1.1 behind the four roles of asg_core, and where the role adapters sit.

All sit on the language model; the Generator's, as an option, on the decoder as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

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
from asg_core.models.lora import RoleAdapters, Targets
from asg_core.models.weights.loader import LoadReport
from asg_vargpt.drawing import Candidates
from asg_vargpt.modeling_vargpt import Vargpt
from asg_vargpt.options import VargptOptions
from asg_vargpt.plugin import MANIFEST
from asg_vargpt.processing import image_processor, load_tokenizer, stop_tokens
from asg_vargpt.text import VargptText
from asg_vargpt.weights_map import load_model

LANGUAGE_MODEL = r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
DECODER = r"blocks\.\d+\.(sa\.(mat_qkv|proj)|ca\.(mat_q|mat_kv|proj)|ffn\.fc[12])"


def inject_adapters(model: Vargpt, settings: LoraSettings, seed: int, *, on_decoder: bool) -> RoleAdapters:
    """Put fresh, zero-effect adapters on the model; ``on_decoder`` adds the decoder to the Generator's.

    A model without its generation half has no Generator.
    """
    modules: dict[str, nn.Module] = {"language_model": model.language_model}
    roles = [role for role in Role if model.generation or role is not Role.GENERATOR]
    targets: dict[Role, dict[str, Targets]] = {role: {"language_model": LANGUAGE_MODEL} for role in roles}
    if on_decoder and model.generation:
        modules["decoder"] = model.decoder
        targets[Role.GENERATOR]["decoder"] = DECODER
    return RoleAdapters(modules, targets, settings, seed)


class VargptBackbone(CausalBackbone):
    """All roles on one frozen VARGPT.

    Args:
        model: loaded, frozen, in eval mode.
        weights: the released directory it was loaded from.
        request: options, adapters' shape and seed, checkpointing.
        report: what the checkpoint held; kept as ``load_report``.
    """

    text: VargptText

    def __init__(self, model: Vargpt, weights: Path, request: LoadRequest, report: LoadReport) -> None:
        options = request.options or VargptOptions()
        self.model, self.weights, self.load_report = model, weights, report
        self.manifest = MANIFEST if model.generation else _understanding_only()
        vision = model.qwen.config.vision_config
        processor = image_processor(
            options.min_pixels, options.max_pixels, vision.patch_size, vision.spatial_merge_size
        )
        tokenizer = load_tokenizer(weights)
        text = VargptText(model, tokenizer, processor, stop_tokens(weights, tokenizer))
        on_decoder = options.generator_adapter == "language_model_and_decoder"
        super().__init__(
            text,
            inject_adapters(model, request.lora, request.seed, on_decoder=on_decoder),
            list(model.language_model.layers) if request.gradient_checkpointing else [],
            options,
        )
        self._candidates = (
            Candidates(model, text, self.adapters, options, checkpointing=request.gradient_checkpointing)
            if model.generation
            else None
        )

    @property
    def candidates(self) -> Candidates:
        """Drawing and scoring of images. Raises CapabilityError if the generation half was not loaded."""
        if self._candidates is None:
            raise _cannot_draw()
        return self._candidates

    def shardable(self) -> tuple[torch.nn.Module, Sequence[torch.nn.Module]]:
        """See Backbone."""
        return self.model, list(self.model.language_model.layers)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen base; its VAE is float32 whatever this is."""
        return self.model.dtype

    def generate(
        self, requests: Sequence[ImageRequest], sampling: ImageSampling, role: Role | None = Role.GENERATOR
    ) -> list[ImageSample]:
        """See Backbone. ``ImageSampling.temperature`` multiplies the sampler's tau.

        Raises:
            CapabilityError: a prompt is longer than guidance allows (512 tokens in the release).
        """
        return self.candidates.draw(requests, sampling, role)

    def generation_loss(self, samples: Sequence[ImageSample], noise_seeds: Sequence[int]) -> GenerationLoss:
        """See Backbone: mean bit cross-entropy on the stored bits, and per unit of the policy their log-probs."""
        return self.candidates.loss(samples)

    def trainable(self, role: Role) -> Mapping[str, nn.Parameter]:
        """See Backbone."""
        self._require(role)
        return super().trainable(role)

    def save_role(self, role: Role, directory: Path) -> None:
        """See Backbone."""
        self._require(role)
        super().save_role(role, directory)

    def load_role(self, role: Role, directory: Path) -> None:
        """See Backbone."""
        self._require(role)
        super().load_role(role, directory)

    def _require(self, role: Role) -> None:
        if role is Role.GENERATOR and self._candidates is None:
            raise _cannot_draw()


def load(request: LoadRequest) -> VargptBackbone:
    """The manifest's factory: released directory -> backbone with fresh adapters.

    Raises:
        WeightsError: the files are missing, damaged or of another model.
    """
    if request.weights is None:
        raise WeightsError(
            "VARGPT needs weights", "they are not part of the plugin", "give weights=DIR with the files of the release"
        )
    options = request.options or VargptOptions()
    model, report = load_model(
        request.weights, device=request.device, dtype=getattr(torch, request.dtype), generation=options.generation
    )
    return VargptBackbone(model, request.weights, request, report)


def _understanding_only() -> BackboneManifest:
    capabilities = MANIFEST.capabilities.model_copy(update={"image_loss": None})
    return MANIFEST.model_copy(update={"capabilities": capabilities})


def _cannot_draw() -> CapabilityError:
    return CapabilityError(
        "this VARGPT cannot draw",
        "it was loaded with generation=false, without its image decoder and VAE",
        "load it with generation=true",
    )
