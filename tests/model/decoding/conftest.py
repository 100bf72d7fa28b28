"""Two tiny decoders with random weights: Llama (text) and Qwen2.5-VL (M-RoPE, a vision tower), and plain references.

The references know nothing of trees, caches or padding: one row, one forward of the stock model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from asg_core.backbones.interface import Role, TextRequest
from asg_core.backbones.manifest import LoraSettings
from asg_core.models.decoding import TransformersCausalModel
from asg_core.models.lora import RoleAdapters
from asg_core.testing.qwen import (
    LAYOUT,
    SPECIAL_IDS,
    SPECIALS,
    TARGETS,
    QwenText,
    byte_tokenizer,
    random_qwen,
    randomise,
)


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


def build(kind: str, dtype: torch.dtype = torch.float32) -> Rig:
    """A fresh rig: two layers, grouped-query attention, 262 tokens; every role has its own non-zero adapter."""
    if kind == "qwen":
        full = random_qwen(dtype=dtype)
        decoder = full.model.language_model
        model: TransformersCausalModel = QwenText(full, **LAYOUT)
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 256 + len(SPECIALS)}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            full = LlamaForCausalLM(
                LlamaConfig(**sizes, **heads, initializer_range=0.2, eos_token_id=SPECIAL_IDS["<end>"])
            )
        full = full.eval().requires_grad_(False).to(dtype)
        decoder = full.model
        model = TransformersCausalModel(decoder, full.lm_head, byte_tokenizer(), **LAYOUT)
    adapters = RoleAdapters({"text": decoder}, {role: {"text": TARGETS} for role in Role}, LoraSettings(rank=4), seed=3)
    randomise(adapters)
    return Rig(full, model, adapters, decoder.layers, sees=kind == "qwen")


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
