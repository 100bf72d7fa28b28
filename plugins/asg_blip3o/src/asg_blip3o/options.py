"""The backbone's own settings (``backbone_options=...``) with the original implementation's values as defaults."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from asg_core.backbones.options import BackboneOptions


class Sampler(BaseModel):
    """Both diffusion stages of one image. The original fixes stage 1 at 30 steps and guidance 3."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flow_steps: int = Field(30, ge=1, le=1000, description="stage 1: Euler steps of the feature flow")
    flow_guidance: float = Field(
        3.0, ge=1, description="stage 1: guidance against the all-zero condition; 1 switches it off"
    )
    decoder_steps: int = Field(50, ge=1, le=1000, description="stage 2: steps of the pixel decoder")
    decoder_guidance: float = Field(
        3.0, ge=1, description="stage 2: guidance against the negative features; 1 switches it off"
    )
    height: int = Field(
        1024, ge=8, description="pixels; a multiple of the decoder's total downsampling (32 in the release)"
    )
    width: int = Field(1024, ge=8, description="pixels; as height")


class Blip3oOptions(BackboneOptions):
    """Settings of the BLIP3o backbone."""

    rollout: Sampler = Field(
        Sampler(decoder_steps=25, decoder_guidance=2.0, height=640, width=640),
        description="training candidates: the decoder is 97 % of an image's cost, a reward needs no full size",
    )
    quality: Sampler = Field(Sampler(), description="images a person looks at: the original's defaults")
    negative_seed: int = Field(0, ge=0, description="fixed seed of the decoder's negative features")
    images_per_batch: int = Field(8, ge=1, description="candidates per decoder pass; more are drawn in several passes")
    flow_shift: float = Field(1.0, gt=0, description="shift of the flow schedule; no file of the release holds it")
    drawing: bool = Field(
        True,
        description="false for understanding only: the pixel decoder is not read, the flow network stays on the CPU",
    )
    generator_language_lora: bool = Field(
        False, description="give the generator role LoRA layers on the language model too, not only on the flow network"
    )
    real_image_target: bool = Field(
        False, description="load the EVA-CLIP tower (8.7 GB), needed only for losses on real images"
    )
    eva_head_width: int = Field(112, ge=1, description="attention head width of the EVA-CLIP tower; no tensor shows it")
    latent_grid: int | None = Field(
        None,
        ge=1,
        description="side of the feature grid; none: from the tower's position table, else the square root of n_query",
    )
    max_image_side: int = Field(
        1024, ge=28, description="shown images are scaled down to this many pixels on the long side"
    )
    min_image_side: int = Field(
        56, ge=28, description="shown images are scaled up to this many pixels on the short side"
    )
    allow_unexpected: bool = Field(False, description="accept checkpoint tensors that this model has no place for")
