"""What is replayed: the fixture's checkpoint, loaded, its pictures, and gradient norms by released tensor name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as PilImage
from PIL.Image import Image
from torch import Tensor

from asg_core.models.weights.inventory import read_json
from asg_core.models.weights.loader import LoadReport
from asg_core.testing import ParityRun
from asg_vargpt.modeling_vargpt import Vargpt
from asg_vargpt.processing import image_processor, load_tokenizer, stop_tokens
from asg_vargpt.text import VargptText
from asg_vargpt.weights_map import load_model, slots

HIDDEN, GUIDED, DECODED, RELATIVE = 2e-5, 1e-4, 2e-4, 1e-5
"""Tolerances of FORMAT.md: hidden states and logits, guided logits, decoded pixels; relative, losses and norms."""


@dataclass(frozen=True, eq=False)
class Subject:
    """The loaded checkpoint and its text side."""

    model: Vargpt
    text: VargptText
    report: LoadReport
    directory: Path


def load_subject(run: ParityRun) -> Subject:
    """Load the fixture's checkpoint in float32 with the image limits of its own ``preprocessor_config.json``."""
    directory = run.fixture / "ckpt"
    model, report = load_model(directory)
    limits = read_json(directory / "preprocessor_config.json")
    processor = image_processor(
        limits["min_pixels"], limits["max_pixels"], limits.get("patch_size", 14), limits.get("merge_size", 2)
    )
    tokenizer = load_tokenizer(directory)
    return Subject(model, VargptText(model, tokenizer, processor, stop_tokens(directory, tokenizer)), report, directory)


def picture(run: ParityRun, name: str) -> Image:
    """One of the fixture's pictures."""
    with PilImage.open(run.fixture / name) as image:
        return image.convert("RGB")


@contextmanager
def gradients(subject: Subject, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Let the named released tensors collect gradients inside the block; everything is frozen again afterwards."""
    places = slots(subject.model)
    parameters = {name: places[name].tensor for name in names}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
        parameter.grad = None
    try:
        yield parameters
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None


def compare_norms(run: ParityRun, name: str, expected: Mapping[str, float], own: Mapping[str, Tensor]) -> None:
    """Compare Euclidean norms; a tensor without gradient has norm 0."""
    for tensor, norm in expected.items():
        gradient = own[tensor].grad
        actual = 0.0 if gradient is None else float(gradient.double().norm())
        run.close(f"{name} {tensor}", actual, norm, RELATIVE * max(abs(norm), 1e-3))
