"""The check of replayed log-probs in whole runs: what it stops, and what of it is state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from asg_core import RunConfig, Trainer, load_backbone
from asg_core.backbones.interface import Backbone, Role
from asg_core.errors import TrainingStopped
from asg_core.training.checkpoint_files import newest_good


def awake() -> Backbone:
    """The embedded backbone with three different adapters, at a KL of about 0.1 from each other."""
    backbone = load_backbone("tiny", device="cpu", dtype="float32")
    with torch.no_grad():
        for seed, role in enumerate(Role):
            stream = torch.Generator().manual_seed(seed)
            for name, weight in backbone.trainable(role).items():
                if "lora_B" in name:
                    weight.copy_(torch.randn(weight.shape, generator=stream) * 0.02)
    return backbone


@pytest.mark.parametrize("role", [Role.PROPOSER, Role.SOLVER])
@pytest.mark.parametrize("other", [None, Role.GENERATOR], ids=["adapter off", "another role's adapter"])
def test_a_run_whose_scores_are_not_of_the_weights_that_sampled_stops_with_the_step_before_saved(
    role: Role, other: Role | None, small: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = awake()
    trainer = Trainer(small("run", steps=2, schedule={"mode": "understanding"}), backbone=backbone)
    right = backbone.token_logits

    def wrong(samples: Any, scored: Role | None, **wanted: bool) -> Any:
        return right(samples, other if scored is role and trainer.state.step == 1 else scored, **wanted)

    monkeypatch.setattr(backbone, "token_logits", wrong)
    with pytest.raises(TrainingStopped, match=rf"replayed log-probs differ.*{role.value}"):
        trainer.run()
    assert newest_good(trainer.folder.path / "checkpoints")[1]["step"] == 1


def floors(trainer: Trainer) -> dict[Role, float | None]:
    return {role: learner.floor and learner.floor.nats for role, learner in trainer.state.learners.items()}


def test_the_floor_is_measured_once_a_run_and_a_resumed_run_keeps_it(
    small: Callable[..., RunConfig], metrics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Role | None] = []

    def run(trainer: Trainer, backbone: Backbone) -> Trainer:
        right = backbone.token_logits

        def listening(samples: Any, role: Role | None, **wanted: bool) -> Any:
            if not torch.is_grad_enabled():
                measured.append(role)
            return right(samples, role, **wanted)

        monkeypatch.setattr(backbone, "token_logits", listening)
        trainer.run()
        return trainer

    changes: dict[str, Any] = {"schedule": {"ratio": [2, 1]}, "policy": {"inner_steps": 2}}
    backbone = awake()
    straight = run(Trainer(small("straight", steps=6, **changes), backbone=backbone), backbone)
    assert measured == [Role.PROPOSER, Role.SOLVER]
    first = Trainer(small("parts", steps=4, **changes), backbone=awake())
    first.run()
    measured.clear()
    backbone = awake()
    resumed = run(Trainer.resume(first.folder.path, steps=6, backbone=backbone), backbone)
    assert measured == []
    nats = floors(resumed)
    assert nats == floors(straight)
    assert None not in nats.values()
    assert metrics(resumed.folder.path) == metrics(straight.folder.path)
