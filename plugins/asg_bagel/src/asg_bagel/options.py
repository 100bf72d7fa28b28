"""The plugin's own options (``backbone_options=...``), with upstream's defaults."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from asg_core.backbones.options import BackboneOptions


class Sampler(BaseModel):
    """How an image is drawn (rectified flow, Euler steps, classifier-free guidance).

    ``image_scale`` guides away from the context without images. Upstream's default 1.5 applies to text-to-image too,
    where it amounts to a text scale of 1 + image_scale (text_scale - 1) = 5.5; that is kept, without upstream's third
    forward pass. A text scale <= 1 switches all guidance off, image guidance included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    height: int | None = Field(None, ge=1, description="pixels, a multiple of 16; none: the profile's default")
    width: int | None = Field(None, ge=1, description="pixels, a multiple of 16; none: the profile's default")
    num_timesteps: int = Field(50, ge=2, description="N points of the time grid, N - 1 network evaluations")
    timestep_shift: float = Field(
        3.0, gt=0, description="s in t = s u / (1 + (s - 1) u); larger: more steps at high noise"
    )
    text_scale: float = Field(4.0, ge=0, description="guidance away from the context without text; <= 1: no guidance")
    image_scale: float = Field(1.5, ge=0, description="guidance away from the context without images; <= 1: none")
    interval: tuple[float, float] = Field((0.4, 1.0), description="guided where low < t <= high, t after the shift")
    renorm: Literal["global", "channel", "text_channel"] = Field(
        "global",
        description="shrink the guided velocity to the norm of the conditional one: per image, per token, or per token "
        "before image guidance",
    )
    renorm_min: float = Field(0.0, ge=0, le=1, description="smallest factor of that shrinking")

    @model_validator(mode="after")
    def _ordered(self) -> Sampler:
        if not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise ValueError("interval must satisfy 0 <= low <= high <= 1")
        return self


class BagelOptions(BackboneOptions):
    """Everything about BAGEL that is not the method's."""

    generation: bool = Field(True, description="false: load the understanding half only (16 GB in bfloat16, not 29)")
    vision_longest: int | None = Field(
        None, ge=1, description="longest side the vision tower sees, pixels; none: 980. 448 gives <= 1024 tokens"
    )
    vision_shortest: int = Field(224, ge=1, description="smaller images are enlarged to this short side, pixels")
    quality: Sampler = Field(Sampler(), description="images to look at; size none: the largest, 1024 x 1024")
    rollout: Sampler = Field(Sampler(), description="training candidates; size none: 5/8 of the largest, 640 x 640")
    loss_shift: float = Field(
        1.0, gt=0, description="timestep shift of the generator's loss; upstream fine-tunes with 1"
    )
    draw_batch: int = Field(8, ge=1, description="most images denoised together; guidance doubles the rows")
