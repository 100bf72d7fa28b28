"""The core's conformance checks on the recorded tiny checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from asg_core.backbones.interface import Backbone
from asg_core.backbones.loading import load_backbone
from asg_core.backbones.manifest import LoraSettings
from asg_core.testing import BackboneConformance

CHECKPOINT = Path(__file__).parent / "fixtures" / "golden" / "ckpt"
SMALL = {"resolution": "0.06M"}


class TestVargpt(BackboneConformance):
    guidance_off: ClassVar = {"rollout": {**SMALL, "guidance": 1.0}, "quality": SMALL}

    def load(self, **settings: Any) -> Backbone:
        return load_backbone(
            "vargpt",
            weights=CHECKPOINT,
            dtype="float32",
            lora=LoraSettings(rank=4, alpha=8),
            **{"options": {"rollout": SMALL, "quality": SMALL}, **settings},
        )
