"""The options that every backbone over :mod:`asg_core.models.decoding` has; its own options model is a subclass."""

from __future__ import annotations

from pydantic import BaseModel, Field


class BackboneOptions(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """Base of ``backbone_options``: frozen, unknown keys refused. Hand its values on to ``CausalBackbone``."""

    compile_decode: bool = Field(
        False,
        description="compile the passes that sample text token by token (on cuda: replay them as graphs); the first "
        "call of each shape and role takes long",
    )
