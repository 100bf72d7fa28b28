"""What a step costs, counted on the recorded checkpoint with the core's own step functions."""

from __future__ import annotations

from typing import ClassVar

from asg_bagel.backbone import BagelBackbone
from asg_core.backbones.loading import load_backbone
from asg_core.testing import BackboneCosts

from bagel_fixtures import GOLDEN, OPTIONS

STEPS = 50


class TestCosts(BackboneCosts):
    language: ClassVar = "language_model.model.layers"
    vision: ClassVar = "vision_model.encoder.layers"

    def load(self) -> BagelBackbone:
        options = {**OPTIONS, "rollout": {"num_timesteps": STEPS}}
        backbone = load_backbone("bagel", weights=GOLDEN / "checkpoint", dtype="float32", options=options)
        assert isinstance(backbone, BagelBackbone)
        return backbone

    def test_candidates_are_one_batch_and_an_image_is_49_network_calls(self) -> None:
        """Both guidance branches of all candidates in one call; the third branch equals the second and is not run."""
        network = self.drawn().costs.network("vae2llm", "generate")
        assert network.passes == STEPS - 1
        drawings = len(self.images) * self.candidates
        assert drawings * (STEPS - 1) < network.rows <= 2 * drawings * (STEPS - 1)
        prompts = 1  # both specs read alike
        assert self.drawn().costs.network(self.language, "generate").passes == STEPS - 1 + prompts
