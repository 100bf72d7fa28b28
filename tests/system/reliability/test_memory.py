"""``optimizer.micro_batch=auto``: a step that runs out of memory is taken with fewer images at a time, and is the same.

Memory here is rows: those of a pass through the language model, and those of the image prefixes that are kept.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from asg_core import RunConfig, Trainer, load_backbone
from asg_core.backbones.interface import Backbone, ImageRequest, ImageSampling, Role, TextRequest, TextSampling
from asg_core.backbones.manifest import LoraSettings
from asg_core.errors import ConfigError, OutOfMemory
from asg_core.training.checkpoint_files import newest_good
from asg_core.training.chunked import Chunked
from asg_core.training.optimizer import RoleOptimizer
from devkit import sizes
from devkit.sizes import at_full_size

KEPT = 8
"""Rows that a kept prefix counts as."""


@contextmanager
def rows(backbone: Any, most: int) -> Iterator[None]:
    """Inside, a pass that needs more memory than ``most`` rows fails as it does on a GPU."""

    def look(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        kept = sum(len(entry.row_of) for entry in backbone._prefixes._entries)
        if len(states) + KEPT * kept > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    handle = backbone._model.trunk.layers[0].register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def fresh(name: str) -> Backbone:
    return load_backbone(name, device="cpu", dtype="float32", lora=LoraSettings(rank=2, alpha=4.0))


@pytest.fixture
def four(small: Callable[..., RunConfig]) -> Callable[..., RunConfig]:
    """Steps of four images, and of four candidates."""

    def make(out: str, **changes: Any) -> RunConfig:
        settings = {
            "images_per_step": 4,
            "generate": {"prompts_per_step": 2, "candidates": 2},
            "optimizer": {"lr_proposer": 1e-3, "lr_solver": 1e-3, "lr_generator": 1e-3, "micro_batch": "auto"},
            "sample_every_steps": 1,
            "policy": {"inner_steps": 2},
        }
        return small(out, **{**settings, **changes})

    return make


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {f"{role}.{k}": v.detach().clone() for role in Role for k, v in trainer.backbone.trainable(role).items()}


def farthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def facts(value: Any) -> Any:
    """``value`` without its floats: texts, labels, counts, file names."""
    if isinstance(value, dict):
        return {key: facts(inner) for key, inner in value.items()}
    return [facts(inner) for inner in value] if isinstance(value, list) else None if type(value) is float else value


def seen(run: Path) -> dict[str, Any]:
    """What the steps sampled: every text as written, every image byte for byte."""
    files = sorted(path for path in (run / "samples").rglob("*") if path.is_file())
    return {
        str(path.relative_to(run)): facts(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()
        for path in files
    }


def floats(record: dict[str, Any]) -> list[float]:
    return [value for _, value in sorted(record.items()) if type(value) is float]


@pytest.mark.parametrize("name", at_full_size(["tiny"], ["tiny_flow"]))
def test_a_run_short_of_memory_takes_the_same_steps_with_fewer_images_at_a_time(
    name: str, four: Callable[..., RunConfig], messages: tuple[Any, list[str]], metrics: Any
) -> None:
    plenty = Trainer(four("plenty", backbone=name, steps=2), backbone=fresh(name))
    plenty.run()
    display, said = messages
    backbone = fresh(name)
    short = Trainer(four("short", backbone=name, steps=2), backbone=backbone, display=display)
    with rows(backbone, 32):
        short.run()
    assert [text for text in said if "memory" in text] == [
        "out of memory in step 1: going on with 2 images at a time in understanding steps",
        "out of memory in step 2: going on with 2 images at a time in generation steps",
        "out of memory in step 2: going on with 1 image at a time in generation steps",
    ]
    before, after = metrics(plenty.folder.path), metrics(short.folder.path)
    assert [record.pop("images_at_once") for record in after] == [2, 1]
    assert facts(after) == facts(before)
    assert [floats(r) for r in after] == [pytest.approx(floats(r), abs=1e-6) for r in before]
    assert before[1]["specs"] >= 1  # candidates were drawn, judged and learned from
    samples = seen(plenty.folder.path)
    assert any(key.endswith(".png") for key in samples)
    assert seen(short.folder.path) == samples
    assert farthest(weights(plenty), weights(short)) < 1e-5


ONCE = at_full_size([("token_logits", Role.SOLVER, 2 * 3), ("generation_loss", None, 3)], [("embed", None, 3)])


@pytest.mark.parametrize(("call", "role", "most"), ONCE)
def test_a_step_taken_again_begins_where_the_failed_one_did(
    call: str,
    role: Role | None,
    most: int,
    four: Callable[..., RunConfig],
    scripted: Any,
    metrics: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When the Solver's second inner step fails, the Proposer has learned already, and the Solver itself has moved;
    so have the moments and the window."""
    held: list[weakref.ref[Any]] = []
    let_go: list[bool] = []
    sizes: list[int] = []
    learning: list[int] = []

    def once(real: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if role is None or (role in arguments and torch.is_grad_enabled()):
            learning.append(len(arguments[0]))
            if not held and (role is None or len(learning) == 2):
                activations = torch.zeros(9)
                held.append(weakref.ref(activations))
                raise torch.OutOfMemoryError("CUDA out of memory")
            if held:
                sizes.append(len(arguments[0]))
        return real(*arguments, **options)

    def restore(self: Any, state: Any) -> None:
        let_go.append(held[0]() is None)
        put_back(self, state)

    put_back = RoleOptimizer.restore
    six = {"prompts_per_step": 2, "candidates": 3}
    plenty = Trainer(four("plenty", steps=2, generate=six), backbone=fresh("tiny"))
    plenty.run()
    short = Trainer(four("short", steps=2, generate=six), backbone=scripted(fresh("tiny"), **{call: once}))
    with monkeypatch.context() as patch:
        patch.setattr(RoleOptimizer, "restore", restore)
        short.run()
    assert let_go
    assert all(let_go)  # moments go back to a device that has room again
    assert 0 < max(sizes) <= most
    before, after = metrics(plenty.folder.path), metrics(short.folder.path)
    halved = [record.pop("images_at_once", None) for record in after]
    assert halved == ([2, None] if role else [None, 3])
    assert facts(after) == facts(before)
    assert [floats(r) for r in after] == [pytest.approx(floats(r), abs=1e-6) for r in before]
    assert farthest(weights(plenty), weights(short)) < 1e-5


def test_one_image_that_is_too_much_ends_in_one_message_with_the_step_before_saved(
    four: Callable[..., RunConfig], tiny: Any, metrics: Any
) -> None:
    config = four("run", checkpoint_every_steps=10, schedule={"mode": "understanding"}, steps=3)
    trainer = Trainer(config, backbone=tiny)
    taken = trainer._one_step
    before: dict[str, torch.Tensor] = {}

    def step(number: int) -> None:
        before.update(weights(trainer))
        with rows(tiny, 4 if trainer.state.step == 2 else 1000):
            taken(number)

    trainer._one_step = step  # type: ignore[method-assign]
    with pytest.raises(OutOfMemory, match="step 3, with one image at a time") as raised:
        trainer.run()
    for knob in ("gradient_checkpointing", "ask.questions_per_image", "max_new_tokens"):
        assert knob in raised.value.fix
    for useless in ("images_per_step", "candidates", "micro_batch"):
        assert useless not in raised.value.fix
    assert farthest(before, weights(trainer)) == 0
    assert config.out is not None
    _found, state, errors = newest_good(config.out / "checkpoints")
    assert (state["step"], state["images_at_once"], errors) == (2, {"understanding": 1}, [])
    resumed = Trainer.resume(config.out)
    resumed.run()
    assert [r.get("images_at_once") for r in metrics(config.out)] == [None, None, 1]


@pytest.mark.skipif(not sizes.FULL, reason="what is resumed is the checkpoint's, as tested above: tox -e soak")
def test_a_resumed_run_begins_with_as_many_images_and_is_the_straight_one(
    four: Callable[..., RunConfig], messages: tuple[Any, list[str]], metrics: Any
) -> None:
    straight, parts = fresh("tiny"), fresh("tiny")
    with rows(straight, 32):
        whole = Trainer(four("straight", steps=3), backbone=straight)
        whole.run()
    display, said = messages
    config = four("parts", steps=2)
    assert config.out is not None
    with rows(parts, 32):
        Trainer(config, backbone=parts).run()
    resumed_on = fresh("tiny")
    with rows(resumed_on, 32):
        resumed = Trainer.resume(config.out, steps=3, backbone=resumed_on, display=display)
        resumed.run()
    assert [text for text in said if "memory" in text] == []
    assert metrics(config.out) == metrics(whole.folder.path)
    assert [r["images_at_once"] for r in metrics(config.out)] == [2, 1, 2]
    assert farthest(weights(whole), weights(resumed)) == 0


def test_a_rollback_does_not_bring_back_what_did_not_fit(four: Callable[..., RunConfig], tiny: Any) -> None:
    trainer = Trainer(four("run", steps=1), backbone=tiny)
    trainer.run()
    trainer.state.images_at_once = {"generation": 1}
    assert trainer.checkpoints.roll_back(trainer.state, ["kl-drift"]) == 1
    assert trainer.state.images_at_once == {"generation": 1}


def test_several_processes_are_refused_before_anything_is_written(
    four: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = four("run")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="micro_batch=auto does not fit 2 processes") as raised:
        Trainer(config).run()
    assert "optimizer.micro_batch=1" in raised.value.fix
    assert config.out is not None
    assert not config.out.exists()


def test_portions_see_few_images_keep_nothing_of_the_last_and_answer_in_order(
    scripted: Any, tiny: Any, images: Any
) -> None:
    alive: list[list[weakref.ref[Any]]] = []

    def watching(real: Callable[..., Any], requests: Any, *rest: Any, **options: Any) -> Any:
        named = [r.image if isinstance(r, TextRequest) else r for r in requests]
        shown = list({id(image): image for image in named}.values())
        named.clear()
        assert len(shown) <= 2
        assert [ref() for earlier in alive for ref in earlier if ref() is not None] == []
        alive.append([weakref.ref(image) for image in shown])
        return real(requests, *rest, **options)

    five = [image.image for image in images[:5]]
    prompts = ("What color is it?", "How many are there?")
    requests = [TextRequest(prompt, image, seed) for seed, prompt in enumerate(prompts) for image in five]
    sampling = TextSampling(4)
    whole = tiny.solve(requests, sampling)
    parts = Chunked(scripted(tiny, solve=watching), 2).solve(requests, sampling)
    assert len(alive) == 3
    assert [sample.token_ids for sample in parts] == [sample.token_ids for sample in whole]
    assert all(sample.request is request for sample, request in zip(parts, requests, strict=True))
    alive.clear()
    Chunked(scripted(tiny, embed=watching), 2).embed(five)
    assert len(alive) == 3
    scores = Chunked(tiny, 2).token_logits(whole, Role.SOLVER)
    for score, sample in zip(scores, whole, strict=True):
        assert score.logprobs.tolist() == pytest.approx(sample.logprobs, abs=1e-4)


def test_drawings_and_vectors_in_portions_are_those_of_the_whole(tiny: Any, images: Any) -> None:
    requests = [ImageRequest(f"a {color} circle", seed) for seed, color in enumerate(("red", "blue", "green"))]
    whole = tiny.generate(requests, ImageSampling())
    parts = Chunked(tiny, 2).generate(requests, ImageSampling())
    assert all(a.image.tobytes() == b.image.tobytes() for a, b in zip(whole, parts, strict=True))
    items = [sample.image for sample in whole] + ["a red circle", "two squares"]
    for few, many in pairwise((1, 2, 5)):
        difference = Chunked(tiny, few).embed(items) - Chunked(tiny, many).embed(items)
        assert float(difference.abs().max()) < 1e-5
    assert len(Chunked(tiny, 2).embed([])) == 0
