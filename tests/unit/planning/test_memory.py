"""Planned bytes are counts: what a loaded model holds and a run allocates, and arithmetic checked by hand."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import Cache

from asg_core import RunConfig
from asg_core.backbones.interface import Backbone, Role, TextRequest, TextSampling
from asg_core.backbones.manifest import BackboneManifest, LoadRequest
from asg_core.data.image_pool import PoolImage
from asg_core.errors import CapabilityError
from asg_core.models.causal import CausalBackbone
from asg_core.models.decoding.cache_layers import BranchLayer, GrowingLayer
from asg_core.planning.activations import Activations
from asg_core.planning.allocation import adapted, counted_activations
from asg_core.planning.memory import StepMemory, generation_memory, images_that_fit, understanding_memory
from asg_core.planning.shape import ModelShape, Trunk, model_shape
from asg_core.planning.workload import (
    TextCall,
    compiled_decoding_bytes,
    decoding_bytes,
    prompt_cache_bytes,
    sample_cache_bytes,
    slot_bytes,
)
from asg_core.runs.configuration import load_run_config

from .conftest import SIZE, TRUNK


def test_parameters_and_bytes_are_those_of_the_loaded_model(shape: ModelShape, loaded: Backbone) -> None:
    base = [p for name, p in loaded._model.named_parameters() if "lora_" not in name]  # type: ignore[attr-defined]
    assert shape.parameters == sum(p.numel() for p in base)
    assert shape.weight_bytes == sum(p.nbytes for p in base)


def test_adapters_are_those_of_the_loaded_model(shape: ModelShape, loaded: Backbone, config: RunConfig) -> None:
    held = {role: sum(p.nbytes for p in loaded.trainable(role).values()) for role in Role}
    assert {role: 4 * count for role, count in shape.adapters.items()} == held
    assert understanding_memory(shape, config, SIZE, 1).adapters == sum(held.values())


def test_moments_and_gradients_are_counted_for_roles_that_learn(shape: ModelShape, config: RunConfig) -> None:
    one = shape.adapters[Role.SOLVER]
    rates = config.optimizer.model_copy(update={"lr_proposer": 0.0, "lr_generator": 0.0})
    frozen = config.model_copy(update={"optimizer": rates})
    assert understanding_memory(shape, frozen, SIZE, 1).optimizer == 8 * one
    assert understanding_memory(shape, config, SIZE, 1).optimizer == 3 * 8 * one
    assert generation_memory(shape, frozen, SIZE, 1).learning == 0
    assert understanding_memory(shape, frozen, SIZE, 1).learning > 4 * one


class Recorder:
    """Bytes of all cache layers alive, at every pass that decodes a single token."""

    def __init__(self, inner: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
        assert isinstance(inner, CausalBackbone)
        self.bytes: list[int] = []
        alive: weakref.WeakSet[BranchLayer | GrowingLayer] = weakref.WeakSet()
        forward = inner.text.forward

        def watched(kind: type[BranchLayer] | type[GrowingLayer]) -> None:
            made = kind.__init__

            def register(layer: Any, *args: Any) -> None:
                made(layer, *args)
                alive.add(layer)

            monkeypatch.setattr(kind, "__init__", register)

        def spied(embeds: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
            if embeds.shape[1] == 1:
                tensors = [t for layer in alive for t in (*(vars(layer).get("past") or ()), layer.keys, layer.values)]
                storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
                self.bytes.append(sum(storages.values()))
            return forward(embeds, mask, positions, cache)

        watched(BranchLayer)
        watched(GrowingLayer)
        monkeypatch.setattr(inner.text, "forward", spied)


def test_cache_bytes_are_those_of_a_run(
    shape: ModelShape, loaded: Backbone, images: list[PoolImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three images, two prompts of equal length each, two samples a prompt; then one prompt an image."""
    recorder = Recorder(loaded, monkeypatch)
    prompts = ["what is red ?", "what is blue ?"]
    prefix, prompt = shape.see(*SIZE).tokens, shape.prompt_tokens(prompts[0])
    assert prompt == shape.prompt_tokens(prompts[1])
    pictures = [image.image for image in images[:3]]
    kept = 2 * 3 * prefix * shape.trunk.kv_bytes
    loaded.prefill(pictures, [Role.PROPOSER, Role.SOLVER])
    for texts, rows in ((prompts, 12), (prompts[:1], 6)):
        requests = [TextRequest(text, p, seed) for p in pictures for text in texts for seed in range(2)]
        loaded.solve(requests, TextSampling(4))
        call = TextCall(3, 3 * len(texts), rows, prefix, prompt, 4)
        assert recorder.bytes[0] == kept + sample_cache_bytes(shape, call)
        recorder.bytes.clear()


