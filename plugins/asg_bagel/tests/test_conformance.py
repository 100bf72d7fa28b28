"""The core's conformance checks on the recorded tiny checkpoint."""

from __future__ import annotations

from typing import Any, ClassVar

from asg_core.backbones.interface import Backbone
from asg_core.backbones.loading import load_backbone
from asg_core.testing import BackboneConformance

from bagel_fixtures import GOLDEN, OPTIONS


class TestBagel(BackboneConformance):
    guidance_off: ClassVar = {**OPTIONS, "rollout": {**OPTIONS["rollout"], "text_scale": 1.0}}

    def load(self, **settings: Any) -> Backbone:
        return load_backbone(
            "bagel", weights=GOLDEN / "checkpoint", dtype="float32", **{"options": OPTIONS, **settings}
        )
