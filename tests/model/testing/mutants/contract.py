"""Backbones that do not keep to what they declare, or fail without saying why."""

from __future__ import annotations

from asg_core.backbones.interface import Role
from asg_core.backbones.manifest import Capabilities
from asg_core.tiny.backbone import TinyBackbone
from asg_core.tiny.plugin import MANIFEST

from .registry import caught_by


@caught_by("contract.denied")
class DeniesWhatItCan(TinyBackbone):
    """Declares that it cannot embed, and embeds."""

    manifest = MANIFEST.model_copy(update={"capabilities": Capabilities(image_loss="tokens", embed=False)})


@caught_by("contract.typed_errors")
class UntypedErrors(TinyBackbone):
    """A long prompt is an IndexError."""

    def solve(self, requests, sampling, role=Role.SOLVER):
        if any(len(request.prompt) > 1000 for request in requests):
            raise IndexError("index out of range in self")
        return super().solve(requests, sampling, role)
