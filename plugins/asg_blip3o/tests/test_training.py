"""Whole training steps on the tiny checkpoint: the loop of the core, all three roles, nothing else moves."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from asg_blip3o.backbone import Blip3oBackbone
from PIL import Image

from asg_core import RunConfig, Trainer
from asg_core.backbones.interface import Role, TextRequest, TextSample, TextSampling
from asg_core.method.prompts import SPEC_PROMPT

Load = Callable[..., Blip3oBackbone]
QUESTIONS = ("What is on the left?", "What color is the band?", "Where is the red thing?")
SPEC = "Prompt: two red bands Q: What is on the left? A: a band Q: What color is the band? A: red"


def written(backbone: Blip3oBackbone, request: TextRequest, text: str) -> TextSample:
    """A completion of the Proposer with its true log-probs: random weights write no question by themselves."""
    ids = (*backbone.vocabulary.encode(text), backbone.vocabulary.special.im_end)
    pieces = tuple(backbone.vocabulary.decode([token]) for token in ids)
    blank = TextSample(request, text, ids, pieces, (0.0,) * len(ids), (0.0,) * len(ids), "stop", 1.0)
    with torch.no_grad():
        score = backbone.token_logits([blank], Role.PROPOSER)[0]
    return TextSample(
        request, text, ids, pieces, tuple(score.logprobs.tolist()), tuple(score.entropies.tolist()), "stop", 1.0
    )


@pytest.fixture
def proposing(load: Load, monkeypatch: pytest.MonkeyPatch) -> Blip3oBackbone:
    """A backbone whose Proposer writes given questions and specs; everything else is its own."""
    backbone = load()
    questions: Iterator[str] = itertools.cycle(QUESTIONS)

    def ask(requests: Sequence[TextRequest], sampling: TextSampling, role: Any = Role.PROPOSER) -> list[TextSample]:
        return [written(backbone, r, SPEC if r.prompt == SPEC_PROMPT else next(questions)) for r in requests]

    monkeypatch.setattr(backbone, "ask", ask)
    return backbone


def test_two_understanding_and_two_generation_steps_move_the_three_roles_and_nothing_else(
    proposing: Blip3oBackbone, picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for seed in range(4):
        picture(seed, 60, 64 + 8 * seed).save(images / f"{seed}.png")
    config = RunConfig.model_validate(
        {
            "backbone": "blip3o",
            "images": images,
            "out": tmp_path / "run",
            "steps": 4,
            "images_per_step": 2,
            "device": "cpu",
            "schedule": {"ratio": [2, 2]},
            "solve": {"max_new_tokens": 2, "temperature": 0.2, "caption_max_new_tokens": 4},
            "generate": {"prompts_per_step": 1, "candidates": 2},
            "optimizer": {"lr_proposer": 1e-3, "lr_solver": 1e-3, "lr_generator": 1e-3},
            "lora": {"rank": 4, "alpha": 8},
            "checkpoint_every_steps": 2,
            "sample_every_steps": 1,
        }
    )
    model = proposing.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    summary = Trainer(config, proposing).run()
    assert summary.steps_done == 4
    records = [json.loads(line) for line in (summary.out / "metrics.jsonl").read_text().splitlines()]
    assert [record["kind"] for record in records] == ["understanding"] * 2 + ["generation"] * 2
    assert sum(record["nonfinite"] for record in records) == 0
    assert sum(record["learned_questions"] for record in records[:2]) > 0
    assert sum(record["skipped"] for record in records[2:]) == 0
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    for role in Role:
        own = {name for name, p in model.named_parameters() if any(p is q for q in proposing.trainable(role).values())}
        assert own & moved, role
        assert (tmp_path / "run" / "adapters" / role.value / "adapter_model.safetensors").is_file()
    assert all("lora_" in name for name in moved)
