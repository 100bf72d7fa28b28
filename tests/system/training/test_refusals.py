"""What cannot work is refused by one clear error; what goes wrong in a run ends it well."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from asg_core import RunConfig, Trainer
from asg_core.backbones.interface import Backbone
from asg_core.errors import ConfigError, ImageError, RunFolderError, TrainingStopped
from asg_core.runs.folder import read_json_lines
from asg_core.training.checkpoint_files import newest_good

FEW = {"images_per_step": 2, "generate": {"prompts_per_step": 2, "candidates": 3}, "checkpoint_every_steps": 2}


@pytest.fixture
def start(config: RunConfig, scenes: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """A configuration for one run in ``tmp_path``."""

    def make(out: str = "run", **changes: Any) -> RunConfig:
        return RunConfig.model_validate(
            {**config.model_dump(), "images": scenes, "out": tmp_path / out, **FEW, **changes}
        )

    return make


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of every safetensors file below ``folder``."""
    return {
        f"{file.relative_to(folder)}:{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def metrics(run: Path) -> list[dict[str, Any]]:
    """Metrics without wall times."""
    return [{k: v for k, v in r.items() if k != "seconds"} for r in read_json_lines(run / "metrics.jsonl")]


def test_bad_images_are_quarantined_and_the_run_goes_on(
    start: Callable[..., RunConfig], scenes: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos" / "nested"
    photos.mkdir(parents=True)
    Image.effect_noise((640, 480), 90).convert("RGB").save(photos / "good.jpg")
    Image.linear_gradient("L").convert("RGB").resize((300, 200)).save(photos / "good.webp")
    Image.new("RGB", (1, 1), "red").save(photos / "one.png")
    Image.new("CMYK", (40, 30), (0, 128, 255, 0)).save(photos / "cmyk.jpg")
    whole = (photos / "good.jpg").read_bytes()
    (photos / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "text.png").write_text("this is not an image")
    (photos / "empty.png").touch()
    out = Trainer(start(images=tmp_path / "photos", steps=5)).run().out
    rows = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(Path(r["file"]).name for r in rows) == ["empty.png", "text.png", "truncated.jpg"]
    assert all(r["reason"] for r in rows)
    assert len(metrics(out)) == 5
    Trainer.resume(out, steps=6).run()
    assert len((out / "quarantine.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": "nowhere"}, ImageError, "nowhere"),
        ({"backbone": "tinny"}, Exception, "Did you mean 'tiny'"),
        ({"generate": {"update": "policy_gradient"}, "backbone": "tiny_flow"}, ConfigError, "policy_gradient"),
    ],
)
def test_errors_before_the_start_leave_no_folder(
    changes: dict[str, Any], error: type[Exception], message: str, start: Callable[..., RunConfig]
) -> None:
    config = start(**changes)
    with pytest.raises(error, match=message):
        Trainer(config).run()
    assert config.out is not None
    assert not config.out.exists()


def test_an_empty_image_folder_is_one_clear_error(start: Callable[..., RunConfig], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no usable image"):
        Trainer(start(images=tmp_path / "empty")).run()


def test_a_finished_folder_is_not_overwritten(start: Callable[..., RunConfig]) -> None:
    Trainer(start(steps=1)).run()
    with pytest.raises(RunFolderError, match="already holds a run"):
        Trainer(start(steps=1)).run()


def test_a_stopping_alarm_saves_first(start: Callable[..., RunConfig]) -> None:
    config = start(alarms={"action": "stop", "window": 2, "min_distinct_questions": 1.0, "max_kl": 1e-9}, steps=9)
    assert config.out is not None
    with pytest.raises(TrainingStopped, match=r"kl-drift|repeated-questions"):
        Trainer(config).run()
    done = metrics(config.out)
    assert len(done) < 9
    assert done[-1]["alarms"]
    assert newest_good(config.out / "checkpoints")[1]["step"] == len(done)
    assert (config.out / "report.html").is_file()


class Poisoned:
    """The embedded backbone whose Solver scores turn NaN from a given call on."""

    def __init__(self, inner: Backbone) -> None:
        self.__dict__["inner"] = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def token_logits(self, samples: Any, role: Any, **kwargs: Any) -> Any:
        from dataclasses import replace

        scores = self.inner.token_logits(samples, role, **kwargs)
        return [replace(s, kl=s.kl * float("nan")) if s.kl is not None else s for s in scores]


def test_non_finite_updates_are_counted_leave_the_model_alone_and_stop_the_run(
    start: Callable[..., RunConfig], tiny: Backbone, watch: Callable[[Backbone], Any]
) -> None:
    config = start(steps=9, schedule={"mode": "understanding"}, alarms={"max_nonfinite": 3})
    watched = watch(tiny)
    with pytest.raises(TrainingStopped, match="3 steps in a row"):
        Trainer(config, backbone=Poisoned(tiny)).run()  # type: ignore[arg-type]
    assert config.out is not None
    assert [r["nonfinite"] for r in metrics(config.out)] == [2, 2, 2]
    assert watched.moved() == set()
    state = tensors(config.out / "checkpoints" / "step-000003")
    assert [k for k in state if k.startswith("optimizer")] == []


def test_a_tracker_that_is_not_installed_is_one_clear_error(
    start: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import asg_core.training.setup

    monkeypatch.setattr(asg_core.training.setup, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'asg-core\[wandb\]'"):
        Trainer(start(trackers=("wandb",))).run()


def test_a_start_that_fails_after_the_folder_was_opened_lets_go_of_it(
    start: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while somebody still holds the error, as a notebook does."""
    config = start(steps=1)
    for name in ("TrainState", "check_consistency"):
        with monkeypatch.context() as patch:
            patch.setattr(f"asg_core.training.trainer.{name}", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError) as held:
                Trainer(config) if name == "TrainState" else Trainer.resume(Path(str(config.out)))
        assert held.value
    assert Trainer.resume(Path(str(config.out))).run().steps_done == 1
