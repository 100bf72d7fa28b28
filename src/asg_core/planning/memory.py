"""Bytes of a training step at its largest moment, and how many images fit.

Upper bounds: every completion runs to its limit, every question is accepted and learned from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from asg_core.planning.shape import ModelShape
from asg_core.prompts import CAPTION_PROMPT, FRAMINGS, QUESTION_PROMPT, SCORING_FRAMINGS, SPEC_PROMPT

if TYPE_CHECKING:
    from asg_core.config import RunConfig

SPEC_QUESTIONS = 3
"""Questions of a drawing spec at most (``prompts.parse_spec``)."""

ADAPTER_SETS = 3
"""Kept image prefixes: under the Proposer, the Solver and the base."""

SPARE = 64
"""Positions that a growing cache row keeps in reserve (``decoding.cache``)."""

VOCABULARY_ROWS = 128
"""Rows of vocabulary-wide float32 logits at a time (``decoding.vocabulary``)."""


@dataclass(frozen=True)
class Workload:
    """Token counts of one step for a model, a configuration and an image size.

    Attributes:
        image: positions of an image prefix.
        question: of the instruction to ask; ``spec``, ``caption`` likewise.
        framed: of a question of the longest allowed length under the longest framing.
        drawn: positions of a drawn candidate's prefix; 0 if the model cannot draw.
    """

    image: int
    question: int
    framed: int
    spec: int
    caption: int
    drawn: int

    @classmethod
    def of(cls, shape: ModelShape, config: RunConfig, size: tuple[int, int]) -> Workload:
        """Count for images of ``size`` (width, height) in pixels."""
        longest = max(shape.prompt_tokens(framing.replace("{question}", "")) for framing in FRAMINGS)
        return cls(
            image=shape.see(*size).tokens,
            question=shape.prompt_tokens(QUESTION_PROMPT),
            framed=longest + config.ask.max_new_tokens,
            spec=shape.prompt_tokens(SPEC_PROMPT),
            caption=shape.prompt_tokens(CAPTION_PROMPT),
            drawn=shape.see(*shape.drawing.size).tokens if shape.drawing else 0,
        )


@dataclass(frozen=True)
class StepMemory:
    """Bytes on the device.

    Attributes:
        weights: frozen base.
        adapters: all roles, float32, and over a 16-bit base as much again for what it computes with.
        optimiser: two float32 moments of every role that learns, and the gradients of the largest one.
        prefixes: kept keys and values of images.
        cache: keys and values while answers are decoded, prompts and growing rows together.
        reading: workspace of the pass that reads the images under all policies, before anything else.
        activations: saved for the largest backward pass.
        drawing: workspace of candidates being drawn; 0 in an understanding step.
        logits: vocabulary-wide rows.
    """

    weights: int
    adapters: int
    optimiser: int
    prefixes: int
    cache: int
    reading: int
    activations: int
    drawing: int
    logits: int

    @property
    def peak(self) -> int:
        """What is always there, and the largest of what comes one after the other."""
        always = self.weights + self.adapters + self.optimiser + self.prefixes + self.logits
        return always + max(self.cache, self.reading, self.activations, self.drawing)


def cache_bytes(shape: ModelShape, nodes: int, rows: int, prefix: int, prompt: int, new: int) -> int:
    """Most keys and values alive while ``rows`` samples are decoded, the kept image prefixes not among them.

    First every prompt holds a copy of its image's prefix and the prefix with the prompt appended. Then every sample
    holds a copy of that, which grows by whole reserves; those of the prompts go as these come.

    Args:
        shape: of the model.
        nodes: distinct prompts of all images together.
        rows: samples.
        prefix, prompt, new: positions of an image prefix, a prompt, and new tokens of a sample.
    """
    grown = prefix + prompt + SPARE * -(-max(new, 1) // SPARE)
    return shape.trunk.kv_bytes * max(nodes * (2 * prefix + prompt), rows * grown)


def understanding_memory(shape: ModelShape, config: RunConfig, size: tuple[int, int], images: int) -> StepMemory:
    """An understanding step of ``images`` images of ``size`` (width, height) pixels."""
    work = Workload.of(shape, config, size)
    k, n = config.ask.questions_per_image, config.solve.framings
    asking = cache_bytes(shape, images, images * k, work.image, work.question, config.ask.max_new_tokens)
    asked = images * k * n
    greedy = images * k if config.ste.reduce != "off" else 0  # rows of prompts that are there already
    solving = cache_bytes(shape, asked, asked + greedy, work.image, work.framed, config.solve.max_new_tokens)
    groups = config.optimiser.groups_per_pass(images * k)
    learning_images = min(images, groups)
    answer = work.framed + config.solve.max_new_tokens
    activations = _text_activations(shape, config, learning_images, work.image, groups * n, answer)
    return StepMemory(
        **_standing(shape, config),
        prefixes=ADAPTER_SETS * images * work.image * shape.trunk.kv_bytes,
        cache=max(asking, solving),
        reading=_workspace(shape, ADAPTER_SETS * images * work.image),
        activations=activations,
        drawing=0,
    )


def _workspace(shape: ModelShape, tokens: int) -> int:
    """Of a pass without gradients over ``tokens`` positions: what one layer would save for a backward pass."""
    return shape.trunk.saved_bytes(tokens, tokens) // shape.trunk.layers


def _text_activations(shape: ModelShape, config: RunConfig, images: int, prefix: int, rows: int, own: int) -> int:
    """Of ``rows`` samples of ``own`` tokens each that share the prefixes of ``images`` images."""
    trunk = shape.trunk
    tokens = images * prefix + rows * own
    context = images * prefix + rows * (prefix + own)
    if not config.gradient_checkpointing:
        return trunk.saved_bytes(tokens, context)
    # kept: every layer's input and the keys and values; recomputed: one layer at a time
    kept = trunk.layers * trunk.width * trunk.itemsize * tokens + trunk.kv_bytes * context
    return kept + trunk.saved_bytes(tokens, context) // trunk.layers


def _standing(shape: ModelShape, config: RunConfig) -> dict[str, int]:
    rates = {
        "proposer": config.optimiser.lr_proposer,
        "solver": config.optimiser.lr_solver,
        "generator": config.optimiser.lr_generator,
    }
    learning = [count for role, count in shape.adapters.items() if rates[role.value] > 0]
    return {
        "weights": shape.weight_bytes,
        "adapters": (4 if shape.trunk.itemsize == 4 else 8) * sum(shape.adapters.values()),
        "optimiser": 8 * sum(learning) + 4 * max(learning, default=0),
        "logits": VOCABULARY_ROWS * shape.trunk.vocabulary * 4 * 2,
    }


def generation_memory(shape: ModelShape, config: RunConfig, size: tuple[int, int], images: int) -> StepMemory:
    """A generation step of ``images`` prompts. Raises ValueError if the model cannot draw."""
    if shape.drawing is None:
        raise ValueError("this model cannot draw")
    work, drawing = Workload.of(shape, config, size), shape.drawing
    asked = SPEC_QUESTIONS * len(SCORING_FRAMINGS)
    candidates = images * config.generate.candidates
    answer, caption = config.solve.max_new_tokens, config.solve.caption_max_new_tokens
    judged, prompt = candidates * (asked + 1), max(work.framed, work.caption)  # answers and captions are one batch
    groups = config.optimiser.groups_per_pass(images)
    learning = groups * config.generate.candidates
    activations = learning * drawing.loss_bytes
    if config.gradient_checkpointing:
        activations = activations // max(drawing.loss_layers, 1) * 2
    return StepMemory(
        **_standing(shape, config),
        prefixes=(2 * images * work.image + candidates * work.drawn) * shape.trunk.kv_bytes,
        cache=max(
            cache_bytes(shape, images, images, work.image, work.spec, config.ask.spec_max_new_tokens),
            cache_bytes(shape, images * asked, images * asked, work.image, work.framed, answer),
            cache_bytes(shape, judged, judged, work.drawn, prompt, max(answer, caption)),
        ),
        reading=_workspace(shape, max(2 * images * work.image, candidates * work.drawn)),
        activations=activations,
        drawing=min(candidates, drawing.batch) * drawing.bytes_per_image + drawing.bytes_once,
    )


def images_that_fit(shape: ModelShape, config: RunConfig, size: tuple[int, int], memory: int, *, kind: str) -> int:
    """The most images of one step of ``kind`` ("understanding" or "generation") whose peak is at most ``memory`` bytes.

    0 if not even one fits; 4096 is not exceeded.
    """
    needs = understanding_memory if kind == "understanding" else generation_memory
    low, high = 0, 4096
    while low < high:
        middle = (low + high + 1) // 2
        if needs(shape, config, size, middle).peak <= memory:
            low = middle
        else:
            high = middle - 1
    return low
