"""Bytes of the updates of the three roles, beside what is always there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from asg_core.backbones.interface import Role
from asg_core.planning.shape import Drawing, ModelShape
from asg_core.planning.workload import TextCall, logits_bytes

if TYPE_CHECKING:
    from asg_core.config.schema import RunConfig


def proposer_bytes(shape: ModelShape, config: RunConfig, ask: TextCall) -> int:
    """The update of the Proposer from the questions of a step; 0 if it does not learn."""
    k, groups = config.ask.questions_per_image, config.optimizer.groups_per_pass(ask.images)
    scored = replace(ask, images=groups, rows=groups * k)
    if shape.trunk.reads_once(k):
        scored = replace(scored, prefix=ask.prefix + ask.prompt, prompt=0)
    return _update_bytes(shape, config, Role.PROPOSER, _scoring_bytes(shape, config, scored))


def solver_bytes(shape: ModelShape, config: RunConfig, solve: TextCall) -> int:
    """The update of the Solver from the answers of a step; 0 if it does not learn."""
    groups = config.optimizer.groups_per_pass(solve.images * config.ask.questions_per_image)
    # few answers share a prompt, so each reads it again
    scored = replace(solve, images=min(solve.images, groups), rows=groups * config.solve.framings)
    return _update_bytes(shape, config, Role.SOLVER, _scoring_bytes(shape, config, scored))


def generator_bytes(shape: ModelShape, config: RunConfig, drawing: Drawing, images: int) -> int:
    """The update of the Generator from the candidates of ``images`` prompts; 0 if it does not learn."""
    again, prompts = config.gradient_checkpointing, config.optimizer.groups_per_pass(images)
    of_a_prompt = drawing.loss * config.generate.candidates
    in_a_pass = of_a_prompt if drawing.loss_by_prompt else of_a_prompt * prompts
    kept = (of_a_prompt * prompts).kept(again)
    return _update_bytes(shape, config, Role.GENERATOR, kept + in_a_pass.passing(again))


def _update_bytes(shape: ModelShape, config: RunConfig, role: Role, largest: int) -> int:
    """float32 gradients, and then the scoring, or AdamW's square roots."""
    parameters = shape.adapters[role]
    return 4 * parameters + max(largest, 4 * parameters) if config.optimizer.rate(role) else 0


def _scoring_bytes(shape: ModelShape, config: RunConfig, call: TextCall) -> int:
    """Scoring the samples of a call under a role with gradients, then under the base without, and the way back.

    Every image's prefix is read once, and the prompt by every sample for itself.
    """
    images, rows, prefix, prompt, new = call.images, call.rows, call.prefix, call.prompt, call.new
    trunk, again = shape.trunk, config.gradient_checkpointing
    own = prompt + new
    shared, after = trunk.activations(images, prefix), trunk.activations(rows, own, prefix)
    before = shared.kept(again)
    if prompt and not again:  # of a prefix's last layer, nobody reads more than keys and values
        before -= shared.layer - (4 + trunk.itemsize) * trunk.width * images * prefix
    # keys and values of the prefixes, of their copies, and of the copies with a sample appended
    copies, appended = rows * prefix * trunk.kv_bytes, rows * (prefix + own) * trunk.kv_bytes
    prefixes = images * prefix * trunk.kv_bytes
    states = prefixes + copies + appended
    if not again:  # what is repeated to all heads is not needed itself
        states = 0 if trunk.shares_heads else prefixes + appended
    norm = 4 * trunk.width * (rows * own + (0 if prompt else images * prefix))  # the last one, in float32
    scored = max(copies + appended + after.forward, logits_bytes(shape, rows * new))
    return max(
        before + after.kept(again) + states + norm + scored,
        before + after.kept(again) + states + after.returning(again),
        # the gradients of keys and values come layer by layer and wait for those of the prefixes
        before + states + appended + after.inputs // trunk.layers + after.layer + after.backward,
        before + 2 * prefixes + shared.returning(again),
    )
