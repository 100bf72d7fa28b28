"""The core's conformance checks on a tiny checkpoint of the true architecture."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from asg_janus.tiny_checkpoint import SIDE, write_tiny_checkpoint

from asg_core.backbones.interface import Backbone
from asg_core.backbones.loading import load_backbone
from asg_core.testing import BackboneConformance


@cache
def _checkpoint() -> Path:
    return write_tiny_checkpoint(Path(tempfile.mkdtemp(prefix="asg-janus-")))


class TestJanus(BackboneConformance):
    image_size: ClassVar = (SIDE, SIDE)
    guidance_off: ClassVar = {"guidance": 1.0, "rollout_guidance": 1.0}

    def load(self, **settings: Any) -> Backbone:
        return load_backbone("janus", weights=_checkpoint(), dtype="float32", **settings)
