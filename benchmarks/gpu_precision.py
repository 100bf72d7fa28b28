"""Is the model right in low precision? A slice of it against float32, with the same weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from asg_core.backbones.interface import Backbone, ImageRequest, ImageSampling, Role, TextRequest, TextSampling
from asg_core.method.prompts import QUESTION_PROMPT
from gpu_models import Scale, build, pictures
from gpu_rows import Row, check
from scripted import endless

SLICE_TOLERANCE = 0.05
"""Largest relative error ||bf16 - fp32|| / ||fp32|| of a slice; bfloat16 has 8 significant bits (0.4 %)."""


def precision(name: str, tiny: bool, device: str, dtype: str) -> Iterator[Row]:
    """A slice of the model (two layers of everything at full width) in ``dtype`` against float32, same weights.

    Weights of the float32 model are the rounded ones, so that only the arithmetic differs.
    """
    scale: Scale = "tiny" if tiny else "slice"
    rough, exact = build(name, scale, device, dtype), build(name, scale, device, "float32")
    _copy_weights(rough.backbone, exact.backbone)
    for built in (rough, exact):
        endless(built.backbone)
    picture = pictures(1, rough.side)[0]
    samples = rough.backbone.solve([TextRequest(QUESTION_PROMPT, picture, s) for s in range(2)], TextSampling(8))
    drawn = rough.backbone.generate([ImageRequest("a red square", 1)], ImageSampling("rollout"))
    found: dict[str, list[torch.Tensor]] = {}
    for built in (rough, exact):
        scores = built.backbone.token_logits(samples, Role.SOLVER, logits=True)
        loss = built.backbone.generation_loss(drawn, [1]).loss
        for key, value in {
            "logits": torch.cat([score.logits for score in scores if score.logits is not None]),
            "Solver gradient": _gradient(built.backbone, Role.SOLVER, torch.cat([s.logprobs for s in scores]).sum()),
            "generation loss": loss.detach(),
            "Generator gradient": _gradient(built.backbone, Role.GENERATOR, loss.sum()),
        }.items():
            found.setdefault(key, []).append(value.float())
    what = "at the fixture's size" if tiny else "two layers at full width"
    for key, pair in found.items():
        yield check("precision", key, _relative(*pair), SLICE_TOLERANCE, "relative", what)


def _gradient(backbone: Backbone, role: Role, loss: torch.Tensor) -> torch.Tensor:
    """All gradients of a role's adapter as one vector."""
    parameters = list(backbone.trainable(role).values())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    return torch.cat([gradient.flatten() for gradient in filled])


def _copy_weights(source: Backbone, target: Backbone) -> None:
    """Wake the adapters of ``source``, then copy everything that it holds into ``target``, whose dtypes stay."""
    there = dict(target.model.named_parameters())  # type: ignore[attr-defined]
    with torch.no_grad():
        for index, (name, parameter) in enumerate(source.model.named_parameters()):  # type: ignore[attr-defined]
            if ".lora_B." in name:
                stream = torch.Generator(parameter.device).manual_seed(index)
                parameter.normal_(std=0.02, generator=stream)
            there[name].copy_(parameter)


def _relative(rough: torch.Tensor, exact: torch.Tensor) -> float:
    return float((rough - exact).norm() / exact.norm())
