"""A recorded fixture next to the model of its own checkpoint, and the comparisons that several kinds of cases share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from asg_bagel.modeling_bagel import Bagel
from asg_bagel.modeling_vae import encode_latent
from asg_bagel.processing import BagelTokenizer, ResizeRule, to_pixels
from asg_bagel.text import SegmentBuilder
from asg_bagel.weights_map import load_model, slots
from asg_core.models.weights.loader import Slot
from asg_core.testing import ParityRun

INFORMATIONAL = ("checks",)
"""Manifest entries that hold no case; ``checks`` are upstream's agreements with itself."""


@dataclass(frozen=True, eq=False)
class Replay:
    """A fixture and the model of its checkpoint.

    Attributes:
        run: the fixture.
        builder: model, tokenizer and the fixture's vision rule.
        vae_rule: how pictures are sized for the autoencoder.
        parameters: by released name.
        tolerance: largest allowed absolute difference.
    """

    run: ParityRun
    builder: SegmentBuilder
    vae_rule: ResizeRule
    parameters: dict[str, Slot]
    tolerance: float

    @property
    def model(self) -> Bagel:
        """The model."""
        return self.builder.model

    def close(self, name: str, actual: Tensor | float, expected: Tensor | float) -> None:
        """Compare at the manifest's tolerance."""
        self.run.close(name, actual, expected, self.tolerance)

    def image(self, name: str) -> Image.Image:
        """A recorded (H, W, 3) uint8 picture."""
        return Image.fromarray(self.run.tensor(name).numpy())

    def encode(self, picture: str, noise: Tensor) -> Tensor:
        """(1, z, h, w) scaled latent of a recorded picture under the autoencoder's transform."""
        pixels = to_pixels(self.vae_rule.resize(self.image(picture)))[None]
        return encode_latent(self.model.vae, pixels, noise)

    def check_gradients(self, case: str, key: str, loss: Tensor, norms: dict[str, float]) -> None:
        """Compare gradient norms of ``loss``, and whole gradients where they were recorded, by released name."""
        recorded = {name.split("/grad/")[1] for name in self.run.names(f"{case}/grad/")}
        names = sorted({*norms, *recorded})
        found = [self.parameters[name].tensor.requires_grad_() for name in names]
        gradients = torch.autograd.grad(loss, found, allow_unused=True)
        for name, parameter, gradient in zip(names, found, gradients, strict=True):
            gradient = torch.zeros_like(parameter) if gradient is None else gradient
            if name in norms:
                self.close(f"{case} {key} {name}", gradient.norm(), norms[name])
            if name in recorded:
                self.close(f"{case} grad {name}", gradient, self.run.tensor(f"{case}/grad/{name}"))

    @contextmanager
    def recorded_layout(self) -> Iterator[Layout]:
        """Note the mask and positions of every forward of the language model inside the block."""
        layout = Layout()
        handle = self.model.language_model.model.register_forward_pre_hook(layout.note)
        try:
            yield layout
        finally:
            handle.remove()


@dataclass(eq=False)
class Layout:
    """Masks and positions as the language model was given them, segment after segment."""

    masks: list[Tensor] = field(default_factory=list)
    positions: list[Tensor] = field(default_factory=list)

    def note(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Forward pre-hook; batch of one."""
        embeds, mask, positions = inputs[:3]
        past = sum(len(p) for p in self.positions)
        shape = (embeds.shape[1], past + embeds.shape[1])
        self.masks.append(torch.ones(shape, dtype=torch.bool) if mask is None else mask[0, 0].expand(shape))
        self.positions.append(positions[0])

    def mask(self) -> Tensor:
        """(L, L) bool over the whole sequence; no segment sees a later one."""
        total = sum(len(p) for p in self.positions)
        return torch.cat([torch.nn.functional.pad(m, (0, total - m.shape[1])) for m in self.masks])


def open_replay(run: ParityRun) -> Replay:
    """Load the fixture's checkpoint in float32 and take transforms and tolerance from its manifest."""
    meta: Mapping[str, Any] = run.value("meta")
    directory = run.fixture / "checkpoint"
    model, _ = load_model(directory)
    dims = meta["dims"]
    builder = SegmentBuilder(model, BagelTokenizer(directory), ResizeRule(*dims["vit_tf"]))
    return Replay(
        run,
        builder,
        ResizeRule(*dims["vae_tf"]),
        slots(model),
        meta["suggested_tolerance"]["atol"],
    )
