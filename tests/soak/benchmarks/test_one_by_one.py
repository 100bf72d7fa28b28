"""The sequential comparison computes the same step as the batched one, sample by sample."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from asg_core import RunConfig, load_backbone
from asg_core.backbones.interface import Backbone, Role, TextRequest, TextSampling
from asg_core.data.image_pool import PoolImage
from asg_core.method.context import StepContext
from asg_core.method.generation import generation_step
from asg_core.method.generator_updates import update_generator
from asg_core.method.losses import AdaptiveKl, EmaBaseline
from asg_core.method.records import GenerationItem, UnderstandingItem
from asg_core.method.token_entropy import RollingPercentile
from asg_core.method.understanding import understanding_step
from asg_core.method.updates import Learner, UpdateReport, proposer_groups, solver_groups, update_text_role
from asg_core.training.optimizer import RoleOptimizer
from gpu_models import pictures
from one_by_one import OneByOne, separate
from scripted import AGREEING, Scripted, endless

SETTINGS = {
    "ask": {"max_new_tokens": 6, "spec_max_new_tokens": 8},
    "solve": {"max_new_tokens": 3, "caption_max_new_tokens": 4},
    "generate": {"candidates": 3, "fidelity": "vote"},
}


class Counter:
    """Rows of each decoding pass."""

    def __init__(self, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        text = backbone.text  # type: ignore[attr-defined]
        inner = text.forward

        def forward(embeds: torch.Tensor, *rest: object) -> torch.Tensor:
            self.rows.append(len(embeds))
            result: torch.Tensor = inner(embeds, *rest)
            return result

        monkeypatch.setattr(text, "forward", forward)


Reports = dict[Role, UpdateReport]


def understanding(model: Backbone, sequential: bool) -> tuple[list[UnderstandingItem], Reports]:
    images = [PoolImage(Path(f"{i}.png"), image) for i, image in enumerate(pictures(2, 32))]
    config = RunConfig.model_validate({**SETTINGS, "optimizer": {"micro_batch": 1 if sequential else 0}})
    scripted = Scripted(model, [image.image for image in images], 7)
    items = understanding_step(scripted, images, StepContext(config, 1), RollingPercentile(), EmaBaseline())
    reports = {}
    for role, groups in ((Role.PROPOSER, proposer_groups(items)), (Role.SOLVER, solver_groups(items))):
        optimizer = RoleOptimizer(model.trainable(role), 1e-3, 0.01, 1.0, Accelerator(cpu=True))
        wanted = separate(groups) if sequential else groups
        learner = Learner(role, optimizer, AdaptiveKl(0.01, 0.02))
        reports[role] = update_text_role(scripted, wanted, learner, StepContext(config, 1))
    return items, reports


def generation(model: Backbone, sequential: bool) -> tuple[list[GenerationItem], Reports]:
    images = [PoolImage(Path(f"{i}.png"), image) for i, image in enumerate(pictures(2, 32))]
    config = RunConfig.model_validate({**SETTINGS, "optimizer": {"micro_batch": 1 if sequential else 0}})
    scripted = Scripted(model, [image.image for image in images], 7)
    ctx = StepContext(config, 1)
    items = generation_step(scripted, images, ctx)
    optimizer = RoleOptimizer(model.trainable(Role.GENERATOR), 1e-3, 0.01, 1.0, Accelerator(cpu=True))
    return items, {Role.GENERATOR: update_generator(scripted, items, Learner(Role.GENERATOR, optimizer), ctx)}


@pytest.fixture(params=["tiny", "tiny_flow"])
def pair(request: pytest.FixtureRequest) -> tuple[Backbone, Backbone]:
    made = [load_backbone(request.param, device="cpu", dtype="float32") for _ in range(2)]
    for backbone in made:
        endless(backbone)
    return made[0], made[1]


def same_updates(one: Reports, other: Reports) -> None:
    """Loss and gradient norm. Adapters cannot be compared: Adam blows rounding errors of tiny gradients up."""
    assert one.keys() == other.keys()
    for role, report in one.items():
        step, again = report.step, other[role].step
        assert step.applied
        assert again.applied
        assert step.loss == pytest.approx(again.loss, rel=1e-4, abs=1e-6)
        assert step.grad_norm == pytest.approx(again.grad_norm, rel=1e-3)


def test_understanding_step(pair: tuple[Backbone, Backbone], monkeypatch: pytest.MonkeyPatch) -> None:
    batched, alone = pair
    counter = Counter(alone, monkeypatch)
    (first, one), (second, other) = understanding(batched, False), understanding(OneByOne(alone), True)
    for a, b in zip(first, second, strict=True):
        for q, r in zip(a.questions, b.questions, strict=True):
            assert q.completion.token_ids == r.completion.token_ids
            assert [x.sample.token_ids for x in q.answers] == [x.sample.token_ids for x in r.answers]
            assert q.reward == pytest.approx(r.reward, abs=1e-5)
    assert set(counter.rows) == {1}
    same_updates(one, other)


def test_generation_step(pair: tuple[Backbone, Backbone]) -> None:
    batched, alone = pair
    (first, one), (second, other) = generation(batched, False), generation(OneByOne(alone), True)
    for a, b in zip(first, second, strict=True):
        for c, d in zip(a.candidates, b.candidates, strict=True):
            assert c.sample.image.tobytes() == d.sample.image.tobytes()
            assert c.reward == pytest.approx(d.reward, abs=1e-5)
    same_updates(one, other)


def test_nothing_is_kept_between_sequential_calls(
    pair: tuple[Backbone, Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Counter(pair[0], monkeypatch)
    request = TextRequest("what is red ?", pictures(1, 32)[0], 1)
    passes = []
    for backbone in (pair[0], OneByOne(pair[0])):
        for _ in range(2):
            counter.rows.clear()
            backbone.solve([request], TextSampling(2))
            passes.append(len(counter.rows))
    kept, again = passes[1], passes[2:]
    assert kept < passes[0] == again[0] == again[1]


def test_scripted_texts_leave_tokens_alone_and_teach_every_role(pair: tuple[Backbone, Backbone]) -> None:
    backbone = pair[0]
    items, _ = understanding(backbone, False)
    questions = [q for item in items for q in item.questions]
    assert all(q.learned and q.text is not None for q in questions)
    assert [round(7 * q.vote.majority_share) for q in questions if q.vote is not None] == [*AGREEING, *AGREEING]
    for q in questions:
        assert len(q.completion.token_ids) == 6
        assert all(len(a.sample.token_ids) == 3 for a in q.answers)
        assert len(q.completion.pieces) == len(q.completion.logprobs) == 6
    drawn, _ = generation(backbone, False)
    assert all(len(item.kept) == 3 and len(item.candidates) == 3 for item in drawn)
    assert all(len({c.reward for c in item.candidates}) > 1 for item in drawn)
