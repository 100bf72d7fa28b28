"""The backbone under test, with the inputs that every check uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from asg_core.backbones.interface import (
    Backbone,
    ImageRequest,
    ImageSample,
    ImageSampling,
    Role,
    TextRequest,
    TextSample,
    TextSampling,
    TokenLogits,
)
from asg_core.backbones.manifest import Capabilities
from asg_core.config.seeding import derive_seed
from asg_core.testing.conformance.violations import Violation

Need = Literal["text", "drawing", "tokens", "flow", "embed", "float32"]
"""What a check needs of a backbone: a capability, a kind of ``image_loss``, or a base in float32."""

_TOLERANCE = {torch.float32: 3e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
PROMPTS = ("What is in the picture?", "Name one thing on the left, and say which colour it has.")
NEW_TOKENS = 6


class BackboneFactory(Protocol):
    """Loads the backbone under test; every call gives a new one with fresh adapters.

    ``functools.partial(asg_core.load_backbone, "mine", weights=DIR)`` is one.
    """

    def __call__(self, **settings: Any) -> Backbone:
        """Load with ``settings``, keywords of :func:`asg_core.load_backbone`, over the factory's own."""
        ...


class Subject:
    """The backbone under test: one instance for all checks, its adapters *awake*, non-zero as after training.

    Args:
        factory: see BackboneFactory.
        image_size: (width, height) that drawn images must have, or None if any one size is right.
        guidance_off: options with which the backbone draws without guidance, or None if there are none.
    """

    def __init__(
        self,
        factory: BackboneFactory,
        image_size: tuple[int, int] | None = None,
        guidance_off: Mapping[str, Any] | None = None,
    ) -> None:
        self.factory, self.image_size, self.guidance_off = factory, image_size, guidance_off
        self.backbone = self.fresh()
        for role in self.roles:
            wake(self.backbone, role)
        self._awake = {role: _copy(self.backbone.trainable(role)) for role in self.roles}

    def fresh(self, **settings: Any) -> Backbone:
        """A new backbone whose adapters have no effect yet."""
        return self.factory(**settings)

    @property
    def roles(self) -> list[Role]:
        """The roles that the capabilities grant."""
        can = self.capabilities
        text = [Role.PROPOSER, Role.SOLVER] if can.text else []
        return [*text, Role.GENERATOR] if can.image_loss is not None else text

    @property
    def capabilities(self) -> Capabilities:
        """As the backbone's manifest declares them."""
        return self.backbone.manifest.capabilities

    @property
    def tolerance(self) -> float:
        """Largest difference of two log-probs, nats, that counts as equal in the base's dtype."""
        return _TOLERANCE.get(self.backbone.dtype, 0.1)

    @property
    def pixel_tolerance(self) -> float:
        """Largest difference of two pixels, 0 to 255, that counts as equal in the base's dtype."""
        return max(1.0, 255 * self.tolerance)

    def lacks(self, needs: Sequence[Need]) -> str | None:
        """Why a check with these needs cannot run, or None if it can."""
        can = self.capabilities
        missing: dict[Need, str] = {}
        if not can.text:
            missing["text"] = "the backbone has no text roles"
        if can.image_loss is None:
            missing["drawing"] = "the backbone does not draw"
        if can.image_loss != "tokens":
            missing["tokens"] = "the backbone does not draw image tokens"
        if can.image_loss != "flow":
            missing["flow"] = "the backbone does not draw by a flow"
        if not can.embed:
            missing["embed"] = "the backbone does not embed"
        if self.backbone.dtype is not torch.float32:
            missing["float32"] = f"it needs a base in float32, this one is {self.backbone.dtype}"
        return next((missing[need] for need in needs if need in missing), None)

    def reset(self) -> None:
        """Undo what a check did to the shared backbone's adapters."""
        for role, weights in self._awake.items():
            restore(self.backbone.trainable(role), weights)

    def sample(
        self, requests: Sequence[TextRequest], *, role: Role | None = Role.SOLVER, temperature: float = 1.0
    ) -> list[TextSample]:
        """Solve ``requests`` on the shared backbone with the kit's length limit."""
        return self.backbone.solve(requests, TextSampling(NEW_TOKENS, temperature), role)

    def score(
        self, samples: Sequence[TextSample], role: Role | None = Role.SOLVER, **wanted: bool
    ) -> list[TokenLogits]:
        """``token_logits`` without gradient."""
        with torch.no_grad():
            return self.backbone.token_logits(samples, role, **wanted)

    def draw(
        self, requests: Sequence[ImageRequest], *, role: Role | None = Role.GENERATOR, temperature: float = 1.0
    ) -> list[ImageSample]:
        """Draw ``requests`` on the shared backbone in the rollout profile."""
        return self.backbone.generate(requests, ImageSampling("rollout", temperature), role)

    @staticmethod
    def _can(backbone: Backbone, role: Role) -> bool:
        can = backbone.manifest.capabilities
        return can.image_loss is not None if role is Role.GENERATOR else can.text


