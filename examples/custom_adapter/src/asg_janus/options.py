"""Settings of ``backbone=janus``."""

from __future__ import annotations

from pydantic import Field

from asg_core.backbones.options import BackboneOptions


class JanusOptions(BackboneOptions):
    """Classifier-free guidance g: image logits are unconditional + g * (conditional - unconditional); 1 is none."""

    guidance: float = Field(5.0, ge=1, description="guidance of images to look at; above 1 it doubles the rows")
    rollout_guidance: float = Field(
        5.0, ge=1, description="guidance of training candidates; set 1 with generate.update=policy_gradient"
    )
