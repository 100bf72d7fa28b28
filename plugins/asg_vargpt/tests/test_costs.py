"""What a step costs, counted on the recorded checkpoint with the core's own step functions."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from asg_vargpt.backbone import VargptBackbone

from asg_core.backbones.loading import load_backbone
from asg_core.testing import BackboneCosts

CHECKPOINT = Path(__file__).parent / "fixtures" / "golden" / "ckpt"
SMALL = {"resolution": "0.06M"}


class TestCosts(BackboneCosts):
    language: ClassVar = "language_model.layers"
    vision: ClassVar = "visual.blocks"

    def load(self) -> VargptBackbone:
        options = {"rollout": SMALL, "quality": SMALL}
        backbone = load_backbone("vargpt", weights=CHECKPOINT, dtype="float32", options=options)
        assert isinstance(backbone, VargptBackbone)
        return backbone

    def test_candidates_are_one_batch(self) -> None:
        """One call of the decoder per scale for both guidance branches of all candidates; the VAE has the last word."""
        costs = self.drawn().costs
        decoder, vae = (costs.network(name, "generate") for name in ("decoder.blocks", "vae.decoder.up_blocks"))
        drawings = len(self.images) * self.candidates
        assert decoder.rows == decoder.passes * 2 * drawings
        assert decoder.passes == 7  # scales of the smallest size
        assert vae.passes == drawings
        assert costs.network(self.language, "generate").passes == 1 + 2 * decoder.passes
