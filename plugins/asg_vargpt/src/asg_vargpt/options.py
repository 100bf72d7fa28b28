"""The plugin's own options (``backbone_options=...``), with upstream's sampler defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from asg_core.backbones.options import BackboneOptions
from asg_core.errors import ConfigError

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class Sampler(BaseModel):
    """How an image is drawn. Lists hold one value per scale, coarse to fine; a single value holds for all scales."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    resolution: Literal["0.06M", "0.25M", "0.60M", "1M"] = Field(
        "0.25M", description="pixels; square: 256, 512, 768, 1024. The release was trained at 256 and 512 square"
    )
    aspect_ratio: float = Field(1.0, gt=0, description="height / width; the nearest of 15 templates, 3 to 1/3, is used")
    guidance: float | list[float] = Field(
        3.0, description="g; logits are g * conditional + (1 - g) * unconditional; 1: none"
    )
    tau: Positive | list[Positive] = Field(0.5, description="temperature of the logits, before guidance")
    top_k: Count | list[Count] = Field(900, description="keep so many of a bit's two values; 0, 2 and more: both")
    top_p: Fraction | list[Fraction] = Field(
        0.97, description="a bit's unlikelier value is ruled out if its probability is at most 1 - top_p"
    )


class VargptOptions(BackboneOptions):
    """Everything about VARGPT that is not the method's."""

    generation: bool = Field(
        True, description="False loads the understanding half only: 15.5 GiB instead of 20 in bfloat16, cannot draw"
    )
    min_pixels: int = Field(3136, ge=784, description="smaller images are enlarged for the vision tower")
    max_pixels: int = Field(
        1003520, ge=784, description="larger images are shrunk for the vision tower; one token per 784 pixels"
    )
    instruction: str = Field(
        "Please generate an image based on the following caption: {prompt}", description="chat prompt for drawing"
    )
    reply: str = Field("", description="assistant text before the image; the release likes to announce its picture")
    quality: Sampler = Field(Sampler(), description="images to look at")
    rollout: Sampler = Field(Sampler(), description="training candidates")
    draw_batch: int = Field(8, ge=1, description="most images drawn together; guidance doubles the rows")
    generator_adapter: Literal["language_model", "language_model_and_decoder"] = Field(
        "language_model", description="where the Generator's adapter sits"
    )
    loss_average: Literal["bits", "scales"] = Field(
        "bits",
        description="loss and penalty of an image: mean over all bits, where fine scales dominate, or over scale means",
    )
    policy_unit: Literal["bit", "position"] = Field(
        "bit",
        description="what has one probability ratio in the clipped policy gradient: a bit, or the bits of a position "
        "together",
    )

    @model_validator(mode="after")
    def _sensible(self) -> VargptOptions:
        if "{prompt}" not in self.instruction:
            raise ValueError("instruction must contain {prompt}")
        if self.min_pixels > self.max_pixels:
            raise ValueError("min_pixels must not exceed max_pixels")
        return self


def per_scale(name: str, value: float | Sequence[float], scales: int) -> list[float]:
    """One value per scale.

    Raises:
        ConfigError: a list of another length.
    """
    if isinstance(value, int | float):
        return [value] * scales
    if len(value) != scales:
        raise ConfigError(
            f"{name} has {len(value)} values",
            f"the image has {scales} scales",
            f"give one value, or a list of {scales}",
        )
    return list(value)
