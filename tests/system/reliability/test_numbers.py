"""What is not finite, without variance, or too large for memory changes no bit of the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from asg_core import RunConfig, Trainer
from asg_core.backbones.interface import Role
from asg_core.errors import OutOfMemory, TrainingStopped
from asg_core.runs.console import TrainingDisplay
from asg_core.training.checkpoint_files import newest_good
from devkit.sizes import at_full_size


def bits(trainer: Trainer) -> dict[str, bytes]:
    """Every weight and moment, as bytes: NaN equals itself here."""
    return {
        f"{role.value}.{name}": tensor.detach().numpy().tobytes()
        for role, optimizer in trainer.state.optimizers.items()
        for name, tensor in {**optimizer.parameters, **optimizer.state()}.items()
    }


def times(call: Callable[..., Any], value: float, *fields: str) -> Callable[..., Any]:
    """``call``, with fields of the records that it returns multiplied by ``value``."""

    def changed(*arguments: Any, **options: Any) -> Any:
        found = call(*arguments, **options)
        one = lambda record: replace(record, **{f: getattr(record, f) * value for f in fields})  # noqa: E731
        return [one(r) for r in found] if isinstance(found, list) else one(found)

    return changed


def poison(place: str, value: float, trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
    """From now on ``value`` appears in one place."""
    backbone: Any = trainer.backbone
    if place == "sampled logits":
        import asg_core.models.decoding.sampling as sampling

        real = sampling.raw_logits
        patch.setattr(sampling, "raw_logits", lambda *a: real(*a) * value)
    elif place == "scored logits":
        import asg_core.models.decoding.scoring as scoring

        score = scoring.raw_logits
        patch.setattr(scoring, "raw_logits", lambda *a: score(*a) * value)
    elif place == "proposer reward":
        import asg_core.method.understanding as step

        reward = step.proposer_reward
        patch.setattr(step, "proposer_reward", lambda *a: replace(reward(*a), value=value))
    elif place == "solver reward":
        import asg_core.method.understanding as step

        patch.setattr(step, "solver_rewards", lambda vote: [value] * len(vote.labels))
        patch.setattr(step, "solver_learns", lambda *a: True)
    elif place == "generator reward":
        import asg_core.method.generation as drawing

        patch.setattr(drawing, "generation_reward", lambda *a: value)
    elif place == "text loss":
        patch.setattr(backbone, "token_logits", times(backbone.token_logits, value, "kl"))
    elif place == "image loss":
        patch.setattr(backbone, "generation_loss", times(backbone.generation_loss, value, "penalty"))
    elif place == "gradient":
        for optimizer in trainer.state.optimizers.values():
            for weight in optimizer.parameters.values():
                weight.register_hook(lambda gradient: gradient * value)
    elif place == "moment":
        for optimizer in trainer.state.optimizers.values():
            for state in list(optimizer._adam.state.values())[:1]:  # none where the role has not learned yet
                state["exp_avg"].view(-1)[0] = value
    else:
        raise AssertionError(place)


class At(TrainingDisplay):
    """Does something after the given step."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        import io

        self.out = io.StringIO()
        super().__init__(9, stream=self.out, interactive=False)
        self._when, self._action = step, action

    def step(self, metrics: Any) -> None:
        super().step(metrics)
        if metrics["step"] == self._when:
            self._action()


PLACES = [
    ("sampled logits", "understanding"),
    ("scored logits", "understanding"),
    ("proposer reward", "understanding"),
    ("solver reward", "understanding"),
    ("text loss", "understanding"),
    ("gradient", "understanding"),
    ("moment", "understanding"),
    ("generator reward", "generation"),
    ("image loss", "generation"),
    ("gradient", "generation"),
    ("moment", "generation"),
]
BOTH = (math.nan, math.inf)
ONE_EACH = [(*place, BOTH[i % 2]) for i, place in enumerate(PLACES)]
THE_OTHERS = [(*place, BOTH[1 - i % 2]) for i, place in enumerate(PLACES)]
SHARED = ("sampled logits", "solver reward", "gradient", "moment", "image loss")
"""Of these, which are treated as others are, the Generator's own are tried by default."""
ALWAYS = [case for case in ONE_EACH if case[:2] not in {(place, "understanding") for place in SHARED}]
MORE = [case for case in (*ONE_EACH, *THE_OTHERS) if case not in ALWAYS]


@pytest.mark.parametrize(("place", "mode", "value"), at_full_size(ALWAYS, MORE))
def test_non_finite_values_change_no_bit_are_counted_shown_and_stop_the_run(
    place: str, mode: str, value: float, small: Callable[..., RunConfig], metrics: Any
) -> None:
    config = small(steps=9, schedule={"mode": mode}, alarms={"max_nonfinite": 2}, images_per_step=2)
    before: dict[str, bytes] = {}
    with pytest.MonkeyPatch.context() as patch:

        def act() -> None:
            poison(place, value, trainer, patch)
            before.update(bits(trainer))

        display = At(2, act)
        trainer = Trainer(config, display=display)
        with pytest.raises(TrainingStopped, match="2 steps in a row had non-finite values"):
            trainer.run()
    assert config.out is not None
    if place == "proposer reward" or place == "solver reward":
        # the other role's rewards are fine, and it goes on learning
        other = "solver" if place.startswith("proposer") else "proposer"
        before = {k: v for k, v in before.items() if not k.startswith(other)}
    now = bits(trainer)
    assert any(key.endswith("exp_avg") for key in before)
    assert [key for key in before if now[key] != before[key]] == []
    counted = [r["nonfinite"] for r in metrics(config.out)]
    assert counted[:2] == [0, 0]
    assert len(counted) == 4
    assert min(counted[2:]) >= 1
    assert display.out.getvalue().count("non-finite dropped") == 2
    assert "non-finite dropped" in (config.out / "report.html").read_text()


