"""What a step costs, counted on the recorded checkpoint with the core's own step functions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from asg_vargpt.backbone import VargptBackbone
from PIL import Image

from asg_core.config import RunConfig
from asg_core.roles import Role
from asg_core.testing.counting import CountedStep, excess, generation, understanding

LANGUAGE, VISION = "language_model.layers", "visual.blocks"
CANDIDATES = 3
CONFIG = RunConfig.model_validate(
    {
        "ask": {"max_new_tokens": 12, "spec_max_new_tokens": 16},
        "solve": {"max_new_tokens": 4, "caption_max_new_tokens": 6},
        "generate": {"candidates": CANDIDATES},
        "optimiser": {"lr_proposer": 1e-3, "lr_solver": 1e-3, "lr_generator": 1e-3},
    }
)

Load = Callable[..., VargptBackbone]
Picture = Callable[..., Image.Image]


@pytest.fixture(scope="module")
def images(picture: Picture) -> list[Image.Image]:
    return [picture(1), picture(2, 88, 60)]


@pytest.fixture(scope="module")
def understood(load: Load, images: list[Image.Image]) -> CountedStep:
    return understanding(load(), images, CONFIG)


@pytest.fixture(scope="module")
def drawn(load: Load, images: list[Image.Image]) -> CountedStep:
    return generation(load(), images, CONFIG)


def test_an_understanding_step_stays_below_its_bars(understood: CountedStep, images: list[Image.Image]) -> None:
    costs = understood.costs
    assert excess(understood, language=LANGUAGE, vision=VISION) == []
    # Proposer, Solver and base side by side, then under gradients each role alone: the Proposer, whose only prompt is
    # joined to the image, and the Solver
    (_, image), (_, prompt) = understood.prefills[:2]
    wide = [(rows, width) for rows, width in understood.prefills if width in (image, image + prompt)]
    assert wide == [(3 * len(images), image), (len(images), image + prompt), (len(images), image)]
    assert costs.backwards == costs.optimiser_steps == {Role.PROPOSER: 1, Role.SOLVER: 1}


def test_a_generation_step_sees_every_picture_once_and_learns_in_one_step(
    drawn: CountedStep, images: list[Image.Image]
) -> None:
    costs = drawn.costs
    assert excess(drawn, language=LANGUAGE, vision=VISION) == []
    assert drawn.prefills[0][0] == 2 * len(images)  # Proposer and Solver side by side
    assert costs.backwards == costs.optimiser_steps == {Role.GENERATOR: 1}


def test_candidates_are_one_batch(drawn: CountedStep, images: list[Image.Image]) -> None:
    """One call of the decoder per scale for both guidance branches of all candidates; the VAE has the last word."""
    decoder, vae = (drawn.costs.network(name, "generate") for name in ("decoder.blocks", "vae.decoder.up_blocks"))
    drawings = len(images) * CANDIDATES
    assert decoder.rows == decoder.passes * 2 * drawings
    assert decoder.passes == 7  # scales of the smallest size
    assert vae.passes == drawings
    assert drawn.costs.network(LANGUAGE, "generate").passes == 1 + 2 * decoder.passes
