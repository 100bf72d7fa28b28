"""One counted step of each kind, through the method's own functions: what a plugin's cost tests start from.

step = understanding(backbone, images, config)
assert excess(step, language="language_model.layers", vision="visual.blocks") == []
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from peft.tuners.lora import LoraLayer
from PIL.Image import Image

from asg_core.backbones.interface import Backbone, Role
from asg_core.config.schema import RunConfig
from asg_core.data.image_pool import PoolImage
from asg_core.method.context import StepContext
from asg_core.method.generation import generation_step
from asg_core.method.generator_updates import update_generator
from asg_core.method.losses import AdaptiveKl, EmaBaseline
from asg_core.method.records import GenerationItem, UnderstandingItem
from asg_core.method.token_entropy import RollingPercentile
from asg_core.method.understanding import understanding_step
from asg_core.method.updates import Learner, UpdateReport, proposer_groups, solver_groups, update_text_role
from asg_core.models.causal import CausalBackbone
from asg_core.models.lora import RoleAdapters
from asg_core.testing.operations import Operations, watched
from asg_core.testing.scripted_text import scripted_text
from asg_core.training.optimizer import RoleOptimizer
from asg_core.training.profiler import Costs, counted

MAX_VOCABULARY_ROWS = 128
SYNCS_PER_PASS = 2
SYNCS_PER_UPDATE = 8

BESIDE_TOKENS = 11
"""Passes of the language model in an understanding step beside one for each new token of a question and of an answer:
one for the images under all policies at once, and for each of two updates at most three under the role and two under
the base."""


@dataclass
class CountedStep:
    """A step and what it cost.

    Attributes:
        config: of the step.
        items: what the step left behind.
        reports: what the update of each role did.
        costs: by phase and network.
        operations: synchronisations and vocabulary-wide tensors.
        prefills: (rows, positions) of every pass of the language model over more than one position, in order.
        wasted: calls of what a hot loop must not call: garbage collections, emptied caches, adapters made or switched
            by PEFT's slow way.
    """

    config: RunConfig
    items: Sequence[UnderstandingItem] | Sequence[GenerationItem]
    reports: dict[Role, UpdateReport]
    costs: Costs
    operations: Operations
    prefills: list[tuple[int, int]] = field(default_factory=list)
    wasted: Counter[str] = field(default_factory=Counter)


def understanding(backbone: CausalBackbone, images: Sequence[Image], config: RunConfig) -> CountedStep:
    """Run one understanding step with both updates; completions are made :func:`scripted_text`."""
    with _counting(backbone, config) as step:
        pool = [PoolImage(Path(f"{i}.png"), image) for i, image in enumerate(images)]
        ctx = StepContext(config, 1)
        items = understanding_step(backbone, pool, ctx, RollingPercentile(), EmaBaseline())
        step.items = items
        for role, groups in ((Role.PROPOSER, proposer_groups(items)), (Role.SOLVER, solver_groups(items))):
            kl = AdaptiveKl(config.policy.beta_start, config.policy.kl_target)
            learner = Learner(role, _optimizer(backbone, role, config), kl)
            step.reports[role] = update_text_role(backbone, groups, learner, ctx)
    return step


def generation(backbone: CausalBackbone, images: Sequence[Image], config: RunConfig) -> CountedStep:
    """Run one generation step with the Generator's update; completions are made :func:`scripted_text`."""
    with _counting(backbone, config) as step:
        pool = [PoolImage(Path(f"{i}.png"), image) for i, image in enumerate(images)]
        ctx = StepContext(config, 1)
        items = generation_step(backbone, pool, ctx)
        step.items = items
        learner = Learner(Role.GENERATOR, _optimizer(backbone, Role.GENERATOR, config))
        step.reports[Role.GENERATOR] = update_generator(backbone, items, learner, ctx)
    return step


