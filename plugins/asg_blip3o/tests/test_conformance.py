"""The core's conformance checks on the recorded tiny checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from asg_core.backbones.interface import Backbone
from asg_core.backbones.loading import load_backbone
from asg_core.backbones.manifest import LoraSettings
from asg_core.testing import BackboneConformance

CHECKPOINT = Path(__file__).parent / "fixtures" / "golden" / "checkpoint"
SMALL = {"flow_steps": 4, "decoder_steps": 3, "height": 32, "width": 32}
UNGUIDED = {**SMALL, "flow_guidance": 1.0, "decoder_guidance": 1.0}


class TestBlip3o(BackboneConformance):
    image_size: ClassVar = (32, 32)
    guidance_off: ClassVar = {"rollout": UNGUIDED, "quality": UNGUIDED, "eva_head_width": 16}

    def load(self, **settings: Any) -> Backbone:
        return load_backbone(
            "blip3o",
            weights=CHECKPOINT,
            dtype="float32",
            lora=LoraSettings(rank=4, alpha=8),
            **{"options": {"rollout": SMALL, "quality": SMALL, "eva_head_width": 16}, **settings},
        )
