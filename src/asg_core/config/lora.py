"""The shape of the role adapters, for configuration files and backbones alike."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class LoraSettings(BaseModel):
    """Shape of every role adapter (METHOD: rank 16, alpha 32). No dropout: it would break replayed log-probs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(16, ge=1, le=1024, description="LoRA rank r")
    alpha: float = Field(32.0, gt=0, description="LoRA scale is alpha / rank")
