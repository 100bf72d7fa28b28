"""The whole loop on a tiny checkpoint that has something to say, through the command that users type."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from asg_bagel.backbone import BagelBackbone
from asg_bagel.backbone import load as factory
from asg_bagel.options import BagelOptions
from asg_core.backbones.interface import Role, TextRequest, TextSampling
from asg_core.backbones.manifest import LoadRequest, LoraSettings
from asg_core.cli import main
from asg_core.config.schema import RunConfig
from asg_core.training.trainer import Trainer

from bagel_fixtures import digests, picture

OPTIONS: dict[str, Any] = {"vision_shortest": 28, "vision_longest": 56, "rollout": {"num_timesteps": 4}}
SETTINGS: dict[str, Any] = {
    "backbone": "bagel",
    "steps": 4,
    "images_per_step": 3,
    "device": "cpu",
    "evaluate": False,
    "schedule": {"ratio": [2, 2]},
    "ask": {"max_new_tokens": 24, "spec_max_new_tokens": 80},
    "solve": {"max_new_tokens": 8, "caption_max_new_tokens": 12},
    "optimizer": {"lr_proposer": 1e-3, "lr_solver": 1e-3, "lr_generator": 1e-3},
    "lora": {"rank": 4, "alpha": 8},
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(10):
        picture(index).save(folder / f"{index}.png")
    return folder


def test_two_understanding_and_two_generation_steps_move_the_adapters_and_nothing_else(
    load: Callable[..., BagelBackbone], taught: Path, images: Path, tmp_path: Path
) -> None:
    backbone = load(taught, **OPTIONS)
    before = digests(backbone.model)
    roles = {id(p): role for role in Role for p in backbone.trainable(role).values()}
    owner = {name: roles.get(id(p)) for name, p in backbone.model.named_parameters()}
    config = RunConfig.model_validate({**SETTINGS, "weights": taught, "images": images, "out": tmp_path / "run"})
    seen: list[int] = []
    backbone.model.vit_model.vision_model.encoder.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    summary = Trainer(config, backbone).run()
    assert summary.steps_done == 4
    after = digests(backbone.model)
    moved = {name for name in before if before[name] != after[name]}
    assert {owner[name] for name in moved} == set(Role)
    assert not [name for name in moved if owner[name] is None]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["understanding"] * 2 + ["generation"] * 2
    assert all(row["nonfinite"] == 0 for row in rows)
    skipped = sum(row["skipped"] for row in rows[2:])
    assert skipped < 4
    sources, candidates, blank = 2 * 3 + 2 * 2, 3 * (4 - skipped), 3
    assert sum(seen) == sources + candidates + blank, (
        "each picture once, and the three blanks that embeddings are measured from"
    )
    assert all(row["penalty_generator"] is not None for row in rows[2:])


def test_an_understanding_only_model_runs_understanding_steps(
    load: Callable[..., BagelBackbone], taught: Path, images: Path, tmp_path: Path
) -> None:
    backbone = load(taught, **OPTIONS, generation=False)
    schedule = {"schedule": {"mode": "understanding"}, "steps": 1}
    config = {**SETTINGS, **schedule, "weights": taught, "images": images, "out": tmp_path / "run"}
    assert Trainer(RunConfig.model_validate(config), backbone).run().steps_done == 1
    assert any(p.abs().sum() > 0 for name, p in backbone.trainable(Role.SOLVER).items() if "lora_B" in name)


def test_the_commands_train_save_and_export(taught: Path, images: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "steps": 1}
    flat = [f"{key}={json.dumps(value)}" for key, value in settings.items() if not isinstance(value, dict)]
    nested = [f"{a}.{b}={v}" for a, part in settings.items() if isinstance(part, dict) for b, v in part.items()]
    options = ["backbone_options.vision_longest=56", "backbone_options.rollout.num_timesteps=4"]
    out = tmp_path / "run"
    assert main(["train", *flat, *nested, *options, f"weights={taught}", f"images={images}", f"out={out}"]) == 0

    lora = LoraSettings(rank=4, alpha=8)
    backbone = factory(LoadRequest(weights=taught, lora=lora, options=BagelOptions(vision_longest=56)))
    for role in Role:
        backbone.load_role(role, out / "adapters" / role.value)
    solver = torch.cat([p.flatten() for name, p in backbone.trainable(Role.SOLVER).items() if "lora_B" in name])
    assert bool(solver.abs().sum() > 0)
    assert main(["export", "--run", str(out), "--to", str(tmp_path / "merged"), "--roles", "solver", "--float32"]) == 0
    merged = factory(LoadRequest(weights=tmp_path / "merged", options=BagelOptions(vision_longest=56)))
    samples = backbone.solve([TextRequest("what is the cat?", picture(1), 1)], TextSampling(6))
    (wanted,) = backbone.token_logits(samples, Role.SOLVER)
    (actual,) = merged.token_logits(samples, None)
    torch.testing.assert_close(actual.logprobs, wanted.logprobs, atol=1e-4, rtol=0)