def excess(step: CountedStep, *, language: str, vision: str) -> list[str]:
    """The bars that hold for every backbone and are missed by ``step``, in words; an empty list is a pass.

    Synchronisations are judged in understanding steps: drawing reads schedules and trajectories that are on the CPU
    everywhere, and on a CPU nothing tells them from values of the model.

    Args:
        step: from :func:`understanding` or :func:`generation`.
        language: ending of the name of the language model's layers, see :class:`asg_core.training.profiler.Costs`.
        vision: likewise of the vision tower's.
    """
    costs, operations = step.costs, step.operations
    found = [f"{name} was called {n} times" for name, n in step.wasted.items()]
    if operations.rows > MAX_VOCABULARY_ROWS:
        found.append(f"a tensor as wide as the vocabulary has {operations.rows} rows")
    for role, report in step.reports.items():
        backwards, moves = costs.backwards[role], costs.optimizer_steps[role]
        if report.step.applied and (backwards, moves) != (1, 1):
            found.append(f"{role.value}: {backwards} backward passes and {moves} optimizer steps")
    understands = isinstance(next(iter(step.items)), UnderstandingItem)
    # candidates are new images, which the Solver looks at once; drawing and embedding look at what they need
    looks, most = costs.network(vision, "prefill", "ask", "solve", "score", "update").passes, 1 if understands else 2
    if looks > most:
        found.append(f"the vision tower ran {looks} times, not {most}")
    if not understands:
        return found
    passes, most = costs.network(language).passes, step.config.ask.max_new_tokens + step.config.solve.max_new_tokens
    if passes > most + BESIDE_TOKENS:
        found.append(f"{passes} passes of the language model for {most} tokens, more than {BESIDE_TOKENS} beside them")
    for phase in ("ask", "solve"):
        passes = costs.network(language, phase).passes
        if operations.syncs_in(phase) > SYNCS_PER_PASS * passes:
            found.append(f"{phase}: {operations.syncs_in(phase)} synchronisations in {passes} passes")
    updates = sum(costs.optimizer_steps.values())
    if operations.syncs_in("update") > SYNCS_PER_UPDATE * updates:
        found.append(f"{operations.syncs_in('update')} synchronisations in {updates} updates: {operations.syncs}")
    return found


@contextmanager
def _counting(backbone: CausalBackbone, config: RunConfig) -> Iterator[CountedStep]:
    width = backbone.text.head(
        backbone.text.embed_tokens(torch.zeros(1, 1, dtype=torch.long, device=backbone.device))[0]
    )
    prefills: list[tuple[int, int]] = []
    forward = backbone.text.forward

    def noted(embeds: torch.Tensor, *rest: Any) -> torch.Tensor:
        if embeds.shape[1] > 1:
            prefills.append((embeds.shape[0], embeds.shape[1]))
        return forward(embeds, *rest)

    wasted: Counter[str] = Counter()
    with (
        scripted_text(backbone),
        patch.object(backbone.text, "forward", noted),
        _hot_loop(wasted),
        counted(backbone) as costs,
        watched(costs, width.shape[-1]) as operations,
    ):
        yield CountedStep(config, [], {}, costs, operations, prefills, wasted)


@contextmanager
def _hot_loop(wasted: Counter[str]) -> Iterator[None]:
    def noting(owner: Any, name: str) -> Any:
        own = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            wasted[f"{owner.__name__}.{name}"] += 1
            return own(*args, **kwargs)

        return patch.object(owner, name, call)

    with (
        noting(gc, "collect"),
        noting(torch.cuda, "empty_cache"),
        noting(RoleAdapters, "__init__"),
        noting(LoraLayer, "update_layer"),
        noting(LoraLayer, "set_adapter"),
    ):
        yield


def _optimizer(backbone: Backbone, role: Role, config: RunConfig) -> RoleOptimizer:
    settings = config.optimizer
    parameters, accelerator = backbone.trainable(role), Accelerator(cpu=backbone.device.type == "cpu")
    return RoleOptimizer(parameters, settings.rate(role), settings.weight_decay, settings.max_grad_norm, accelerator)
