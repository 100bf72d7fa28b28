"""What a step costs, counted on the recorded checkpoint with the core's own step functions."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from asg_bagel.backbone import BagelBackbone
from asg_core.config import RunConfig
from asg_core.roles import Role
from asg_core.testing.counting import CountedStep, excess, generation, understanding

from bagel_fixtures import picture

LANGUAGE, VISION = "language_model.model.layers", "vision_model.encoder.layers"
CANDIDATES, STEPS = 3, 50
CONFIG = RunConfig.model_validate(
    {
        "ask": {"max_new_tokens": 12, "spec_max_new_tokens": 16},
        "solve": {"max_new_tokens": 4, "caption_max_new_tokens": 6},
        "generate": {"candidates": CANDIDATES},
        "optimiser": {"lr_proposer": 1e-3, "lr_solver": 1e-3, "lr_generator": 1e-3},
    }
)
IMAGES = [picture(1), picture(2, 44, 60)]


@pytest.fixture(scope="module")
def understood(load: Callable[..., BagelBackbone]) -> CountedStep:
    return understanding(load(), IMAGES, CONFIG)


@pytest.fixture(scope="module")
def drawn(load: Callable[..., BagelBackbone]) -> CountedStep:
    return generation(load(rollout={"num_timesteps": STEPS}), IMAGES, CONFIG)


def test_an_understanding_step_stays_below_its_bars(understood: CountedStep) -> None:
    costs = understood.costs
    assert excess(understood, language=LANGUAGE, vision=VISION) == []
    assert costs.network(VISION).rows == len(IMAGES)
    # Proposer, Solver and base side by side, then under gradients each role alone
    image = understood.prefills[0][1]
    assert [rows for rows, width in understood.prefills if width == image] == [
        3 * len(IMAGES),
        len(IMAGES),
        len(IMAGES),
    ]
    assert costs.backwards == costs.optimiser_steps == {Role.PROPOSER: 1, Role.SOLVER: 1}


def test_a_generation_step_sees_every_picture_once_and_learns_in_one_step(drawn: CountedStep) -> None:
    costs = drawn.costs
    assert excess(drawn, language=LANGUAGE, vision=VISION) == []
    assert drawn.prefills[0][0] == 2 * len(IMAGES)  # Proposer and Solver side by side
    seen = costs.network(VISION, "prefill", "ask", "solve", "score")
    assert (seen.passes, seen.rows) == (2, len(IMAGES) * (1 + CANDIDATES))
    assert costs.backwards == costs.optimiser_steps == {Role.GENERATOR: 1}


def test_candidates_are_one_batch_and_an_image_is_49_network_calls(drawn: CountedStep) -> None:
    """Both guidance branches of all candidates in one call; the third branch equals the second and is not run."""
    network = drawn.costs.network("vae2llm", "generate")
    assert network.passes == STEPS - 1
    images = len(IMAGES) * CANDIDATES
    assert images * (STEPS - 1) < network.rows <= 2 * images * (STEPS - 1)
    prompts = 1  # both specs read alike
    assert drawn.costs.network(LANGUAGE, "generate").passes == STEPS - 1 + prompts