def picture(seed: int, width: int = 40, height: int = 32) -> Image.Image:
    """A reproducible RGB picture: coloured blocks, different for every seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


def mixed_requests(name: str) -> list[TextRequest]:
    """Requests over two pictures and text only, prompts of different lengths, each its own seed; two share all."""
    images = [picture(1), picture(2), None]
    requests = [TextRequest(prompt, image, 0) for image in images for prompt in PROMPTS]
    requests.append(requests[0])
    return [TextRequest(r.prompt, r.image, derive_seed("conformance", name, i)) for i, r in enumerate(requests)]


def drawing_requests(count: int = 3) -> list[ImageRequest]:
    """``count`` prompts of different lengths, each with its own seed; the last two of three share the prompt."""
    prompts = ["a red circle left of a blue square", *["a dog"] * (count - 1)]
    return [ImageRequest(prompt, derive_seed("conformance", "draw", i)) for i, prompt in enumerate(prompts)]


def wake(backbone: Backbone, role: Role) -> None:
    """Give the adapter of ``role`` an effect: every parameter that is all zero becomes small noise."""
    with torch.no_grad():
        for name, weight in backbone.trainable(role).items():
            if not weight.any():
                stream = torch.Generator().manual_seed(derive_seed("conformance", role.value, name))
                weight.copy_(0.1 * torch.randn(weight.shape, generator=stream))


def restore(weights: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Write ``values`` back and drop gradients; weights that are unchanged are not touched."""
    with torch.no_grad():
        for name, weight in weights.items():
            weight.grad = None
            if not torch.equal(weight, values[name]):
                weight.copy_(values[name])


def close(name: str, got: Tensor | Sequence[float], wanted: Tensor | Sequence[float], tolerance: float) -> None:
    """Raise Violation unless both have one shape and differ by at most ``tolerance``; NaN differs."""
    a, b = (torch.as_tensor(x).detach().cpu().double() for x in (got, wanted))
    if a.shape != b.shape:
        raise Violation(f"{name}: shape {tuple(a.shape)} against {tuple(b.shape)}")
    if a.numel() and not float((a - b).abs().max()) <= tolerance:
        raise Violation(f"{name}: differ by {float((a - b).abs().max()):.2e}, allowed {tolerance:.0e}")


def same_text(name: str, got: Sequence[TextSample], wanted: Sequence[TextSample], tolerance: float) -> None:
    """Raise Violation unless the samples have the same tokens and, within ``tolerance``, the same log-probs."""
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        if a.token_ids != b.token_ids:
            raise Violation(f"{name}, sample {i}: tokens {a.token_ids} against {b.token_ids}")
        close(f"{name}, sample {i}, log-probs", a.logprobs, b.logprobs, tolerance)
        close(f"{name}, sample {i}, entropies", a.entropies, b.entropies, tolerance)


def tensors_of(sample: ImageSample) -> Iterator[tuple[str, Tensor]]:
    """Trajectory, token log-probs and pixels of a drawing, by name."""
    yield from sample.trajectory.items()
    if sample.token_logprobs is not None:
        yield "token_logprobs", sample.token_logprobs
    yield "pixels", torch.from_numpy(np.asarray(sample.image).copy())


def _copy(weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in weights.items()}
