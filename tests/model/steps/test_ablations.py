"""Ablations take one thing of the method away, and nothing else."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from asg_core import RunConfig, Trainer, load_backbone
from asg_core.backbones.interface import Backbone, ImageRequest, ImageSampling, Role
from asg_core.config.seeding import derive_seed
from asg_core.data.image_pool import PoolImage
from asg_core.errors import CapabilityError
from asg_core.method.ablations import Variant
from asg_core.method.context import StepContext
from asg_core.method.generation import generation_step
from asg_core.method.generator_updates import update_generator
from asg_core.method.losses import AdaptiveKl, EmaBaseline, clipped_policy_terms
from asg_core.method.prompts import CANONICAL_FRAMING, FRAMINGS, frame
from asg_core.method.rewards import generation_reward
from asg_core.method.token_entropy import RollingPercentile
from asg_core.method.understanding import understanding_step
from asg_core.method.updates import Group, Learner, solver_groups, update_text_role
from asg_core.tiny.world import codes_scene, photograph, render, sample_scene, scene_codes
from asg_core.training.optimizer import RoleOptimizer


def with_ablation(config: RunConfig, ablation: str, **sections: Any) -> RunConfig:
    return config.model_copy(update={"ablation": ablation, **sections})


def pixels(source: PoolImage) -> bytes:
    return np.asarray(source.image).tobytes()


def test_noise_keeps_group_sizes_and_shuffling_keeps_the_values() -> None:
    rewards = [[0.0, 1.0], [2.0], [3.0, 4.0, 5.0]]
    shuffled = Variant("shuffled_votes").rewards(rewards, 1)
    assert [len(group) for group in shuffled] == [2, 1, 3]
    assert sorted(value for group in shuffled for value in group) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert shuffled != rewards
    noise = Variant("random_rewards").rewards(rewards, 1)
    assert [len(group) for group in noise] == [2, 1, 3]
    assert all(0 <= value < 1 for group in noise for value in group)
    assert Variant("no_cycle").rewards(rewards, 1) == rewards


def test_one_framing_asks_all_answers_under_the_canonical_one(
    tiny: Backbone, images: list[PoolImage], config: RunConfig
) -> None:
    for ablation, framings in (("none", FRAMINGS), ("one_framing", (CANONICAL_FRAMING,) * 7)):
        ctx = StepContext(with_ablation(config, ablation), 1)
        items = understanding_step(tiny, images[:2], ctx, RollingPercentile(), EmaBaseline())
        asked = [q for item in items for q in item.questions if q.text is not None]
        assert asked
        for q in asked:
            assert [a.sample.request.prompt for a in q.answers] == [frame(str(q.text), f) for f in framings]
            assert len({a.sample.request.seed for a in q.answers}) == 7


def test_the_base_ratio_divides_by_the_base_and_leaves_the_rest(
    tiny: Backbone, images: list[PoolImage], config: RunConfig
) -> None:
    def solver_step(ablation: str, lr: float) -> float | None:
        optimizer = RoleOptimizer(tiny.trainable(Role.SOLVER), lr, 0.0, 1.0, Accelerator(cpu=True))
        learner, ctx = Learner(Role.SOLVER, optimizer, AdaptiveKl(0.0)), StepContext(with_ablation(config, ablation), 1)
        return update_text_role(tiny, groups, learner, ctx).step.loss

    def sampled() -> list[Group]:
        ctx = StepContext(config, 1)
        return solver_groups(understanding_step(tiny, images, ctx, RollingPercentile(), EmaBaseline()))

    groups = sampled()
    solver_step("none", 8e-3)
    groups = sampled()
    answers = [pair for group in groups if any(a for _, a in group.samples) for pair in group.samples]
    with torch.no_grad():
        scores = tiny.token_logits([sample for sample, _ in answers], Role.SOLVER, base=True)
    terms = [
        clipped_policy_terms(score.logprobs, score.base_logprobs, advantage, config.policy.clip)
        for score, (_, advantage) in zip(scores, answers, strict=True)
        if score.base_logprobs is not None
    ]
    plain = [-advantage * len(sample.token_ids) for sample, advantage in answers]
    tokens = sum(len(sample.token_ids) for sample, _ in answers)
    against_base = float(torch.cat(terms).sum()) / tokens
    assert abs(against_base - sum(plain) / tokens) > 1e-3
    assert solver_step("base_ratio", 1e-12) == pytest.approx(against_base, abs=1e-5)
    assert solver_step("none", 1e-12) == pytest.approx(sum(plain) / tokens, abs=1e-4)


def test_own_drawings_replace_every_picture_by_what_its_spec_makes_the_generator_draw(
    tiny: Backbone, images: list[PoolImage], config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    draw = tiny.generate

    def spy(requests: list[ImageRequest], sampling: ImageSampling) -> Any:
        seeds.extend(request.seed for request in requests)
        return draw(requests, sampling)

    def drawn_in_step(number: int, shown: list[PoolImage], first: int = 0) -> list[PoolImage]:
        return Variant("own_drawings").images(tiny, shown, config, StepContext(config, number).seed, first)

    monkeypatch.setattr(tiny, "generate", spy)
    drawn = drawn_in_step(3, images)
    assert [source.path for source in drawn] == [source.path for source in images]
    for before, after in zip(images, drawn, strict=True):
        assert after.image.size == (32, 32)
        assert pixels(before) != pixels(after)
    # a process's share of a step is drawn as the whole step would
    tail = drawn_in_step(3, images[4:], 4)
    assert [pixels(source) for source in tail] == [pixels(source) for source in drawn[4:]]
    drawn_in_step(4, images)
    assert len(set(seeds)) == 2 * len(images), "every image of every step has a seed of its own"
    assert drawn_in_step(3, []) == []


@pytest.mark.parametrize("name", ["tiny", "tiny_flow"])
def test_source_images_teach_the_source_weighted_by_the_best_reward(
    name: str, request: pytest.FixtureRequest, images: list[PoolImage], config: RunConfig
) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    generate = config.generate.model_copy(update={"update": "regression"})
    chosen = with_ablation(config, "source_images", generate=generate)
    ctx = StepContext(chosen, 4)
    items = generation_step(backbone, images, ctx)
    items = [item for item in items if any(c.signal for c in item.candidates)][:2]
    assert len(items) == 2
    optimizer = RoleOptimizer(backbone.trainable(Role.GENERATOR), 1e-9, 0.0, 1.0, Accelerator(cpu=True))
    weights = [max(c.reward for c in item.candidates) for item in items]
    sources = [backbone.as_drawn(item.candidates[0].sample.request, item.source.image) for item in items]
    learner = Learner(Role.GENERATOR, optimizer)
    report = update_generator(backbone, items, learner, ctx)
    candidates = StepContext(config.model_copy(update={"generate": chosen.generate}), 4)
    assert report.step.loss != update_generator(backbone, items, learner, candidates).step.loss
    seeds = [derive_seed(chosen.seed, 4, "noise", i) for i in range(2)]
    with torch.no_grad():
        scored = backbone.generation_loss(sources, seeds)
    expected = sum(w * float(loss) for w, loss in zip(weights, scored.loss, strict=True)) / 2
    assert report.step.loss == pytest.approx(expected, rel=1e-4)


def test_a_picture_becomes_the_codes_that_draw_it(tiny: Backbone) -> None:
    asked = ImageRequest("a red circle", 0)
    rng = random.Random(0)
    scenes = [sample_scene(rng) for _ in range(50)]
    for scene in scenes:
        codes = scene_codes(scene)
        assert tiny.as_drawn(asked, render(codes)).trajectory["codes"].tolist() == codes
    noisy = [photograph(scene, np.random.default_rng(i)) for i, scene in enumerate(scenes)]
    seen = [codes_scene(tiny.as_drawn(asked, picture).trajectory["codes"].tolist()).things for picture in noisy]
    assert sum(a == b.things for a, b in zip(seen, scenes, strict=True)) >= 45


def test_a_backbone_without_as_drawn_says_so(tiny: Backbone, images: list[PoolImage]) -> None:
    with pytest.raises(CapabilityError, match="as_drawn"):
        Backbone.as_drawn(tiny, ImageRequest("a red circle", 0), images[0].image)


@pytest.mark.parametrize("left_out", ["fidelity", "cycle", "diversity", "contradiction"])
def test_a_generation_step_leaves_the_named_term_out(
    left_out: str, tiny: Backbone, images: list[PoolImage], config: RunConfig
) -> None:
    items = generation_step(tiny, images[:3], StepContext(with_ablation(config, f"no_{left_out}"), 4))
    judged = [(item, c) for item in items for c in item.candidates]
    assert judged
    for item, c in judged:
        assert c.reward == generation_reward(item.quality, c, left_out)


@pytest.mark.parametrize("mode", ["understanding", "generation"])
def test_a_run_on_own_drawings_looks_at_nothing_else(
    mode: str, tiny: Backbone, scenes: Path, tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[PoolImage] = []
    step = {"understanding": understanding_step, "generation": generation_step}[mode]

    def spy(backbone: Backbone, images: list[PoolImage], *rest: Any) -> Any:
        taken.extend(images)
        return step(backbone, images, *rest)

    monkeypatch.setattr(f"asg_core.training.trainer.{mode}_step", spy)
    chosen = {"images": scenes, "out": tmp_path / "run", "steps": 1, "schedule": {"mode": mode}}
    Trainer(RunConfig.model_validate(config.model_dump() | chosen | {"ablation": "own_drawings"}), tiny).run()
    sources = [PoolImage(s.path, Image.open(scenes / s.path).convert("RGB")) for s in taken]
    assert taken
    fresh = load_backbone("tiny", device="cpu", dtype="float32")
    drawn = Variant("own_drawings").images(fresh, sources, config, StepContext(config, 1).seed, 0)
    assert [pixels(s) for s in taken] == [pixels(s) for s in drawn]
