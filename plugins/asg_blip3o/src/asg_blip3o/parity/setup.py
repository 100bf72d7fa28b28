"""What the cases run on: the fixture with its loaded checkpoint, a record of what was read of it, the tolerance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image, fromarray
from torch import Tensor

from asg_blip3o.modeling_blip3o import Blip3oModel
from asg_blip3o.options import Blip3oOptions
from asg_blip3o.processing import ImagePatches, Vocabulary, eva_pixels
from asg_blip3o.text import LanguageModel
from asg_blip3o.weights_map import Release, load_model, read_release
from asg_core.testing import ParityRun


@dataclass(frozen=True)
class Stage:
    """What the cases run on: the fixture and its loaded checkpoint."""

    run: ParityRun
    cases: Ledger
    release: Release
    options: Blip3oOptions
    model: Blip3oModel
    vocabulary: Vocabulary
    language: LanguageModel

    def image(self, name: str) -> Image:
        """A recorded uint8 image."""
        return fromarray(self.run.tensor(name).numpy(), "RGB")

    def eva_pixels(self, images: list[Image]) -> Tensor:
        """Images as the EVA-CLIP tower of this checkpoint sees them."""
        assert self.model.eva is not None
        processor = self.language.patches.processor
        return eva_pixels(images, self.model.eva.dims.image_size, processor.image_mean, processor.image_std)


def open_stage(run: ParityRun) -> Stage:
    """Load the fixture's checkpoint, which lies in ``checkpoint/`` in the released layout."""
    release = read_release(run.fixture / "checkpoint")
    options = Blip3oOptions(
        real_image_target=True,
        eva_head_width=run.value("eva_config")["head_width"],
        flow_shift=run.value("flow_scheduler")["shift"],
    )
    dtype = getattr(torch, run.value("dtype"))
    model, report = load_model(release, options, torch.device("cpu"), dtype)
    run.equal("checkpoint: nothing missing or unexpected", (report.missing, report.unexpected), ((), ()))
    vocabulary = Vocabulary(release.folder)
    patches = ImagePatches(release.folder, options.min_image_side, options.max_image_side)
    language = LanguageModel(model, vocabulary, patches)
    return Stage(run, Ledger(run, "cases"), release, options, model, vocabulary, language)


def groups(run: ParityRun, prefix: str) -> list[str]:
    """Case names such as und0 or gen.cond from the tensors' names."""
    depth = prefix.count(".") + 1
    return sorted({".".join(name.split(".")[:depth]) for name in run.names(prefix)})


class Ledger:
    """One manifest entry with nested values; each leaf must be taken.

    Args:
        run: the run that reports.
        key: top-level manifest key.
    """

    def __init__(self, run: ParityRun, key: str) -> None:
        self.run, self.key = run, key
        self.values: dict[str, Any] = run.value(key)
        self._left = set(_leaves(self.values, ()))

    def take(self, *path: str) -> Any:
        """The value at ``path``; marks it and all below it as read. Raises KeyError if there is none."""
        value: Any = self.values
        for part in path:
            value = value[part]
        self._left = {leaf for leaf in self._left if leaf[: len(path)] != path}
        return value

    def finish(self) -> None:
        """Report every value that nothing read as a failed case."""
        for leaf in sorted(self._left):
            self.run.equal(f"unknown case {'.'.join((self.key, *leaf))}", "not read", "read")


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _leaves(below, (*path, key))
    else:
        yield path


def close(run: ParityRun, name: str, actual: Tensor | float, expected: Tensor | float) -> None:
    """Compare at the fixture's tolerance: 1e-4 of the expectation's largest magnitude."""
    largest = float(expected.abs().max()) if isinstance(expected, Tensor) else abs(expected)
    run.close(name, actual, expected, 1e-4 * max(largest, 1e-6))
