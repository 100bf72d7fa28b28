"""The whole loop on a tiny checkpoint that has something to say, through the trainer and through the commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from asg_janus.backbone import JanusBackbone
from PIL import Image

from asg_core.backbones.interface import Role
from asg_core.cli import main
from asg_core.config.schema import RunConfig
from asg_core.training.trainer import Trainer

# pytest's importlib mode puts no test folder on the path.
sys.path.append(str(Path(__file__).parent))
from teaching import teach

SETTINGS: dict[str, Any] = {
    "backbone": "janus",
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


@pytest.fixture(scope="module")
def taught(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose questions parse and whose answers sometimes agree."""
    return teach(checkpoint, tmp_path_factory.mktemp("taught") / "checkpoint")


@pytest.fixture
def images(tmp_path: Path, picture: Callable[..., Image.Image]) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(4):
        picture(index).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize("update", ["regression", "policy_gradient"])
def test_two_understanding_and_two_generation_steps_move_the_adapters_and_nothing_else(
    load: Callable[..., JanusBackbone], taught: Path, images: Path, tmp_path: Path, update: str
) -> None:
    backbone = load(taught, rollout_guidance=5.0 if update == "regression" else 1.0)
    before = {name: tensor.clone() for name, tensor in backbone.text.model.state_dict().items()}
    paths = {"weights": taught, "images": images, "out": tmp_path / "run"}
    config = RunConfig.model_validate({**SETTINGS, **paths, "generate": {"update": update}})
    summary = Trainer(config, backbone).run()
    assert summary.steps_done == 4
    after = backbone.text.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert all("lora_" in name for name in moved)
    assert {role for role in Role if any(f".{role.value}." in name for name in moved)} == set(Role)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["understanding"] * 2 + ["generation"] * 2
    assert all(row["nonfinite"] == 0 for row in rows)
    assert sum(row["skipped"] for row in rows[2:]) < 4
    assert all(row["penalty_generator"] is not None for row in rows[2:])


def test_the_commands_train_ask_solve_and_generate(
    taught: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**SETTINGS, "steps": 1}
    flat = [f"{key}={json.dumps(value)}" for key, value in settings.items() if not isinstance(value, dict)]
    nested = [f"{a}.{b}={v}" for a, part in settings.items() if isinstance(part, dict) for b, v in part.items()]
    run = str(tmp_path / "run")
    assert main(["train", *flat, *nested, f"weights={taught}", f"images={images}", f"out={run}"]) == 0
    capsys.readouterr()
    picture = str(images / "0.png")
    for model in (["--backbone", "janus", "--weights", str(taught)], ["--run", run]):
        assert main(["ask", picture, "--n", "8", *model, "--json"]) == 0
        assert any(row["question"] for row in json.loads(capsys.readouterr().out))
        assert main(["solve", picture, "Is the cat red?", *model, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)
        assert main(["generate", "the red cat", "--n", "2", "--out", str(tmp_path), *model, "--json"]) == 0
        files = [row["file"] for row in json.loads(capsys.readouterr().out)]
        assert [Image.open(file).size for file in files] == [(32, 32)] * 2
