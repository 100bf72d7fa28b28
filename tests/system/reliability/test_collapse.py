"""Models that collapse ring the named alarm within 20 steps of training, and the configured action follows."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from asg_core import RunConfig, Trainer, load_backbone
from asg_core.backbones.interface import Role, TextSample
from asg_core.backbones.manifest import LoraSettings
from asg_core.errors import TrainingStopped
from asg_core.runs.console import TrainingDisplay
from asg_core.training.checkpoint_files import is_good, steps
from devkit.sizes import at_full_size


def saying(text: str) -> Callable[..., Any]:
    """A replacement for ``ask`` or ``solve``: the sampled tokens stay, the text is always this one."""

    def call(real: Callable[..., Any], *arguments: Any) -> list[TextSample]:
        return [
            replace(s, text=text, pieces=(text, *[""] * (len(s.token_ids) - 1)), finish_reason="stop")
            for s in real(*arguments)
        ]

    return call


def drifting(real: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """A replacement for ``token_logits``: every token is two nats away from the base."""
    return [replace(s, kl=None if s.kl is None else s.kl + 2.0) for s in real(*arguments, **options)]


COLLAPSES = at_full_size(
    [
        ("constant-answers", {"solve": saying("red")}),
        ("no-questions", {"ask": saying("...")}),
        ("kl-drift", {"token_logits": drifting}),
    ],
    [("no-answers", {"solve": saying("")}), ("repeated-questions", {"ask": saying("what is in this picture?")})],
)


@pytest.mark.parametrize(("alarm", "script"), COLLAPSES, ids=[name for name, _ in COLLAPSES])
def test_a_collapse_rings_its_alarm_within_twenty_steps(
    alarm: str,
    script: dict[str, Any],
    small: Callable[..., RunConfig],
    scripted: Any,
    tiny: Any,
    messages: Any,
    metrics: Any,
) -> None:
    """With the default window and limits; ``stop`` saves the run first."""
    display, said = messages
    config = small(steps=20, schedule={"mode": "understanding"}, alarms={"action": "stop"}, checkpoint_every_steps=50)
    with pytest.raises(TrainingStopped, match=alarm):
        Trainer(config, scripted(tiny, **script), display).run()
    assert config.out is not None
    rows = metrics(config.out)
    assert len(rows) <= 20
    assert alarm in rows[-1]["alarms"]
    assert not any(row["alarms"] for row in rows[:-1])
    assert any(alarm in m for m in said)
    assert [is_good(p) for p in steps(config.out / "checkpoints")] == [True]
    assert alarm in (config.out / "report.html").read_text()


def test_a_healthy_model_rings_nothing_in_the_same_runs(small: Callable[..., RunConfig], metrics: Any) -> None:
    config = small(steps=14, schedule={"mode": "understanding"}, alarms={"action": "stop"}, images_per_step=2)
    assert [row["alarms"] for row in metrics(Trainer(config).run().out)] == [[]] * 14


def test_a_warning_lets_the_run_go_on(
    small: Callable[..., RunConfig], scripted: Any, tiny: Any, metrics: Any, messages: Any
) -> None:
    config = small(steps=4, schedule={"mode": "understanding"}, alarms={"window": 2})
    out = Trainer(config, scripted(tiny, solve=saying("red")), messages[0]).run().out
    assert [bool(row["alarms"]) for row in metrics(out)] == [False, True, True, True]
    assert sum("alarm after step" in m for m in messages[1]) == 3


class Between(TrainingDisplay):
    """Looks at the trainer after each step's record, hence after a rollback."""

    trainer: Trainer

    def __init__(self, stop_after: int = 0) -> None:
        import io

        super().__init__(20, stream=io.StringIO())
        self.seen: dict[int, dict[str, torch.Tensor]] = {}
        self.stop_after = stop_after

    def step(self, metrics: Any) -> None:
        weights = self.trainer.state.optimizers[Role.SOLVER].parameters
        self.seen[metrics["step"]] = {name: w.detach().clone() for name, w in weights.items()}
        if metrics["step"] == self.stop_after:
            os.kill(os.getpid(), signal.SIGTERM)


def collapsing(first: int, last: int) -> Callable[..., Any]:
    """A replacement for ``ask``: in these of its calls, one question is repeated; the model still learns from it."""

    def call(real: Callable[..., Any], *arguments: Any) -> Any:
        call.count += 1  # type: ignore[attr-defined]
        collapsed = first <= call.count <= last  # type: ignore[attr-defined]
        return (saying("what is in this picture?") if collapsed else lambda r, *a: r(*a))(real, *arguments)

    call.count = 0  # type: ignore[attr-defined]
    return call


