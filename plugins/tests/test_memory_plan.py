"""The plan of memory against what real steps keep alive: released widths, two layers of each kind, bfloat16.

Counted is everything that is alive at once on the pretended device, in a step with its updates, in a run whose first
updates are behind it, so that all moments are there.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from asg_core.backbones.interface import Role
from asg_core.config.schema import RunConfig
from asg_core.models.decoding import CompiledDecode
from asg_core.planning.memory import StepMemory, generation_memory, images_that_fit, understanding_memory
from asg_core.training.optimizer import RoleOptimizer
from devkit.pretended_cuda import PretendedCuda, obstacle
from devkit.sizes import at_full_size
from gpu_models import Built, build, pictures
from scripted import endless
from scripted_step import Kind, scripted_step

PLENTY = 2**40
TIGHT = 0.8
"""Of the plan is there at least, of the whole and of what a step adds to the weights."""


@dataclass(frozen=True)
class Case:
    """A step: its kind, images, their side in pixels, and settings other than the shortest possible."""

    kind: Kind
    images: int = 1
    side: int = 448
    settings: dict[str, Any] = field(default_factory=dict)
    compiled: bool = False

    def __str__(self) -> str:
        words = [f"{section}.{key}={value}" for section, some in self.settings.items() for key, value in some.items()]
        return " ".join([f"{self.kind} x{self.images} {self.side}px", *words, *["compiled"] * self.compiled])


UNDERSTANDING, GENERATION = Case("understanding"), Case("generation")
MODELS = {(name, again): (name, again) for name in ("bagel", "blip3o", "vargpt") for again in (False, True)}
"""A model is built once as long as its key is the same object."""
KEPT = [UNDERSTANDING, Case("generation", 2, 224, {"generate": {"candidates": 2}})]
RECOMPUTED = {
    "bagel": [
        Case("understanding", 2, 224, {"solve": {"framings": 4, "max_new_tokens": 20}}),
        Case("understanding", 1, 896, {"optimizer": {"lr_solver": 0.0}, "ste": {"reduce": "off"}}),
        Case("generation", 1, 896, {"generate": {"candidates": 2, "fidelity": "probability"}}),
    ],
    "blip3o": [
        Case("understanding", 8, 224, {"optimizer": {"micro_batch": 2}, "ask": {"questions_per_image": 2}}),
        Case("generation", 2, 224, {"generate": {"candidates": 2}, "optimizer": {"micro_batch": 1}}),
    ],
    "vargpt": [
        Case("understanding", 2, 448, {"optimizer": {"lr_proposer": 0.0, "micro_batch": 1}}),
        Case("understanding", 1, 672, {"optimizer": {"lr_proposer": 0.0, "lr_solver": 0.0}}),
        Case("understanding", 2, 448, compiled=True),
        Case("generation", 1, 448, compiled=True),
        Case("generation", 8, 224, {"generate": {"candidates": 3}, "optimizer": {"lr_proposer": 0.0}}),
        Case("generation", 1, 448, {"optimizer": {"lr_generator": 0.0}, "solve": {"caption_max_new_tokens": 24}}),
    ],
}
"""What is as long in all models is measured on one of them."""


@dataclass(frozen=True)
class Model:
    """A model on the pretended device, and what others hold there."""

    card: PretendedCuda
    built: Built
    others: int
    checkpointing: bool

    def config(self, case: Case) -> RunConfig:
        """The shortest completions, but for a question, which may be as long as the longest scripted one."""
        count = self.built.shape.prompt_tokens
        longest = case.images * 3 if case.kind == "understanding" else None
        asked = count(f"What colour is shape number {longest}?" if longest else "What colour is the background?")
        asked -= count("")
        base: dict[str, Any] = {
            "ask": {"max_new_tokens": asked, "spec_max_new_tokens": 4},
            "solve": {"max_new_tokens": 4, "caption_max_new_tokens": 4},
            "optimizer": {},
            "generate": self.built.backbone.manifest.defaults.get("generate", {}),
            "ste": {},
        }
        sections = {name: {**some, **case.settings.get(name, {})} for name, some in base.items()}
        options = {"compile_decode": case.compiled}
        return RunConfig.model_validate(
            {**sections, "gradient_checkpointing": self.checkpointing, "backbone_options": options}
        )

    def planned(self, case: Case) -> StepMemory:
        """What the plan says."""
        needs = understanding_memory if case.kind == "understanding" else generation_memory
        return needs(self.built.shape, self.config(case), (case.side, case.side), case.images)

    def counted(self, case: Case) -> int:
        """The most bytes that were alive in the step."""
        config, images = self.config(case), pictures(case.images, case.side)
        optimizers = {role: self._trained(role, config) for role in Role}
        model: Any = self.built.backbone
        # slots are what they are whether or not their passes are translated
        model.compiled = CompiledDecode(model.text, lambda run, device: run) if case.compiled else None
        with self.card.count() as counts:
            reports = scripted_step(model, case.kind, images, config, optimizers.__getitem__)
        assert all(report.step.applied == (optimizers[role].lr > 0) for role, report in reports.items())
        return counts.peak_bytes - self.others

    def _trained(self, role: Role, config: RunConfig) -> RoleOptimizer:
        """An optimizer whose first update is behind it."""
        weights, rate = self.built.backbone.trainable(role), 1e-6 if config.optimizer.rate(role) else 0.0
        optimizer = RoleOptimizer(weights, rate, 0.0, 1.0, Accelerator(cpu=True))
        optimizer.step([lambda: torch.stack([weight.sum() for weight in weights.values()]).sum()])
        return optimizer


@pytest.fixture(scope="module")
def device() -> Iterator[PretendedCuda]:
    why = obstacle()
    if why is not None:
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    with PretendedCuda(PLENTY) as card:
        yield card


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, device: PretendedCuda) -> Model:
    """Every adapter has run once, as it has after the first step."""
    name, checkpointing = request.param
    gc.collect()  # the model before
    others = device.memory.live
    built = build(name, "slice", "cuda", "bfloat16", checkpointing=checkpointing)
    endless(built.backbone)
    model = Model(device, built, others, checkpointing)
    model.counted(Case("generation", 1, 224, {"generate": {"candidates": 2}}))
    return model


def _named(given: object) -> str:
    return f"{given[0]}-{'recomputed' if given[1] else 'kept'}" if isinstance(given, tuple) else str(given)


# one model by default; the others, larger images and other settings are measured before a release
ALWAYS = [
    *((MODELS["vargpt", False], case) for case in (Case("understanding", 1, 224), KEPT[1])),
    (MODELS["vargpt", True], UNDERSTANDING),
]
MORE = [
    *((MODELS[name, False], case) for name in RECOMPUTED for case in KEPT),
    *((MODELS[name, True], case) for name, more in RECOMPUTED.items() for case in (UNDERSTANDING, GENERATION, *more)),
]


@pytest.mark.parametrize(
    ("model", "case"),
    at_full_size(ALWAYS, [case for case in MORE if case not in ALWAYS]),
    indirect=["model"],
    ids=_named,
    scope="module",
)
def test_a_step_needs_what_is_planned_and_little_less(model: Model, case: Case) -> None:
    planned, counted = model.planned(case), model.counted(case)
    weights = planned.weights
    assert counted <= planned.peak
    assert counted >= TIGHT * planned.peak
    assert counted - weights >= TIGHT * (planned.peak - weights)


@pytest.mark.parametrize("model", [MODELS["vargpt", True]], indirect=True, ids=_named)
@pytest.mark.parametrize("kind", at_full_size(["understanding"], ["generation"]))
def test_as_many_images_as_are_said_to_fit_do_and_more_do_not(model: Model, kind: str) -> None:
    memory = model.planned(Case(kind, 2)).peak
    assert images_that_fit(lambda images: model.planned(Case(kind, images)), memory) == 2
    assert model.counted(Case(kind, 2)) <= memory < model.counted(Case(kind, 3))
