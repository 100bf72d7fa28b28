"""A tiny Qwen2.5-VL with random weights behind the text roles: for tests and benchmarks, and to start a plugin from.

It is the stock model of transformers in any size, with a tokenizer of one token per byte. It cannot draw or embed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from asg_core.backbones.devices import moved_to
from asg_core.backbones.interface import GenerationLoss, ImageRequest, ImageSample, ImageSampling, Role
from asg_core.backbones.manifest import BackboneManifest, Capabilities, LoraSettings
from asg_core.errors import CapabilityError
from asg_core.models.causal import CausalBackbone
from asg_core.models.decoding import ImageFeatureCache, Segment, TransformersCausalModel
from asg_core.models.decoding.packed_vision import PackedVision
from asg_core.models.lora import RoleAdapters

if TYPE_CHECKING:
    from PIL.Image import Image

SPECIALS = ("<end>", "<user>", "<bot>", "<see>", "<seen>", "<patch>")
SPECIAL_IDS = {name: 256 + i for i, name in enumerate(SPECIALS)}
"""Special tokens stand behind the 256 bytes."""

LAYOUT: dict[str, Any] = {
    "header": "<user>Look. ",
    "tail": "<bot>",
    "stop_token_ids": [SPECIAL_IDS["<end>"]],
    "suppressed_token_ids": [SPECIAL_IDS["<patch>"], SPECIAL_IDS["<see>"]],
}
"""Template, stop and suppressed tokens, as TransformersCausalModel takes them."""

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]

_MANIFEST = BackboneManifest(
    name="qwen_random",
    summary="tiny Qwen2.5-VL with random weights",
    licence="Apache-2.0",
    capabilities=Capabilities(embed=False, gradient_checkpointing=True),
    factory="asg_core.testing.qwen:QwenBackbone",
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, then the special tokens; multi-byte characters span tokens."""
    vocab = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIALS[0], additional_special_tokens=list(SPECIALS[1:])
    )


def random_qwen(
    *,
    layers: int = 2,
    width: int = 32,
    mlp: int = 48,
    heads: int = 4,
    dtype: torch.dtype = torch.float32,
    seed: int = 7,
) -> Qwen2_5_VLForConditionalGeneration:
    """The stock model, frozen, in eval mode: grouped-query attention (2 groups), 262 tokens, a 2-layer vision tower.

    Args:
        layers: decoder layers.
        width: hidden size, a multiple of 8 ``heads``.
        mlp: width of the feed-forward layers.
        heads: attention heads, even.
        dtype: of all weights.
        seed: of the weights.
    """
    half = width // heads // 2
    time, row = half // 4, (half - half // 4) // 2
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 256 + len(SPECIALS),
            "hidden_size": width,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [time, row, half - time - row],
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": width,
            "intermediate_size": width,
            "num_heads": 2,
            "out_hidden_size": width,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=SPECIAL_IDS["<patch>"],
        vision_start_token_id=SPECIAL_IDS["<see>"],
        vision_end_token_id=SPECIAL_IDS["<seen>"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=(1.28 / width) ** 0.5)
    return model.eval().requires_grad_(False).to(dtype)