ROLLBACK = {
    "schedule": {"mode": "understanding"},
    "alarms": {
        "action": "rollback",
        "window": 3,
        "max_constant_answers": 1.0,
        "max_zero_variance": 1.0,
        "min_entropy": 0.0,
        "min_distinct_questions": 0.2,
    },
    "ask": {"max_new_tokens": 16, "questions_per_image": 4},
    "checkpoint_every_steps": 2,
}


def test_rollback_gives_the_roles_of_the_last_good_checkpoint_and_goes_on(
    small: Callable[..., RunConfig], scripted: Any, tiny: Any, metrics: Any
) -> None:
    config = small(steps=10, **ROLLBACK)
    display = Between()
    trainer = display.trainer = Trainer(config, scripted(tiny, ask=collapsing(3, 5)), display)
    out = trainer.run().out
    rows = metrics(out)
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert {row["step"]: row["rolled_back_to"] for row in rows if "rolled_back_to" in row} == {5: 4}
    assert rows[4]["alarms"] == ["repeated-questions"]
    assert all(torch.equal(display.seen[5][k], display.seen[4][k]) for k in display.seen[4])
    assert any(not torch.equal(display.seen[6][k], display.seen[4][k]) for k in display.seen[4])
    # nothing was saved before three silent steps had passed
    assert [p.name for p in steps(out / "checkpoints")] == ["step-000010", "step-000008"]


def test_the_restored_moments_and_controls_are_those_of_the_checkpoint(
    small: Callable[..., RunConfig], scripted: Any, tiny: Any
) -> None:
    config = small(steps=5, **ROLLBACK)
    display = Between()
    trainer = display.trainer = Trainer(config, scripted(tiny, ask=collapsing(3, 5)), display)
    out = trainer.run().out
    stored = load_file(out / "checkpoints" / "step-000004" / "optimizer-solver.safetensors")
    now = trainer.state.optimizers[Role.SOLVER].state()
    assert stored.keys() == now.keys()
    assert all(torch.equal(stored[k], now[k]) for k in stored)
    assert steps(out / "checkpoints")[0].name == "step-000004"


def test_a_rollback_that_does_not_help_stops_the_run(
    small: Callable[..., RunConfig], scripted: Any, tiny: Any, metrics: Any
) -> None:
    config = small(steps=20, **ROLLBACK)
    display = Between()
    display.trainer = Trainer(config, scripted(tiny, ask=collapsing(3, 99)), display)
    with pytest.raises(TrainingStopped, match="repeated-questions") as raised:
        display.trainer.run()
    assert "no other checkpoint to go back to" in raised.value.why
    assert config.out is not None
    rows = metrics(config.out)
    assert [(r["step"], r["rolled_back_to"]) for r in rows if "rolled_back_to" in r] == [(5, 4), (8, None)]
    assert steps(config.out / "checkpoints")[0].name == "step-000004"


def test_an_alarm_before_the_first_checkpoint_stops_the_run(
    small: Callable[..., RunConfig], scripted: Any, tiny: Any
) -> None:
    config = small(steps=9, **{**ROLLBACK, "checkpoint_every_steps": 50})
    with pytest.raises(TrainingStopped, match="repeated-questions"):
        Trainer(config, scripted(tiny, ask=collapsing(1, 99))).run()


def test_a_run_stopped_soon_after_a_rollback_resumes_exactly(
    small: Callable[..., RunConfig], scripted: Any, metrics: Any
) -> None:
    def run(out: str, stop_after: int) -> Any:
        display = Between(stop_after)
        model = scripted(load_backbone("tiny", lora=LoraSettings(rank=2, alpha=4.0)), ask=collapsing(3, 5))
        display.trainer = Trainer(small(out, steps=9, **ROLLBACK), model, display)
        return display.trainer.run()

    straight = run("straight", 0).out
    stopped = run("stopped", 6)
    assert (stopped.interrupted, stopped.steps_done) == (True, 6)
    again = collapsing(3, 5)
    again.count = 4  # type: ignore[attr-defined]
    display = Between()
    fresh = load_backbone("tiny", lora=LoraSettings(rank=2, alpha=4.0))
    display.trainer = Trainer.resume(stopped.out, backbone=scripted(fresh, ask=again), display=display)
    assert metrics(display.trainer.run().out) == metrics(straight)
