"""Pre-training is the project's own, seeded and repeatable."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from pretrain_tiny.curriculum import HABITS, SKILLS, WRONG_CAPTIONS, Curriculum
from pretrain_tiny.pretrain import PretrainSettings, pretrain, run

from asg_core.tiny.vocabulary import Vocabulary
from asg_core.tiny.weights import load_base

FEW = PretrainSettings(steps=3, pictures=3, drawings=4)


def test_equal_seeds_give_equal_models_and_other_seeds_others(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    first, second = (load_base(run(FEW, tmp_path / name).parent).state_dict() for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), before)
    other = run(PretrainSettings(seed=1, steps=3, pictures=3, drawings=4), tmp_path / "c")
    assert other.read_bytes() != (tmp_path / "a" / other.name).read_bytes()


def test_the_losses_fall() -> None:
    reports: list[dict[str, float]] = []
    for steps in (1, 10):
        settings = PretrainSettings(steps=steps, pictures=2, drawings=4)
        pretrain(settings, Vocabulary(), lambda step, losses: reports.append(losses))
    for name in ("text", "draw", "flow"):
        assert reports[-1][name] < 0.9 * reports[0][name], name


def test_both_stages_hold_the_tasks_they_say() -> None:
    words = Vocabulary()
    curriculum = Curriculum(words, seed=0)
    for tasks, framed in ((SKILLS, False), (HABITS, True)):
        branches = [b for _ in range(30) for b in curriculum.texts(curriculum.scene(), tasks)]
        texts = [words.decode(branch.ids) for branch in branches]
        assert any("reply briefly" in text for text in texts) is framed
        assert any(text.startswith("write a prompt") for text in texts)
        assert any(text.startswith("describe this image") for text in texts)


def test_the_stated_share_of_captions_to_draw_is_wrong() -> None:
    """A wrong caption of a scene of one named thing names a thing that is not there."""
    words = Vocabulary()
    curriculum = Curriculum(words, seed=0)
    verdicts: Counter[bool] = Counter()
    while sum(verdicts.values()) < 600:
        scene = curriculum.scene()
        text = words.decode(curriculum.drawing(scene))
        if len(scene.things) == 1:
            thing = scene.things[0]
            named = set(text.split()) - {"a", "picture", "drawing", "of", "draw"}
            verdicts[named <= {thing.shape, thing.color, thing.size}] += 1
    assert abs(verdicts[False] / 600 - WRONG_CAPTIONS) < 0.08