@pytest.mark.parametrize("mode", ["understanding", "generation"])
def test_equal_rewards_change_no_bit_in_spite_of_momentum_and_weight_decay(
    mode: str, small: Callable[..., RunConfig], metrics: Any
) -> None:
    config = small(
        steps=4,
        schedule={"mode": mode},
        optimizer={"lr_proposer": 1e-2, "lr_solver": 1e-2, "lr_generator": 1e-2, "weight_decay": 0.5},
        images_per_step=2,
    )
    before: dict[str, bytes] = {}
    with pytest.MonkeyPatch.context() as patch:

        def act() -> None:
            import asg_core.method.generation as drawing
            import asg_core.method.understanding as step

            reward = step.proposer_reward
            patch.setattr(step, "proposer_reward", lambda *a: replace(reward(*a), value=0.3))
            patch.setattr(step, "GATED", replace(step.GATED, value=0.3))
            patch.setattr(step, "solver_rewards", lambda vote: [0.7] * len(vote.labels))
            patch.setattr(drawing, "generation_reward", lambda *a: 0.5)
            before.update(bits(trainer))

        trainer = Trainer(config, display=At(2, act))
        trainer.run()
    assert any(key.endswith("exp_avg") for key in before)
    assert bits(trainer) == before
    assert config.out is not None
    assert [r["zero_variance_share"] for r in metrics(config.out)[2:]] == [1.0, 1.0]
    assert [r["nonfinite"] for r in metrics(config.out)] == [0] * 4


# -- out of memory ----------------------------------------------------------------------------------------------------


def failing(error: Exception, at_step: int, role: Role | None) -> Callable[..., Any]:
    """A replacement that raises ``error`` from the given step on, for ``role`` if it is one of several."""

    def call(real: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if call.step >= at_step and (role is None or role in arguments):  # type: ignore[attr-defined]
            raise error
        return real(*arguments, **options)

    call.step = 0  # type: ignore[attr-defined]
    return call


CUBLAS = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
FAILURES = [
    ("token_logits", 3, Role.SOLVER, torch.OutOfMemoryError("CUDA out of memory")),  # the Proposer has moved by then
    ("generation_loss", 4, None, RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory")),
    ("ask", 3, None, ZeroDivisionError("a defect of the plugin")),
]
MORE_FAILURES = [
    ("generate", 4, None, CUBLAS),
    ("ask", 3, None, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")),
    ("solve", 3, None, RuntimeError("MPS backend out of memory")),
    ("generate", 4, None, MemoryError()),
    ("embed", 4, None, torch.OutOfMemoryError("HIP out of memory")),
]


@pytest.mark.parametrize(("name", "step", "role", "error"), at_full_size(FAILURES, MORE_FAILURES))
def test_a_step_that_fails_leaves_the_state_of_the_step_before_saved(
    name: str,
    step: int,
    role: Role | None,
    error: Exception,
    small: Callable[..., RunConfig],
    scripted: Any,
    tiny: Any,
    metrics: Any,
    straight: Path,
) -> None:
    config = small("failed", checkpoint_every_steps=10)
    call = failing(error, step, role)
    before: dict[str, bytes] = {}

    def finished() -> None:
        call.step = step  # type: ignore[attr-defined]
        before.update(bits(trainer))

    trainer = Trainer(config, backbone=scripted(tiny, **{name: call}), display=At(step - 1, finished))
    expected = type(error) if isinstance(error, ZeroDivisionError) else OutOfMemory
    with pytest.raises(expected) as raised:
        trainer.run()
    assert bits(trainer) == before
    if isinstance(raised.value, OutOfMemory):
        for knob in ("images_per_step", "optimizer.micro_batch=auto", "gradient_checkpointing", "generate.candidates"):
            assert knob in raised.value.fix
        assert "max_new_tokens" in raised.value.fix
        assert f"step {step}" in raised.value.what
    assert config.out is not None
    _found, state, errors = newest_good(config.out / "checkpoints")
    assert (state["step"], errors) == (step - 1, [])
    assert metrics(Trainer.resume(config.out).run().out) == metrics(straight)


def test_out_of_memory_in_the_evaluation_is_the_same_message(
    small: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluation(request: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("asg_core.training.finish.resolve", lambda target: evaluation)
    with pytest.raises(OutOfMemory, match="out of memory in the evaluation"):
        Trainer(small(evaluate=True)).run()
