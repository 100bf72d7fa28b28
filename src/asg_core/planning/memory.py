"""Bytes of a training step at its largest moment, and how many images fit.

Upper bounds: every completion runs to its limit, every question is accepted and learned from.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asg_core.planning.decoding import compiled_decoding_bytes, decoding_bytes, prompt_cache_bytes, slot_bytes
from asg_core.planning.learning import generator_bytes, proposer_bytes, solver_bytes
from asg_core.planning.shape import ModelShape
from asg_core.planning.workload import SPEC_ANSWERS, TextCall, Workload, logits_bytes

if TYPE_CHECKING:
    from asg_core.config.schema import RunConfig


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
    work = Workload.of(shape, config, size)
    ask, solve = work.understanding_calls(config, images)
    learning = config.optimizer.lr_proposer > 0 or config.optimizer.lr_solver > 0
    policies = 2 + learning  # an update needs the base policy too
    return StepMemory(
        **_standing(shape, config),
        prefixes=_prefix_bytes(shape, images, work.image, policies),
        reading=_reading_bytes(shape, images, size, policies),
        **_decoding(shape, config, ask, solve),
        drawing=0,
        learning=max(proposer_bytes(shape, config, ask), solver_bytes(shape, config, solve)),
    )


def generation_memory(shape: ModelShape, config: RunConfig, size: tuple[int, int], images: int) -> StepMemory:
    """A generation step of ``images`` prompts. Raises ValueError if the model cannot draw."""
    if shape.drawing is None:
        raise ValueError("this model cannot draw")
    work, drawing = Workload.of(shape, config, size), shape.drawing
    candidates = images * config.generate.candidates
    batch = min(candidates, drawing.batch)
    sampling = _decoding(shape, config, *work.generation_calls(config, images))
    if config.generate.fidelity == "probability":
        rows = candidates * SPEC_ANSWERS
        scoring = _rescoring_bytes(shape, rows, work.drawn, work.framed, config.solve.max_new_tokens)
        sampling["decoding"] = max(sampling["decoding"], scoring)
    return StepMemory(
        **_standing(shape, config),
        **sampling,
        prefixes=_prefix_bytes(shape, images, work.image, 2) + _prefix_bytes(shape, candidates, work.drawn, 1),
        reading=max(
            _reading_bytes(shape, images, size, 2),
            # to compare them, candidates are read once more, with a short prompt, and not kept
            _reading_bytes(shape, candidates, drawing.size, 1, work.caption)
            + candidates * (work.drawn + work.caption) * shape.trunk.kv_bytes,
        ),
        drawing=batch * drawing.cache_per_image + max(batch * drawing.bytes_per_image, drawing.bytes_once),
        learning=generator_bytes(shape, config, drawing, images),
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


def images_that_fit(needs: Callable[[int], StepMemory], memory: int) -> int:
    """The most images of a step whose peak is at most ``memory`` bytes, where ``needs`` says what so many images need.

    0 if not even one fits; 4096 is not exceeded.
    """
    return bisect_right(range(1, 4097), memory, key=lambda images: needs(images).peak)
