"""The calls of a step that sample texts: how many tokens they read and write, and the bytes that takes.

Bytes are keys and values of prompts and of samples, and what a pass makes beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

from asg_core.config.schema import RunConfig
from asg_core.method.prompts import (
    CAPTION_PROMPT,
    FRAMINGS,
    MAX_SPEC_QUESTIONS,
    QUESTION_PROMPT,
    SCORING_FRAMINGS,
    SPEC_PROMPT,
)
from asg_core.models.limits import CACHE_GROWTH, VOCABULARY_ROWS, slots_size
from asg_core.planning.shape import Drawing, ModelShape

LOGIT_BYTES = 24
"""Of one logit at the largest moment of sampling or scoring: six float32 numbers."""

SPEC_ANSWERS = MAX_SPEC_QUESTIONS * len(SCORING_FRAMINGS)
"""Of a spec's questions about one image, at most."""


@dataclass(frozen=True)
class TextCall:
    """One call that samples text.

    Attributes:
        images: distinct ones.
        nodes: distinct prompts of all images together.
        rows: samples.
        prefix, prompt, new: positions of an image prefix, a prompt, and new tokens of a sample.
    """

    images: int
    nodes: int
    rows: int
    prefix: int
    prompt: int
    new: int

    @property
    def slots(self) -> tuple[int, int]:
        """Rows and positions that compiled passes run over."""
        return slots_size(self.rows, self.prefix + self.prompt + self.new)


def understanding_calls(
    shape: ModelShape, config: RunConfig, size: tuple[int, int], images: int
) -> tuple[TextCall, TextCall]:
    """Questions and answers of a step of ``images`` images of ``size`` (width, height) pixels."""
    image, asking, framed = shape.see(*size).tokens, shape.prompt_tokens(QUESTION_PROMPT), _framed(shape, config)
    questions = images * config.ask.questions_per_image
    prompts = questions * config.solve.framings
    greedy = questions if config.ste.reduce != "off" else 0  # for STE, rows of prompts that are there already
    return (
        TextCall(images, images, questions, image, asking, config.ask.max_new_tokens),
        TextCall(images, prompts, prompts + greedy, image, framed, config.solve.max_new_tokens),
    )


def generation_calls(
    shape: ModelShape, drawing: Drawing, config: RunConfig, size: tuple[int, int], images: int
) -> tuple[TextCall, TextCall, TextCall]:
    """Specs and reference answers of ``images`` images; answers about their candidates, with captions, in one."""
    solve, answers, candidates = config.solve, images * SPEC_ANSWERS, images * config.generate.candidates
    image, drawn, framed = shape.see(*size).tokens, shape.see(*drawing.size).tokens, _framed(shape, config)
    judged, prompt = candidates * (SPEC_ANSWERS + 1), max(framed, shape.prompt_tokens(CAPTION_PROMPT))
    longest = max(solve.max_new_tokens, solve.caption_max_new_tokens)
    return (
        TextCall(images, images, images, image, shape.prompt_tokens(SPEC_PROMPT), config.ask.spec_max_new_tokens),
        TextCall(images, answers, answers, image, framed, solve.max_new_tokens),
        TextCall(candidates, judged, judged, drawn, prompt, longest),
    )


def _framed(shape: ModelShape, config: RunConfig) -> int:
    """Tokens of a question of the longest allowed length under the longest framing."""
    longest = max(shape.prompt_tokens(framing.replace("{question}", "")) for framing in FRAMINGS)
    return longest + config.ask.max_new_tokens


def decoding_bytes(shape: ModelShape, call: TextCall) -> int:
    """While samples are decoded eagerly, the kept image prefixes not among it.

    First the prompts are read: every prompt holds its image's prefix, copied if images have several prompts, and the
    prefix with the prompt appended. Then every sample holds a copy of that, which grows by whole reserves; those of the
    prompts go as these come.
    """
    trunk = shape.trunk
    samples = sample_cache_bytes(shape, call)
    longer_copy = samples if call.new > CACHE_GROWTH else prompt_cache_bytes(shape, call)
    in_a_layer = longer_copy // trunk.layers
    length = call.prefix + call.prompt + call.new
    passing = max(in_a_layer, logits_bytes(shape, call.rows), trunk.forward_bytes(call.rows, 1, length))
    return max(_reading_bytes(shape, call), samples + passing)


def compiled_decoding_bytes(shape: ModelShape, call: TextCall) -> int:
    """The same where samples are decoded in static slots, not counted here: prompts are let go as they are filled."""
    rows, length = call.slots
    passing = shape.trunk.forward_bytes(rows, 1, length - 1)
    return max(_reading_bytes(shape, call), logits_bytes(shape, call.rows), passing)


def slot_bytes(shape: ModelShape, call: TextCall) -> int:
    """Keys and values of the rows and positions that compiled passes of this call run over; they stay allocated."""
    rows, length = call.slots
    return shape.trunk.kv_bytes * rows * length


def _reading_bytes(shape: ModelShape, call: TextCall) -> int:
    return prompt_cache_bytes(shape, call) + shape.trunk.forward_bytes(call.nodes, call.prompt, call.prefix)


def prompt_cache_bytes(shape: ModelShape, call: TextCall) -> int:
    """Keys and values of prompts that have been read."""
    copied = call.prefix if call.nodes > call.images else 0
    return shape.trunk.kv_bytes * call.nodes * (copied + call.prefix + call.prompt)


def sample_cache_bytes(shape: ModelShape, call: TextCall) -> int:
    """Keys and values of samples in their last eager pass."""
    reserved = CACHE_GROWTH * -(-max(call.new, 1) // CACHE_GROWTH)
    return shape.trunk.kv_bytes * call.rows * (call.prefix + call.prompt + reserved)


def logits_bytes(shape: ModelShape, tokens: int) -> int:
    """Of sampling or scoring ``tokens`` tokens, a part of them at a time."""
    return min(tokens, VOCABULARY_ROWS) * shape.trunk.vocabulary * LOGIT_BYTES