def test_understanding_cache_covers_a_whole_step(
    shape: ModelShape, loaded: Backbone, config: RunConfig, images: list[PoolImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    from asg_core.method.context import StepContext
    from asg_core.method.losses import EmaBaseline
    from asg_core.method.token_entropy import RollingPercentile
    from asg_core.method.understanding import understanding_step

    recorder = Recorder(loaded, monkeypatch)
    understanding_step(loaded, images[:2], StepContext(config, 1), RollingPercentile(), EmaBaseline())
    planned = understanding_memory(shape, config, SIZE, 2)
    assert planned.decoding / 3 < max(recorder.bytes) <= planned.decoding + planned.prefixes


def test_activations_are_near_what_the_backward_pass_keeps(
    shape: ModelShape, loaded: Backbone, images: list[PoolImage]
) -> None:
    """Distinct storages saved for backward while scoring twelve answers, adapters' weights not counted."""
    picture = images[0].image
    requests = [TextRequest(f"what is {c} ?", picture, s) for c in ("red", "blue", "green") for s in range(4)]
    samples = loaded.solve(requests, TextSampling(4))
    own = {p.untyped_storage().data_ptr() for p in loaded._model.parameters()}  # type: ignore[attr-defined]
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own and tensor.is_floating_point():
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scores = loaded.token_logits(samples, Role.SOLVER)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    assert scores[0].logprobs.requires_grad
    prefix, prompt = shape.see(*SIZE).tokens, shape.prompt_tokens("what is red ?")
    new = max(len(sample.token_ids) for sample in samples) - 1
    own = prompt + new  # so few samples share a prompt that each reads it again
    parts = shape.trunk.activations(1, prefix, masked=False), shape.trunk.activations(12, own, prefix, masked=False)
    states = shape.trunk.kv_bytes * (prefix + 12 * (prefix + own))
    assert sum(part.saved for part in parts) + states == pytest.approx(measured, rel=0.05)


def test_trunk_by_hand() -> None:
    assert TRUNK.kv_bytes == 2 * 3 * 2 * 2 * 2
    assert TRUNK.weight_bytes == 2 * (1000 + 800)
    assert TRUNK.flops(tokens=10, context=5) == 2 * 1000 * 10 + 4 * 3 * 4 * 2 * 10 * 5
    assert TRUNK.head_flops(7) == 2 * 8 * 100 * 7
    per_token = 8 * 8 + 2 * (2 * 8 + 2 * 8 + 4 * 16)
    repeated, mask = 5 * 50 * 2 * 8 * 2, 10 * 50 * 2
    made = TRUNK.activations(rows=5, new=2, past=48)
    assert made.layer == 10 * per_token + repeated + mask
    assert (made.saved, made.inputs) == (3 * made.layer, 3 * 10 * 8 * 2)
    attending = repeated + 10 * 2 * (2 * 8 - 4 * 16)
    assert made.backward == max(2 * 10 * 2 * 16, attending) + 10 * 2 * 8
    always = 10 * (5 * 8 + 2 * 8) * 2 + 2 * 500
    assert made.forward == TRUNK.forward_bytes(5, 2, 48) == always + repeated + 2 * 500 * 2
    assert TRUNK.forward_bytes(1, 10) == 10 * (5 * 8 + 2 * 8) * 2 + 2 * 100 + 3 * 10 * 16 * 2
    assert TRUNK.activations(5, 2, 48, masked=False).layer == 10 * per_token


def test_activations_add_up_by_hand() -> None:
    one = Activations(saved=100, inputs=10, layer=30, backward=7, forward=20)
    two = Activations(saved=50, inputs=20, layer=40, backward=3, forward=5)
    assert one + two == Activations(150, 30, 40, 7, 20)
    assert one * 2 == Activations(200, 20, 60, 14, 40)
    assert (one.kept(checkpointing=False), one.kept(checkpointing=True)) == (100, 10)
    assert (one.passing(checkpointing=False), one.passing(checkpointing=True)) == (20, 7 + 30)


def test_activations_of_a_layer_are_those_of_torchs_own(shape: ModelShape) -> None:
    """A Qwen layer with adapters on the meta device, counted tensor by tensor."""
    from transformers import Qwen2Config
    from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

    sizes = Qwen2Config(hidden_size=64, intermediate_size=352, num_attention_heads=8, num_key_value_heads=2)
    sizes._attn_implementation = "sdpa"
    trunk = Trunk(1, 64, 8, 2, 8, 352, 100, 0, 2)
    with torch.device("meta"):
        layer = Qwen2DecoderLayer(sizes, 0).to(torch.bfloat16).requires_grad_(False)
        x, angles = torch.empty(3, 40, 64, dtype=torch.bfloat16), torch.empty(3, 40, 8, dtype=torch.bfloat16)
        mask = torch.empty(3, 1, 40, 40, dtype=torch.bool)
    with adapted(part for part in layer.modules() if isinstance(part, torch.nn.Linear)):
        counted = counted_activations(
            lambda x: layer(x, attention_mask=mask, position_embeddings=(angles, angles)), x, layers=1
        )
    planned = trunk.activations(3, 40)
    bias = 3 * 40 * 40 * 2  # of the fused kernel, which the count leaves out
    small = 3 * 40 * 2 * 4  # the norms' means
    assert planned.layer - bias + small == counted.layer
    assert planned.backward == counted.backward
    assert 0.7 * planned.forward < counted.forward + x.nbytes < planned.forward


def test_cache_by_hand(shape: ModelShape) -> None:
    shape = replace(shape, trunk=TRUNK)
    # 12 samples; 10 + 5 positions, one reserve of 64; then two reserves
    assert sample_cache_bytes(shape, TextCall(4, 4, 12, 10, 5, new=64)) == 48 * 12 * (15 + 64)
    assert sample_cache_bytes(shape, TextCall(4, 4, 4, 10, 5, new=65)) == 48 * 4 * (15 + 128)
    # 6 prompts of 3 images hold copies of their prefixes, 3 do not
    assert prompt_cache_bytes(shape, TextCall(3, 6, 6, 1000, 5, new=4)) == 48 * (6 * 1000 + 6 * 1005)
    assert prompt_cache_bytes(shape, TextCall(3, 3, 3, 1000, 5, new=4)) == 48 * 3 * 1005
    # compiled: 8 rows for 5, 320 positions for 306
    assert slot_bytes(shape, TextCall(3, 3, 5, 300, 2, new=4)) == 48 * 8 * 320


def test_decoding_is_reading_the_prompts_or_drawing_the_last_token(shape: ModelShape) -> None:
    shape = replace(shape, trunk=replace(TRUNK, vocabulary=1000))
    few = TextCall(3, 6, 6, 1000, 5, new=4)
    assert decoding_bytes(shape, few) == prompt_cache_bytes(shape, few) + TRUNK.forward_bytes(6, 5, 1000)
    many = TextCall(3, 6, 50, 10, 5, new=64)
    logits = 50 * 1000 * 24  # six float32 numbers
    assert decoding_bytes(shape, many) == sample_cache_bytes(shape, many) + logits
    assert compiled_decoding_bytes(shape, few) == decoding_bytes(shape, few)
    assert compiled_decoding_bytes(shape, many) == logits


def test_peak_is_what_stays_and_the_largest_of_what_passes() -> None:
    memory = StepMemory(
        weights=1, adapters=2, optimizer=4, prefixes=8, slots=16, reading=160, decoding=320, drawing=640, learning=1280
    )
    assert memory.peak == 1 + 2 + 4 + 8 + 16 + 1280
    for name in ("reading", "decoding", "drawing"):
        assert replace(memory, **{name: 5000}).peak == 1 + 2 + 4 + 8 + 16 + 5000


@pytest.mark.parametrize("kind", ["understanding", "generation"])
def test_one_image_more_than_fits_does_not_fit(shape: ModelShape, config: RunConfig, kind: str) -> None:
    memory_of = understanding_memory if kind == "understanding" else generation_memory
    needs: Callable[[int], StepMemory] = partial(memory_of, shape, config, SIZE)
    for images in range(1, 18):
        memory = needs(images).peak
        assert images_that_fit(needs, memory) == images
        assert images_that_fit(needs, memory - 1) == images - 1
    assert images_that_fit(needs, 1000) == 0


def test_checkpointing_and_small_backward_passes_save_memory(shape: ModelShape, config: RunConfig) -> None:
    def learning(**changes: object) -> int:
        settings = {"optimizer": config.optimizer.model_copy(update={"micro_batch": changes.pop("micro_batch", 0)})}
        return understanding_memory(shape, config.model_copy(update={**settings, **changes}), SIZE, 4).learning

    assert learning(micro_batch=1) < learning(micro_batch=2) < learning()
    assert learning(gradient_checkpointing=True) < learning() / 1.5


def test_a_backbone_without_a_plan_is_a_typed_error(monkeypatch: pytest.MonkeyPatch, config: RunConfig) -> None:
    from asg_core.backbones.registry import find_manifest
    from asg_core.planning import shape as module

    mute: BackboneManifest = find_manifest(config.backbone).model_copy(update={"plan": None})
    monkeypatch.setattr(module, "find_manifest", lambda name: mute)
    with pytest.raises(CapabilityError, match="has no plan"):
        model_shape(config)


def test_auto_is_planned_as_bfloat16() -> None:
    auto, exact = (model_shape(load_run_config(None, [f"dtype={d}"])) for d in ("auto", "float32"))
    assert 2 * auto.weight_bytes == exact.weight_bytes
    assert 2 * auto.trunk.kv_bytes == exact.trunk.kv_bytes


def test_planning_reads_the_header_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from asg_core.tiny import weights
    from asg_core.tiny.plan import plan

    class HeaderOnly:
        def __init__(self, path: Path, framework: str) -> None:
            with safe_open(path, framework=framework) as file:
                self.found = file.metadata()

        def __enter__(self) -> HeaderOnly:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def metadata(self) -> dict[str, str]:
            return self.found

    monkeypatch.setattr(weights, "safe_open", HeaderOnly)
    assert plan(LoadRequest()).parameters > 0
    with pytest.raises(AttributeError):
        weights.load_base()
