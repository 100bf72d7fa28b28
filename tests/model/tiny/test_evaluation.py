"""The held-out evaluation: same items before and after, splits that do not touch, scores that mean something."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from asg_core.backbones.interface import Role
from asg_core.backbones.manifest import LoadRequest
from asg_core.evaluation.items import EvalItem, EvaluationRequest
from asg_core.tiny import evaluation
from asg_core.tiny.backbone import TinyBackbone, TinyFlowBackbone, load
from asg_core.tiny.evaluation import CANONICAL, GENERATION, HELD_OUT, TRAINING, evaluate, make_questions, make_tasks
from asg_core.tiny.images import write_images
from asg_core.tiny.questions import KINDS

LIMIT = 14


@pytest.fixture(scope="module")
def before(tiny: TinyBackbone) -> list[EvalItem]:
    return evaluate(EvaluationRequest(tiny, trained=False, seed=3, limit=LIMIT))


def test_four_sections_of_unique_items_with_scores_between_0_and_1(before: list[EvalItem]) -> None:
    assert Counter(item.section for item in before) == dict.fromkeys((CANONICAL, TRAINING, HELD_OUT, GENERATION), LIMIT)
    assert len({(item.section, item.key) for item in before}) == len(before)
    assert all(0 <= item.score <= 1 for item in before)
    assert {item.category for item in before if item.section == TRAINING} == set(KINDS)


def test_equal_seeds_give_equal_items_and_a_new_adapter_scores_as_the_base(
    tiny: TinyBackbone, before: list[EvalItem]
) -> None:
    assert evaluate(EvaluationRequest(tiny, trained=True, seed=3, limit=LIMIT)) == before


def test_evolved_items_pair_with_base_items_and_judge_the_adapters(before: list[EvalItem]) -> None:
    backbone = load(LoadRequest())
    with torch.no_grad():
        for role in (Role.SOLVER, Role.GENERATOR):
            for parameter in backbone.trainable(role).values():
                parameter += 0.3
    after = evaluate(EvaluationRequest(backbone, trained=True, seed=3, limit=LIMIT))
    assert [(i.section, i.category, i.key) for i in after] == [(i.section, i.category, i.key) for i in before]
    assert evaluate(EvaluationRequest(backbone, trained=False, seed=3, limit=LIMIT)) == before
    # Every section judges the adapters. Noise need not draw worse: a crowded picture holds what was asked for.
    for section in (CANONICAL, TRAINING, HELD_OUT, GENERATION):
        was, now = ([i.score for i in items if i.section == section] for items in (before, after))
        assert now != was, section
        assert section == GENERATION or sum(now) < 0.5 * sum(was), section


def test_validation_and_test_prompts_are_disjoint_and_every_category_is_in_both() -> None:
    validation, tests = make_tasks(180, 480, seed=0)
    assert not {task.prompt for task in validation} & {task.prompt for task in tests}
    assert set(Counter(task.category for task in tests).values()) == {80}
    assert set(Counter(task.category for task in validation).values()) == {30}


def test_the_full_suite_is_large_and_balanced() -> None:
    made = make_questions(evaluation.QUESTIONS, seed=0)
    assert set(Counter(question.kind for _, question in made).values()) == {70}


def test_evaluation_scenes_are_not_the_pool_s(tmp_path: Path) -> None:
    from PIL import Image

    from asg_core.tiny.detector import read_scene

    write_images(tmp_path, seed=0)
    pool = {read_scene(Image.open(file)).things for file in tmp_path.iterdir()}
    scenes = [scene.things for scene, _ in make_questions(evaluation.QUESTIONS, seed=0)]
    # Scenes of one thing can coincide by chance (768 exist); larger ones must not.
    assert not [things for things in scenes if len(things) > 1 and things in pool]


def test_flow_models_are_evaluated_without_temperatures(tiny_flow: TinyFlowBackbone) -> None:
    calls: list[tuple[int, int]] = []
    items = evaluate(
        EvaluationRequest(tiny_flow, trained=False, limit=6, progress=lambda done, total: calls.append((done, total)))
    )
    assert Counter(item.section for item in items)[GENERATION] == 6
    assert calls[-1] == (12, 12)


def test_the_best_temperature_is_chosen_on_validation_prompts(
    tiny: TinyBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, float]] = []

    def scores(request: object, tasks: list[object], temperature: float, split: str, advance: object) -> list[float]:
        drawn.append((split, temperature))
        return [0.9 if temperature == 0.7 and split == "validation" else 0.1] * len(tasks)

    monkeypatch.setattr(evaluation, "_drawn", scores)
    items = evaluate(EvaluationRequest(tiny, trained=False, limit=7))
    assert drawn == [("validation", 1.0), ("validation", 0.7), ("validation", 0.5), ("test", 0.7)]
    assert [item.score for item in items if item.section == GENERATION] == [0.1] * 7


def test_questions_vary_with_the_seed() -> None:
    first, second = ([question.text for _, question in make_questions(50, seed)] for seed in (0, 1))
    assert first != second
