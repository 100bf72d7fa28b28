"""One run on several processes: the same records, the same weights, and an end for all when one of them ends."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from asg_core import RunConfig, Trainer
from asg_core.backbones.interface import Role
from asg_core.runs.folder import read_json_lines
from asg_core.training.checkpoint_files import newest_good

from .conftest import Launch

STEPS = 5
INNER_STEPS = 2
FLOAT = 1e-5
"""Records agree this closely: float32 rounding of one batch against smaller ones. Seen: up to 1.1e-6."""


def settings(config: RunConfig, scenes: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Three images on two processes: uneven shares."""
    return {
        **config.model_dump(mode="json"),
        "images": str(scenes),
        "out": str(out),
        "steps": STEPS,
        "device": "cpu",
        "images_per_step": 3,
        "generate": {"prompts_per_step": 3, "candidates": 2},
        "policy": {"solver_advantage": "ema", "inner_steps": INNER_STEPS},
        "checkpoint_every_steps": 2,
        "sample_every_steps": 1,
        **changes,
    }


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from asg_core.backbones.registry import find_manifest, resolve

    folder = tmp_path_factory.mktemp("scenes")
    resolve(str(find_manifest("tiny").images))(folder, 0)
    for file in sorted(p for p in folder.rglob("*") if p.is_file())[40:]:
        file.unlink()
    return folder


@pytest.fixture(scope="module")
def module_config() -> RunConfig:
    return RunConfig.model_validate(
        {
            "evaluate": False,
            "ask": {"max_new_tokens": 24, "spec_max_new_tokens": 96},
            "solve": {"max_new_tokens": 8},
            "optimizer": {"lr_proposer": 1e-3, "lr_solver": 1e-3, "lr_generator": 1e-3},
        }
    )


