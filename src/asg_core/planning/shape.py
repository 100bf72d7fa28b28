"""What a model is, as far as cost goes. A backbone fills this in from headers and configuration files alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from asg_core.backbones.interface import Role
from asg_core.backbones.loading import check_weights, validate_options
from asg_core.backbones.manifest import LoadRequest
from asg_core.backbones.registry import find_manifest, resolve
from asg_core.config.schema import RunConfig
from asg_core.method.prompts import MAX_PROMPT_WORDS
from asg_core.models.limits import FEW_SAMPLES
from asg_core.planning.activations import Activations

DRAWING_PROMPT = 64
"""Positions that plans of time assume for a prompt to draw, template included: its text does not exist yet."""

LONGEST_DRAWING_PROMPT = 2 * MAX_PROMPT_WORDS + 32
"""Positions that plans of memory assume: as many words as a prompt may have, of two tokens each, and the template."""


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
        also_saved: bytes per layer and token that a backward pass needs beside what :meth:`activations` counts.
        causal_images: whether an image is read causally, and so in one pass with a prompt.
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
    also_saved: int = 0
    causal_images: bool = True

    def reads_once(self, samples: int) -> bool:
        """Whether scoring reads the common prompt of so many samples of an image once, or again for each of them."""
        return self.causal_images or samples > FEW_SAMPLES

    @property
    def kv_bytes(self) -> int:
        """Bytes that one position of one row takes in the cache."""
        return 2 * self.layers * self.kv_heads * self.head_width * self.itemsize

    @property
    def weight_bytes(self) -> int:
        """Bytes that a decoding pass reads: layers and head."""
        return (self.parameters + self.width * self.vocabulary) * self.itemsize

    def flops(self, tokens: float, context: float) -> float:
        """FLOPs of a forward pass over ``tokens`` new positions with ``context`` keys each, on average.

        A kernel computes what a mask hides from it; only plainly causal attention, which needs no mask, has half.
        """
        return 2 * self.parameters * tokens + self.attention_flops(tokens, context)

    def attention_flops(self, tokens: float, context: float) -> float:
        """Those of :meth:`flops` that are attention."""
        return 4 * self.layers * self.inner * tokens * context

    def head_flops(self, tokens: float) -> float:
        """FLOPs of the vocabulary-wide logits of ``tokens`` positions."""
        return 2.0 * self.width * self.vocabulary * tokens

    @property
    def inner(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_width

    @property
    def shares_heads(self) -> bool:
        """Whether several query heads share keys and values."""
        return self.kv_heads < self.heads

    def forward_bytes(self, rows: int, new: int, past: int = 0) -> int:
        """Most bytes that a pass without gradients makes beside the cache: of one layer at a time.

        The embeddings, as segments and as a batch, what comes in and goes out, its norm, queries and attention output;
        the mask and its two parts; then the larger of keys and values repeated to all heads, with the mask in the
        layers' dtype and again padded, and of gate, up and their product.

        Args:
            rows: in parallel.
            new: positions of a row.
            past: cached positions that they attend to besides.
        """
        tokens, cells = rows * new, rows * new * (past + new)
        always = tokens * (5 * self.width + 2 * self.inner) * self.itemsize + 2 * cells
        attending = self._repeated(rows * (past + new)) + 2 * cells * self.itemsize
        return always + max(attending, 3 * tokens * self.ffn * self.itemsize)

    def activations(self, rows: int, new: int, past: int = 0, *, masked: bool = True) -> Activations:
        """Of a pass through all layers with LoRA on all their linear layers; arguments as of :meth:`forward_bytes`.

        Saved by a layer for each token: two norms in float32; their outputs, which the adapted matrices behind them
        share; queries and attention output; gate, up, what is activated, and their product. For each key: keys and
        values, if they are repeated to all heads. And the mask in the layers' dtype. On the way back there are three
        gradients as wide as gate and up when the product is gone, or, when all of those are gone, those of the repeated
        keys and values, of queries and attention output; and that of the layer's output.

        Args:
            masked: False where attention is plainly causal: it then needs neither a mask nor repeated keys and values.
        """
        tokens, size = rows * new, self.itemsize
        repeated = self._repeated(rows * (past + new)) if masked else 0
        mask = tokens * (past + new) * size if masked else 0
        per_token = 8 * self.width + size * (2 * self.width + 2 * self.inner + 4 * self.ffn) + self.also_saved
        layer = tokens * per_token + repeated + mask
        attending = repeated + tokens * size * (2 * self.inner - 4 * self.ffn)
        backward = max(2 * tokens * size * self.ffn, attending) + tokens * size * self.width
        inputs = tokens * self.width * size
        return Activations(
            saved=self.layers * layer,
            inputs=self.layers * inputs,
            layer=layer,
            backward=backward,
            forward=self.forward_bytes(rows, new, past),
        )

    def _repeated(self, context: int) -> int:
        """Bytes of one layer's keys and values of ``context`` positions, repeated to all heads if heads share them."""
        return 2 * context * self.inner * self.itemsize if self.shares_heads else 0


