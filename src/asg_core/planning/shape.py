"""What a model is, as far as cost goes. A backbone fills this in from headers and configuration files alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asg_core.errors import CapabilityError
from asg_core.manifest import LoadRequest
from asg_core.plugins import check_weights, find_manifest, resolve, validate_options
from asg_core.roles import Role

if TYPE_CHECKING:
    from asg_core.config import RunConfig

DRAWING_PROMPT = 64
"""Positions that plans assume for a prompt to draw, template included: its text does not exist yet."""


@dataclass(frozen=True)
class Part:
    """A part of the frozen base: its name, number of parameters, and bytes once loaded."""

    name: str
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Trunk:
    """The causal transformer that reads and writes text (one expert of it, where there are several).

    Attributes:
        layers, width, heads, kv_heads, head_width, ffn, vocabulary: sizes.
        parameters: of all matrices that one token passes in the layers; no embeddings, no head.
        itemsize: bytes per number of weights, activations and cache.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    ffn: int
    vocabulary: int
    parameters: int
    itemsize: int

    @property
    def kv_bytes(self) -> int:
        """Bytes that one position of one row takes in the cache."""
        return 2 * self.layers * self.kv_heads * self.head_width * self.itemsize

    @property
    def weight_bytes(self) -> int:
        """Bytes that a decoding pass reads: layers and head."""
        return (self.parameters + self.width * self.vocabulary) * self.itemsize

    def flops(self, tokens: float, context: float) -> float:
        """FLOPs of a forward pass over ``tokens`` new positions that attend to ``context`` positions on average."""
        return 2 * self.parameters * tokens + 4 * self.layers * self.heads * self.head_width * tokens * context

    def head_flops(self, tokens: float) -> float:
        """FLOPs of the vocabulary-wide logits of ``tokens`` positions."""
        return 2.0 * self.width * self.vocabulary * tokens

    def saved_bytes(self, tokens: int, context: int) -> int:
        """Bytes of activations that a backward pass through LoRA on all linear layers needs, without checkpointing.

        Per layer and token: two norms in float32; their outputs, which the adapted matrices behind them share; queries
        and attention output; gate, up, what is activated, and their product. Per layer and key: keys and values,
        repeated to all heads.

        Args:
            tokens: positions with gradients.
            context: sum over the rows of the positions that a row's queries attend to.
        """
        inner = self.heads * self.head_width
        per_token = 8 * self.width + self.itemsize * (2 * self.width + 2 * inner + 4 * self.ffn)
        return self.layers * (tokens * per_token + context * 2 * inner * self.itemsize)


@dataclass(frozen=True)
class SeenImage:
    """An image shown to the text roles: positions of its prefix, template included, and FLOPs and blocks of the vision
    tower."""

    tokens: int
    flops: float
    layers: int


@dataclass(frozen=True)
class DrawingStage:
    """A part of drawing.

    Attributes:
        name: e.g. "denoise".
        calls: evaluations of the network for one batch, guidance rows being part of the batch.
        flops: of all of them for one image, guidance rows included.
        parameters: that each call reads.
        layers: blocks per call, a measure of its kernel launches.
    """

    name: str
    calls: int
    flops: float
    parameters: int
    layers: int


@dataclass(frozen=True)
class Drawing:
    """How training candidates are drawn and learned from (profile "rollout").

    Attributes:
        size: (width, height) in pixels.
        stages: in order.
        batch: most images drawn together.
        bytes_per_image: caches and guidance rows of one image while it is drawn.
        bytes_once: largest transient tensor set that does not grow with the batch, e.g. decoding one image to pixels.
        loss_flops: one forward pass of the loss of one candidate.
        loss_bytes: activations saved for the backward pass of one candidate, without checkpointing.
        loss_layers: blocks of one forward pass of the loss.
    """

    size: tuple[int, int]
    stages: tuple[DrawingStage, ...]
    batch: int
    bytes_per_image: int
    bytes_once: int
    loss_flops: float
    loss_bytes: int
    loss_layers: int


@dataclass(frozen=True)
class ModelShape:
    """Everything about a backbone that its cost depends on.

    Attributes:
        parts: of the frozen base, as loaded with the given options.
        trunk: that answers questions.
        adapters: float32 parameters of each role that the loaded model will have.
        see: (width, height) in pixels -> cost of showing such an image.
        prompt_tokens: instruction text -> positions between image and answer, template included.
        drawing: None if it cannot draw.
    """

    parts: tuple[Part, ...]
    trunk: Trunk
    adapters: Mapping[Role, int]
    see: Callable[[int, int], SeenImage]
    prompt_tokens: Callable[[str], int]
    drawing: Drawing | None

    @property
    def parameters(self) -> int:
        """Of the frozen base."""
        return sum(part.parameters for part in self.parts)

    @property
    def weight_bytes(self) -> int:
        """Of the frozen base."""
        return sum(part.bytes for part in self.parts)


def model_shape(config: RunConfig) -> ModelShape:
    """The shape of the backbone that ``config`` names, without loading it; dtype "auto" is bfloat16, as on a GPU.

    Raises:
        CapabilityError: its plugin announces no plan. PluginError, ConfigError, WeightsError: as for loading it.
    """
    manifest = find_manifest(config.backbone)
    if manifest.plan is None:
        raise CapabilityError(
            f"backbone {config.backbone!r} cannot be planned",
            "its plugin announces no plan target",
            "measure instead: asg train steps=1, or ask the plugin's author for one",
        )
    request = LoadRequest(
        weights=check_weights(manifest, config.weights),
        dtype="bfloat16" if config.dtype == "auto" else config.dtype,
        lora=config.lora,
        gradient_checkpointing=config.gradient_checkpointing,
        options=validate_options(manifest, config.backbone_options),
        seed=config.seed,
    )
    shape = resolve(manifest.plan)(request)
    if not isinstance(shape, ModelShape):
        raise TypeError(f"{manifest.plan} returned {type(shape).__name__}, not ModelShape")
    return shape