class QwenText(TransformersCausalModel):
    """The text side as a plugin would write it: image features, M-RoPE positions, the tokens around them.

    Args:
        full: the model.
        letters_per_token: read every n-th byte of a prompt; 4 gives as many tokens as a real vocabulary.
        rest: as TransformersCausalModel takes it, see :data:`LAYOUT`.
    """

    def __init__(self, full: Qwen2_5_VLForConditionalGeneration, letters_per_token: int = 1, **rest: Any) -> None:
        super().__init__(full.model.language_model, full.lm_head, byte_tokenizer(), axes=3, **rest)
        self.full, self.letters_per_token = full, letters_per_token
        self.processor = Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, min_pixels=28 * 28, max_pixels=448 * 448)
        self.features: ImageFeatureCache[Segment] = ImageFeatureCache()
        self._vision = PackedVision(full.model.visual)

    def prompt(self, text: str) -> Segment:
        """See TransformersCausalModel."""
        return super().prompt(text[:: self.letters_per_token])

    def pixels(self, images: Sequence[Image]) -> tuple[Tensor, Tensor]:
        """Patches (sum of h w, channels) and grids (n, 3) of images, float32 and long, on the CPU."""
        batch = self.processor(list(images), return_tensors="pt")
        return batch["pixel_values"], batch["image_grid_thw"]

    def image_ids(self, grid: Tensor) -> list[int]:
        """Token ids of one image: one per 28 x 28 pixels, between its two marks."""
        opened, closed, patch = (SPECIAL_IDS[name] for name in ("<see>", "<seen>", "<patch>"))
        return [opened, *[patch] * int(grid.prod() // 4), closed]

    def encode(self, images: Sequence[Image]) -> list[Segment]:
        """Each image between its marks, in one pass of the vision tower."""
        pixels, grids = self.pixels(images)
        features = self._vision(torch.split(pixels, grids.prod(1).tolist()), [(h, w) for _, h, w in grids.tolist()])
        return [self._segment(f, grid) for f, grid in zip(features, grids, strict=True)]

    def _segment(self, features: Tensor, grid: Tensor) -> Segment:
        ids = torch.tensor([self.image_ids(grid)])
        kinds = (ids == self.full.config.image_token_id).int()
        positions, _ = self.full.model.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grid[None])
        embeds = self.embed_tokens(moved_to(features.device, ids))[0].clone()
        embeds[1:-1] = features
        return Segment(embeds, moved_to(features.device, positions[:, 0]), int(positions.max()) + 1)

    def image_segments(self, images: Sequence[Image]) -> list[Segment]:
        """See TransformersCausalModel; an image is encoded once in its life."""
        return self.features.lookup(images, self.encode)


class QwenBackbone(CausalBackbone):
    """The model with its three adapters, all of them non-zero.

    Args:
        full: the model, without adapters.
        lora: shape of the adapters; None: rank 4.
        letters_per_token: see QwenText.
        gradient_checkpointing: recompute decoder layers in the backward pass.
        scale: standard deviation of the adapters' weights; 0 leaves them as they start, without effect.
    """

    manifest = _MANIFEST

    def __init__(
        self,
        full: Qwen2_5_VLForConditionalGeneration,
        lora: LoraSettings | None = None,
        *,
        letters_per_token: int = 1,
        gradient_checkpointing: bool = False,
        scale: float = 0.15,
    ) -> None:
        self.model = full
        decoder = full.model.language_model
        text = QwenText(full, letters_per_token, **LAYOUT)
        adapters = RoleAdapters(
            {"text": decoder}, {role: {"text": TARGETS} for role in Role}, lora or LoraSettings(rank=4), seed=3
        )
        super().__init__(text, adapters, list(decoder.layers) if gradient_checkpointing else [])
        if scale:
            randomise(adapters, scale)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return torch.device(self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen base."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    def generate(
        self, requests: Sequence[ImageRequest], sampling: ImageSampling, role: Role | None = Role.GENERATOR
    ) -> list[ImageSample]:
        """Raises CapabilityError."""
        _cannot("draw")

    def generation_loss(self, samples: Sequence[ImageSample], noise_seeds: Sequence[int]) -> GenerationLoss:
        """Raises CapabilityError."""
        _cannot("draw")

    def embed(self, items: Sequence[Image | str]) -> Tensor:
        """Raises CapabilityError."""
        _cannot("embed")


def randomise(adapters: RoleAdapters, scale: float = 0.15) -> None:
    """Give every role its own non-zero adapter."""
    stream = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for role in Role:
            for weight in adapters.parameters(role).values():
                weight.copy_(torch.randn(weight.shape, generator=stream) * scale)


def _cannot(what: str) -> NoReturn:
    raise CapabilityError(f"this backbone cannot {what}", "it has text roles only", "use schedule.mode=understanding")
