"""What a step costs, counted on the recorded checkpoint with the core's own step functions."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from asg_blip3o.backbone import Blip3oBackbone

from asg_core.backbones.loading import load_backbone
from asg_core.testing import BackboneCosts

CHECKPOINT = Path(__file__).parent / "fixtures" / "golden" / "checkpoint"
SMALL = {"flow_steps": 4, "decoder_steps": 3, "height": 32, "width": 32}


class TestCosts(BackboneCosts):
    language: ClassVar = "language_model.layers"
    vision: ClassVar = "visual.blocks"

    def load(self) -> Blip3oBackbone:
        options = {"rollout": SMALL, "quality": SMALL, "eva_head_width": 16}
        backbone = load_backbone("blip3o", weights=CHECKPOINT, dtype="float32", options=options)
        assert isinstance(backbone, Blip3oBackbone)
        return backbone

    def test_candidates_are_one_batch(self) -> None:
        """Both branches of all candidates, and of the decoder's negative, in one call per step."""
        drawings = len(self.images) * self.candidates
        costs = self.drawn().costs
        features, decoder = (costs.network(name, "generate") for name in ("dit.layers", "unet.down_blocks"))
        assert (features.passes, features.rows) == (4, 4 * 2 * (drawings + 1))
        assert (decoder.passes, decoder.rows) == (3, 3 * 2 * drawings)
        assert costs.network(self.language, "generate").passes == 1