@pytest.fixture(scope="module")
def alone(module_config: RunConfig, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("alone") / "run"
    Trainer(RunConfig.model_validate(settings(module_config, scenes, out))).run()
    return out


@pytest.fixture(scope="module")
def together(
    launch: Launch, module_config: RunConfig, scenes: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """The same run in two processes, and what each of them tells."""
    out = tmp_path_factory.mktemp("together") / "run"
    outcomes = launch(2, "train", run=settings(module_config, scenes, out))
    assert [o.get("error") for o in outcomes] == [None, None], outcomes
    return out, [o["result"] for o in outcomes]


@pytest.fixture
def small(module_config: RunConfig, scenes: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Settings of a short run in ``tmp_path``."""
    return lambda **changes: settings(
        module_config, scenes, tmp_path / "run", **{"schedule": {"mode": "understanding"}, "steps": 3, **changes}
    )


def records(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k != "seconds"} for r in read_json_lines(run / "metrics.jsonl")]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {
        f"{role.value} {name}": tensor
        for role in Role
        for name, tensor in load_file(run / "adapters" / role.value / "adapter_model.safetensors").items()
    }


def difference(a: Any, b: Any, where: str = "") -> float:
    """Largest difference of two JSON values' floats; everything else must be equal."""
    if isinstance(a, float) and isinstance(b, float):
        return 0.0 if a == b else abs(a - b)
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        return max((difference(a[k], b[k], f"{where}.{k}") for k in a), default=0.0)
    if isinstance(a, list):
        assert len(a) == len(b), where
        return max((difference(x, y, f"{where}[{i}]") for i, (x, y) in enumerate(zip(a, b, strict=True))), default=0.0)
    assert a == b, where
    return 0.0


def test_metrics_do_not_depend_on_the_number_of_processes(
    alone: Path, together: tuple[Path, list[dict[str, Any]]]
) -> None:
    found = records(together[0])
    assert [r["images"] for r in found] == [3] * STEPS
    assert difference(records(alone), found) < FLOAT


def test_sampled_texts_votes_and_rewards_do_not_depend_on_the_number_of_processes(
    alone: Path, together: tuple[Path, list[dict[str, Any]]]
) -> None:
    """Samples hold the first process's share: two of three images."""
    for step in range(1, STEPS + 1):
        one, two = (json.loads((run / "samples" / f"step-{step:06d}.json").read_text()) for run in (alone, together[0]))
        assert len(two["items"]) == 2
        assert difference(one["items"][: len(two["items"])], two["items"]) < FLOAT


def test_state_does_not_depend_on_the_number_of_processes(
    alone: Path, together: tuple[Path, list[dict[str, Any]]]
) -> None:
    one, two = (newest_good(run / "checkpoints")[1] for run in (alone, together[0]))
    assert len(one["window"]) > 20
    assert one["baseline"] != 0
    assert one["pool"] == two["pool"]
    for key in ("betas", "window", "baseline", "monitor"):
        assert difference(one[key], two[key]) < FLOAT, key


def test_weights_agree_with_one_process_to_rounding(alone: Path, together: tuple[Path, list[dict[str, Any]]]) -> None:
    """Adam divides by the size of a gradient, so where a gradient is nearly 0 its rounding shows. Seen: 0.03 % of the
    weights differ by more than 1e-6; the difference is 1e-4 of what the adapters have moved from zero."""
    one, two = weights(alone), weights(together[0])
    assert one.keys() == two.keys()
    assert all(bool((one[k] != 0).any()) for k in one)
    for role in Role:
        ups = [k for k in one if k.startswith(role.value) and "lora_B" in k]
        moved = sum(float(one[k].double().square().sum()) for k in ups)
        differs = sum(float((one[k] - two[k]).double().square().sum()) for k in ups)
        assert math.sqrt(differs / moved) < 1e-3
    far = torch.cat([(one[k] - two[k]).abs().flatten() > 1e-6 for k in one])
    assert float(far.float().mean()) < 2e-3


def test_all_processes_end_with_the_same_bits(together: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = together[1]
    assert first["digest"] == second["digest"]


def assert_one_collective_per_update(found: list[dict[str, Any]], outcome: dict[str, Any]) -> None:
    updated = [role.value for r in found for role in Role if r.get(f"loss_{role.value}") is not None]
    assert len(outcome["sizes"]) == INNER_STEPS * len(updated)
    for size, role in zip(outcome["sizes"], [role for role in updated for _ in range(INNER_STEPS)], strict=True):
        assert 0 < size - outcome["parameters"][role] < 200  # gradients, and some numbers behind them


def test_each_role_update_is_one_collective_of_all_gradients(together: tuple[Path, list[dict[str, Any]]]) -> None:
    """C12; an update of two inner steps is two."""
    out, outcomes = together
    for outcome in outcomes:
        assert len(outcome["sizes"]) >= 7
        assert_one_collective_per_update(records(out), outcome)


def test_a_run_goes_on_with_another_number_of_processes_some_of_them_idle(
    alone: Path, launch: Launch, small: Callable[..., dict[str, Any]]
) -> None:
    """Two steps on four processes, two on one, the last, which is a generation step, on five: three images each."""
    run = small(schedule={"mode": "alternate"}, steps=2)
    out = Path(run["out"])
    for processes, steps in ((4, 2), (1, 4), (5, 5)):
        done = len(records(out)) if out.exists() else 0
        job = run if steps == 2 else {"resume": run["out"], "steps": steps}
        outcomes = launch(processes, "train", run=job)
        assert all("error" not in o for o in outcomes), outcomes
        for outcome in outcomes if processes > 1 else []:
            assert_one_collective_per_update(records(out)[done:], outcome["result"])
        assert len({o["result"]["digest"] for o in outcomes}) == 1
    assert difference(records(alone), records(out)) < FLOAT


def test_a_sharded_base_gives_the_run_of_a_whole_one_bit_for_bit(
    alone: Path, launch: Launch, small: Callable[..., dict[str, Any]]
) -> None:
    """FSDP2: each process keeps half of every layer, and both do all the work."""
    run = small(schedule={"mode": "alternate"}, steps=STEPS)
    outcomes = launch(2, "train_sharded", run=run)
    assert [o.get("error") for o in outcomes] == [None, None], outcomes
    assert [o["result"]["share"] for o in outcomes] == [0.5, 0.5]
    assert records(Path(run["out"])) == records(alone)
    one, two = weights(alone), weights(Path(run["out"]))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_every_process_has_its_own_global_streams_and_gets_them_back(
    launch: Launch, small: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    run = small(images_per_step=2, steps=4)
    straight = [o["result"] for o in launch(2, "draw_globally", run=run)]
    assert straight[0] != straight[1]
    again = {**run, "out": str(tmp_path / "again")}
    first = [o["result"] for o in launch(2, "draw_globally", run={**again, "steps": 2})]
    second = [o["result"] for o in launch(2, "draw_globally", run={"resume": again["out"], "steps": 4})]
    assert [a + b for a, b in zip(first, second, strict=True)] == straight


def test_a_killed_process_ends_the_others_with_the_last_step_saved(
    launch: Launch, small: Callable[..., dict[str, Any]], alone: Path
) -> None:
    run = small(schedule={"mode": "alternate"}, checkpoint_every_steps=100, steps=5)
    survivor, victim = launch(2, "killed", run=run, in_step=3)
    assert victim == {"exit": -9}
    assert survivor["error"] == "ProcessError"
    assert "another process of this run has ended" in survivor["message"]
    out = Path(run["out"])
    assert newest_good(out / "checkpoints")[1]["step"] == 2
    Trainer.resume(out).run()
    assert difference(records(alone), records(out)) < FLOAT


def test_one_process_that_scores_wrongly_stops_all_before_anything_moves(
    launch: Launch, small: Callable[..., dict[str, Any]]
) -> None:
    run = small()
    bystander, culprit = launch(2, "poisoned", run=run, how="replay")
    assert bystander["error"] == culprit["error"] == "TrainingStopped"
    assert "replayed log-probs differ" in culprit["message"]
    assert "another process stopped this update" in bystander["message"]
    _, state, _ = newest_good(Path(run["out"]) / "checkpoints")
    assert state["step"] == 0


def test_numbers_of_one_process_that_are_not_finite_change_nothing_anywhere(
    launch: Launch, small: Callable[..., dict[str, Any]]
) -> None:
    run = small(steps=2)
    for outcome in launch(2, "poisoned", run=run, how="nan"):
        assert outcome["result"]
        assert all(outcome["result"])
    assert [r["nonfinite"] for r in records(Path(run["out"]))] == [2, 2]


def test_a_single_bit_of_difference_is_found_at_the_next_checkpoint(
    launch: Launch, small: Callable[..., dict[str, Any]]
) -> None:
    run = small()
    for outcome in launch(2, "disagree", run=run):
        assert outcome["error"] == "ProcessError"
        assert "after step 2: process 1 has another state" in outcome["message"]
    assert list((Path(run["out"]) / "checkpoints").iterdir()) == []


def test_processes_with_other_settings_do_not_start(launch: Launch, small: Callable[..., dict[str, Any]]) -> None:
    for outcome in launch(2, "start_apart", run=small()):
        assert outcome["error"] == "ProcessError"
        assert "process 1 has another setting seed" in outcome["message"]
