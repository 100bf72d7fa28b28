"""Bytes of the updates of the three roles, beside what is always there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asg_core.backbones.interface import Role
from asg_core.planning.shape import Drawing, ModelShape
from asg_core.planning.workload import Workload, logits_bytes

if TYPE_CHECKING:
    from asg_core.config.schema import RunConfig


def text_role_bytes(shape: ModelShape, config: RunConfig, work: Workload, images: int, role: Role) -> int:
    """The update of the Proposer or the Solver from ``images`` images; 0 if the role does not learn."""
    if config.optimizer.rate(role) == 0:
        return 0
    k, settings = config.ask.questions_per_image, config.optimizer
    if role is Role.PROPOSER:
        groups, new = settings.groups_per_pass(images), config.ask.max_new_tokens
        shared, own = (work.question, 0) if shape.trunk.reads_once(k) else (0, work.question)
        largest = _scoring_bytes(shape, config, groups, work.image + shared, groups * k, new, own)
    else:
        # few answers share a prompt, so each reads it again
        groups, new = settings.groups_per_pass(images * k), config.solve.max_new_tokens
        rows = groups * config.solve.framings
        largest = _scoring_bytes(shape, config, min(images, groups), work.image, rows, new, work.framed)
    return _with_gradients(shape.adapters[role], largest)


def generator_bytes(shape: ModelShape, config: RunConfig, drawing: Drawing, images: int) -> int:
    """The update of the Generator from the candidates of ``images`` prompts; 0 if it does not learn."""
    if config.optimizer.lr_generator == 0:
        return 0
    again, prompts = config.gradient_checkpointing, config.optimizer.groups_per_pass(images)
    of_a_prompt = drawing.loss * config.generate.candidates
    in_a_pass = of_a_prompt if drawing.loss_by_prompt else of_a_prompt * prompts
    kept = (of_a_prompt * prompts).kept(again)
    return _with_gradients(shape.adapters[Role.GENERATOR], kept + in_a_pass.passing(again))


def _with_gradients(parameters: int, largest: int) -> int:
    """float32 gradients, and then the scoring, or AdamW's square roots."""
    return 4 * parameters + max(largest, 4 * parameters)


def _scoring_bytes(
    shape: ModelShape, config: RunConfig, images: int, prefix: int, rows: int, new: int, prompt: int
) -> int:
    """Scoring ``rows`` samples under a role with gradients, then under the base without, and the way back.

    Args:
        images: prefixes, each read once.
        prefix: positions of a prefix.
        rows: samples, all of which have the same number of ``new`` tokens.
        prompt: positions that every sample reads for itself.
    """
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
