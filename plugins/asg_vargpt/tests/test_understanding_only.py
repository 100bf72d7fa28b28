"""A backbone without its generation half: smaller, answers as the whole one does, and says that it cannot draw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from asg_vargpt.backbone import VargptBackbone
from PIL import Image

from asg_core.backbones.interface import ImageRequest, ImageSampling, Role, TextRequest, TextSampling
from asg_core.errors import CapabilityError


def test_it_answers_alike_and_refuses_to_draw(
    load: Callable[..., VargptBackbone], picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    whole, half = load(), load(generation=False)
    request = [TextRequest("What is it?", picture(0), 1)]
    assert whole.solve(request, TextSampling(8))[0].logprobs == half.solve(request, TextSampling(8))[0].logprobs
    own = [name for name, _ in half.model.named_parameters() if not name.startswith("qwen.")]
    assert own == []
    assert half.load_report.complete
    assert len(half.load_report.skipped) + len(half.load_report.matched) == sum(
        len(names) for names in (whole.load_report.matched, whole.load_report.skipped)
    )
    assert half.manifest.capabilities.image_loss is None
    assert set(half.trainable(Role.SOLVER)) == set(whole.trainable(Role.SOLVER))
    for attempt in (
        lambda: half.generate([ImageRequest("a kite", 0)], ImageSampling()),
        lambda: half.generation_loss([], []),
        lambda: half.trainable(Role.GENERATOR),
        lambda: half.save_role(Role.GENERATOR, tmp_path),
    ):
        with pytest.raises(CapabilityError, match="generation=true"):
            attempt()
