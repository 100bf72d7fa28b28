"""Two tiny decoders with random weights: Llama (text) and Qwen2.5-VL (M-RoPE, a vision tower), and plain references.

The references know nothing of trees, caches or padding: one row, one forward of the stock model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from asg_core.decoding import ImageFeatureCache, Segment, TransformersCausalModel
from asg_core.lora import RoleAdapters
from asg_core.manifest import LoraSettings
from asg_core.roles import Role, TextRequest

SPECIALS = ("<end>", "<user>", "<bot>", "<see>", "<seen>", "<patch>")
BYTES = 256


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, then the special tokens; multi-byte characters span tokens."""
    vocab = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIALS[0], additional_special_tokens=list(SPECIALS[1:])
    )


class TinyQwen(TransformersCausalModel):
    """Qwen2.5-VL as a plugin would write it: image features, M-RoPE positions, the tokens around them."""

    def __init__(
        self, full: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, **rest: object
    ) -> None:
        super().__init__(full.model.language_model, full.lm_head, tokenizer, axes=3, **rest)
        self.full = full
        self.processor = Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, min_pixels=28 * 28, max_pixels=448 * 448)
        self.features: ImageFeatureCache[tuple[Tensor, Tensor]] = ImageFeatureCache()

    def pixels(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        batch = self.processor(list(images), return_tensors="pt")
        return batch["pixel_values"].to(self.full.dtype), batch["image_grid_thw"]

    def image_ids(self, grid: Tensor) -> list[int]:
        opened, closed, patch = self.tokenizer.convert_tokens_to_ids(["<see>", "<seen>", "<patch>"])
        return [opened, *[patch] * int(grid.prod() // 4), closed]

    def image_segments(self, images: Sequence[Image.Image]) -> list[Segment]:
        def encode(missing: list[Image.Image]) -> list[tuple[Tensor, Tensor]]:
            pixels, grids = self.pixels(missing)
            return list(zip(self.full.model.get_image_features(pixels, grids).pooler_output, grids, strict=True))

        segments = []
        for features, grid in self.features.lookup(images, encode):
            ids = torch.tensor([self.image_ids(grid)])
            kinds = (ids == self.full.config.image_token_id).int()
            positions, _ = self.full.model.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grid[None])
            embeds = self.embed_tokens(ids)[0].clone()
            embeds[1:-1] = features
            segments.append(Segment(embeds, positions[:, 0], int(positions.max()) + 1))
        return segments


@dataclass
class Rig:
    """A tiny model with adapters, and what a test needs to check it."""

    full: PreTrainedModel
    model: TransformersCausalModel
    adapters: RoleAdapters
    layers: nn.ModuleList
    sees: bool

    def logits(self, request: TextRequest, ids: Sequence[int]) -> Tensor:
        """(T, V): the stock model on one unpadded row, header, image, prompt, tail and completion in one forward."""
        m = self.model
        before = m.tokenizer(m.header)["input_ids"]
        after = [*m.tokenizer(request.prompt)["input_ids"], *m.tokenizer(m.tail)["input_ids"]]
        inputs: dict[str, Tensor] = {}
        if request.image is not None:
            inputs["pixel_values"], inputs["image_grid_thw"] = m.pixels([request.image])
            before = [*before, *m.image_ids(inputs["image_grid_thw"])]
        row = torch.tensor([[*before, *after, *ids]])
        if request.image is not None:
            inputs["mm_token_type_ids"] = (row == self.full.config.image_token_id).int()
            self.full.model.rope_deltas = None
        logits: Tensor = self.full(input_ids=row, use_cache=False, **inputs).logits[0]
        return logits[-len(ids) - 1 : -1]

    def randomise(self, scale: float = 0.15) -> None:
        """Give every role its own non-zero adapter."""
        stream = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for role in Role:
                for weight in self.adapters.parameters(role).values():
                    weight.copy_(torch.randn(weight.shape, generator=stream) * scale)


def build(kind: str, dtype: torch.dtype = torch.float32) -> Rig:
    """A fresh rig: two layers, grouped-query attention, 262 tokens."""
    tokenizer = byte_tokenizer()
    sizes = {
        "vocab_size": BYTES + len(SPECIALS),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    ids = {name: BYTES + i for i, name in enumerate(SPECIALS)}
    layout = {
        "header": "<user>Look. ",
        "tail": "<bot>",
        "stop_token_ids": [ids["<end>"]],
        "suppressed_token_ids": [ids["<patch>"], ids["<see>"]],
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        if kind == "llama":
            full = LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.2, eos_token_id=ids["<end>"]))
        else:
            rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
            vision = {
                "depth": 2,
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_heads": 2,
                "out_hidden_size": 32,
                "window_size": 56,
                "fullatt_block_indexes": [1],
            }
            config = Qwen2_5_VLConfig(
                text_config={**sizes, "rope_parameters": rope, "initializer_range": 0.2},
                vision_config=vision,
                image_token_id=ids["<patch>"],
                vision_start_token_id=ids["<see>"],
                vision_end_token_id=ids["<seen>"],
            )
            full = Qwen2_5_VLForConditionalGeneration(config)
            for parameter in full.parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=0.2)
    full = full.eval().requires_grad_(False).to(dtype)
    decoder = full.model if kind == "llama" else full.model.language_model
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]
    adapters = RoleAdapters({"text": decoder}, {role: {"text": targets} for role in Role}, LoraSettings(rank=4), seed=3)
    if kind == "llama":
        model = TransformersCausalModel(decoder, full.lm_head, tokenizer, **layout)
    else:
        model = TinyQwen(full, tokenizer, **layout)
    if dtype == torch.float64:
        full.double()
    rig = Rig(full, model, adapters, decoder.layers, sees=kind == "qwen")
    rig.randomise()
    return rig


def picture(seed: int, width: int = 56, height: int = 56) -> Image.Image:
    """Noise, RGB."""
    noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


@pytest.fixture(scope="session")
def build_rig() -> Callable[..., Rig]:
    return build


@pytest.fixture(scope="session", params=["llama", "qwen"])
def rig(request: pytest.FixtureRequest) -> Rig:
    """Either tiny model, float32, shared by tests that leave it as it is."""
    return build(request.param)


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., Image.Image]:
    return picture


@pytest.fixture
def requests_of() -> Callable[[Rig], list[TextRequest]]:
    """Two images of different size (or none) x prompts of different length x several samples, in no order."""

    def make(rig: Rig) -> list[TextRequest]:
        shown = [picture(1), picture(2, 84, 56), None] if rig.sees else [None]
        prompts = ["Why?", "What is to be seen in here?", "Who"]
        places = [(0, 0), (1, 1), (0, 2), (2, 0), (0, 0), (1, 0), (1, 1), (0, 1), (2, 2), (0, 0)]
        return [TextRequest(prompts[p], shown[i % len(shown)], 100 + n) for n, (i, p) in enumerate(places)]

    return make


@pytest.fixture(scope="session")
def rig_llama() -> Rig:
    return build("llama")


@pytest.fixture(scope="session")
def rig_qwen() -> Rig:
    return build("qwen")
