"""Bytes of a training step at its largest moment, and how many images fit.

Upper bounds: every completion runs to its limit, every question is accepted and learned from.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace

from asg_core.backbones.interface import Role
from asg_core.config.schema import RunConfig
from asg_core.method.prompts import CAPTION_PROMPT
from asg_core.planning.shape import Drawing, ModelShape
from asg_core.planning.workload import (
    SPEC_ANSWERS,
    TextCall,
    compiled_decoding_bytes,
    decoding_bytes,
    generation_calls,
    logits_bytes,
    prompt_cache_bytes,
    slot_bytes,
    understanding_calls,
)


@dataclass(frozen=True)
class StepMemory:
    """Bytes on the device. The first five are there all the time, of the others one after the other.

    Attributes:
        weights: frozen base.
        adapters: all roles, float32, and over a 16-bit base as much again for what it computes with.
        optimizer: two float32 moments of every role that learns, as after the first update of each.
        prefixes: kept keys and values of images, and what the vision tower made of them.
        slots: where ``compile_decode`` is on, fixed places of samples, as many as the largest call needs.
        reading: while images are read, under several policies side by side.
        decoding: while questions, answers or captions are sampled: keys and values of prompts and growing rows, and the
            pass that reads the prompts or the logits that tokens are drawn from.
        drawing: while candidates are drawn; 0 in an understanding step.
        learning: in the largest update: gradients of the role, activations and what is computed beside them.
    """

    weights: int
    adapters: int
    optimizer: int
    prefixes: int
    slots: int
    reading: int
    decoding: int
    drawing: int
    learning: int

    @property
    def peak(self) -> int:
        """What is always there, and the largest of what comes one after the other."""
        always = self.weights + self.adapters + self.optimizer + self.prefixes + self.slots
        return always + max(self.reading, self.decoding, self.drawing, self.learning)


def understanding_memory(shape: ModelShape, config: RunConfig, size: tuple[int, int], images: int) -> StepMemory:
    """An understanding step of ``images`` images of ``size`` (width, height) pixels."""
    ask, solve = understanding_calls(shape, config, size, images)
    learning = config.optimizer.lr_proposer > 0 or config.optimizer.lr_solver > 0
    policies = 2 + learning  # an update needs the base policy too
    return StepMemory(
        **_standing(shape, config),
        prefixes=_prefix_bytes(shape, images, ask.prefix, policies),
        reading=_reading_bytes(shape, images, size, policies),
        **_decoding(shape, config, ask, solve),
        drawing=0,
        learning=max(_proposer_bytes(shape, config, ask), _solver_bytes(shape, config, solve)),
    )


def generation_memory(shape: ModelShape, config: RunConfig, size: tuple[int, int], images: int) -> StepMemory:
    """A generation step of ``images`` prompts. Raises ValueError if the model cannot draw."""
    if shape.drawing is None:
        raise ValueError("this model cannot draw")
    drawing, caption = shape.drawing, shape.prompt_tokens(CAPTION_PROMPT)
    spec, references, judge = generation_calls(shape, drawing, config, size, images)
    candidates = judge.images
    batch = min(candidates, drawing.batch)
    sampling = _decoding(shape, config, spec, references, judge)
    if config.generate.fidelity == "probability":
        rows = candidates * SPEC_ANSWERS
        scoring = _rescoring_bytes(shape, rows, judge.prefix, references.prompt, references.new)
        sampling["decoding"] = max(sampling["decoding"], scoring)
    return StepMemory(
        **_standing(shape, config),
        **sampling,
        prefixes=_prefix_bytes(shape, images, spec.prefix, 2) + _prefix_bytes(shape, candidates, judge.prefix, 1),
        reading=max(
            _reading_bytes(shape, images, size, 2),
            # to compare them, candidates are read once more, with a short prompt, and not kept
            _reading_bytes(shape, candidates, drawing.size, 1, caption)
            + candidates * (judge.prefix + caption) * shape.trunk.kv_bytes,
        ),
        drawing=batch * drawing.cache_per_image + max(batch * drawing.bytes_per_image, drawing.bytes_once),
        learning=_generator_bytes(shape, config, drawing, images),
    )


def _standing(shape: ModelShape, config: RunConfig) -> dict[str, int]:
    learning = [count for role, count in shape.adapters.items() if config.optimizer.rate(role) > 0]
    return {
        "weights": shape.weight_bytes,
        "adapters": (4 if shape.trunk.itemsize == 4 else 8) * sum(shape.adapters.values()),
        "optimizer": 8 * sum(learning),
    }


def _decoding(shape: ModelShape, config: RunConfig, *calls: TextCall) -> dict[str, int]:
    if config.backbone_options.get("compile_decode"):
        return {
            "slots": max(slot_bytes(shape, call) for call in calls),
            "decoding": max(compiled_decoding_bytes(shape, call) for call in calls),
        }
    return {"slots": 0, "decoding": max(decoding_bytes(shape, call) for call in calls)}


def _prefix_bytes(shape: ModelShape, images: int, tokens: int, policies: int) -> int:
    return images * tokens * (policies * shape.trunk.kv_bytes + shape.trunk.width * shape.trunk.itemsize)


def _reading_bytes(shape: ModelShape, images: int, size: tuple[int, int], policies: int, prompt: int = 0) -> int:
    """The vision tower, then one pass for all policies."""
    seen = shape.see(*size)
    return max(images * seen.bytes, shape.trunk.forward_bytes(policies * images, seen.tokens + prompt))


def _rescoring_bytes(shape: ModelShape, rows: int, prefix: int, prompt: int, new: int) -> int:
    """Scoring ``rows`` answers without gradients, each of which reads its prompt with it."""
    cache = prompt_cache_bytes(shape, TextCall(0, rows, rows, prefix, prompt + new, 0))
    return cache + max(shape.trunk.forward_bytes(rows, prompt + new, prefix), logits_bytes(shape, rows * new))


def _proposer_bytes(shape: ModelShape, config: RunConfig, ask: TextCall) -> int:
    """The update of the Proposer from the questions of a step; 0 if it does not learn."""
    k, groups = config.ask.questions_per_image, config.optimizer.groups_per_pass(ask.images)
    scored = replace(ask, images=groups, rows=groups * k)
    if shape.trunk.reads_once(k):
        scored = replace(scored, prefix=ask.prefix + ask.prompt, prompt=0)
    return _update_bytes(shape, config, Role.PROPOSER, _scoring_bytes(shape, config, scored))


def _solver_bytes(shape: ModelShape, config: RunConfig, solve: TextCall) -> int:
    """The update of the Solver from the answers of a step; 0 if it does not learn."""
    groups = config.optimizer.groups_per_pass(solve.images * config.ask.questions_per_image)
    # few answers share a prompt, so each reads it again
    scored = replace(solve, images=min(solve.images, groups), rows=groups * config.solve.framings)
    return _update_bytes(shape, config, Role.SOLVER, _scoring_bytes(shape, config, scored))


def _generator_bytes(shape: ModelShape, config: RunConfig, drawing: Drawing, images: int) -> int:
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


def images_that_fit(needs: Callable[[int], StepMemory], memory: int) -> int:
    """The most images of a step whose peak is at most ``memory`` bytes, where ``needs`` says what so many images need.

    0 if not even one fits; 4096 is not exceeded.
    """
    return bisect_right(range(1, 4097), memory, key=lambda images: needs(images).peak)