@dataclass(frozen=True)
class SeenImage:
    """An image shown to the text roles.

    Attributes:
        tokens: positions of its prefix, template included.
        flops: of the vision tower.
        layers: blocks of it.
        bytes: that it makes, at its largest moment.
    """

    tokens: int
    flops: float
    layers: int
    bytes: int


def rotary_tower_bytes(patches: int, width: int, ffn: int, itemsize: int) -> int:
    """Most bytes that a vision tower makes of the patches of all images, if it rotates queries and keys in float32.

    As those of Qwen do. A block's input, its norm, queries, keys and values, with six float32 tensors beside them; or
    the same with four tensors as wide as the hidden layer.
    """
    return patches * (6 * width * itemsize + max(24 * width, 4 * ffn * itemsize))


@dataclass(frozen=True)
class DrawingStage:
    """A part of drawing.

    Attributes:
        name: e.g. "denoise".
        calls: evaluations of the network for one batch, guidance rows being part of the batch.
        flops: of all of them for one image, guidance rows included.
        parameters: that each call reads.
        layers: blocks per call, a measure of its kernel launches.
        prompt_flops: for each distinct prompt, whatever the number of its images.
        once_flops: whatever the number of images and prompts, e.g. a negative that all share.
    """

    name: str
    calls: int
    flops: float
    parameters: int
    layers: int
    prompt_flops: float = 0.0
    once_flops: float = 0.0

    def total_flops(self, images: int, prompts: int) -> float:
        """FLOPs of drawing ``images`` images of ``prompts`` distinct prompts."""
        return images * self.flops + prompts * self.prompt_flops + self.once_flops


@dataclass(frozen=True)
class Drawing:
    """How training candidates are drawn and learned from (profile "rollout").

    Attributes:
        size: (width, height) in pixels.
        stages: in order.
        batch: most images drawn together.
        cache_per_image: what one image keeps while it is drawn: keys and values.
        bytes_per_image: what comes and goes meanwhile, guidance rows included, at its largest moment.
        bytes_once: what decoding one image to pixels makes, at its largest moment.
        loss_flops: one forward pass of the loss of one candidate.
        loss_attention_flops: those of them that are attention.
        loss_layers: blocks of it.
        loss: activations of one candidate.
        loss_prompt_flops: of reading a distinct prompt for the loss, once and without gradients.
        loss_recomputed: whether gradient checkpointing covers the loss.
        loss_by_prompt: whether each prompt's candidates are a pass of their own.
    """

    size: tuple[int, int]
    stages: tuple[DrawingStage, ...]
    batch: int
    cache_per_image: int
    bytes_per_image: int
    bytes_once: int
    loss_flops: float
    loss_attention_flops: float
    loss_layers: int
    loss: Activations
    loss_prompt_flops: float = 0.0
    loss_recomputed: bool = True
    loss_by_prompt: bool = False


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
    target = manifest.target("plan", "measure instead: asg train steps=1, or ask the plugin's author for one")
    request = LoadRequest(
        weights=check_weights(manifest, config.weights),
        dtype="bfloat16" if config.dtype == "auto" else config.dtype,
        lora=config.lora,
        gradient_checkpointing=config.gradient_checkpointing,
        options=validate_options(manifest, config.backbone_options),
        seed=config.seed,
    )
    shape: ModelShape = resolve(target)(request)
    return shape
