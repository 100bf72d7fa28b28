"""What a step costs: the counts that every backbone over the core's decoding reaches."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import ClassVar

from asg_janus.backbone import JanusBackbone
from asg_janus.tiny_checkpoint import write_tiny_checkpoint

from asg_core.backbones.loading import load_backbone
from asg_core.testing import BackboneCosts


class TestCosts(BackboneCosts):
    language: ClassVar = "language_model.layers"
    vision: ClassVar = "vision_model.encoder.layers"

    def load(self) -> JanusBackbone:
        checkpoint = write_tiny_checkpoint(Path(tempfile.mkdtemp(prefix="asg-janus-")))
        backbone = load_backbone("janus", weights=checkpoint, dtype="float32")
        assert isinstance(backbone, JanusBackbone)
        return backbone
