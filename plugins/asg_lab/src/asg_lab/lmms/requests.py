"""What an lmms-eval task asks for, in this package's terms; needs nothing of lmms-eval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from PIL import Image

from asg_core.backbones.interface import TextSampling
from asg_core.errors import CapabilityError

SeveralImages = Literal["refuse", "join"]

_SINGLE_PATH = {"top_p": (None, 1), "top_k": (None, 0, -1), "num_beams": (None, 1), "num_return_sequences": (None, 1)}
"""Settings that a backbone does not have, with the values at which they do nothing."""


def text_sampling(generation: Mapping[str, Any], max_new_tokens: int) -> TextSampling:
    """How to sample for a task's ``generation_kwargs``.

    Greedy where ``do_sample`` is false or no temperature above 0 is given. Settings of other models' own are ignored.

    Args:
        generation: the task's settings.
        max_new_tokens: for tasks that set none.

    Raises:
        CapabilityError: the task wants beams or truncated sampling. A greedy answer needs neither ``top_p`` nor
            ``top_k``, which are then ignored.
    """
    temperature = float(generation.get("temperature") or 0.0)
    if generation.get("do_sample") is False:
        temperature = 0.0
    for name, idle in _SINGLE_PATH.items():
        matters = temperature > 0 or name in ("num_beams", "num_return_sequences")
        if matters and generation.get(name) not in idle:
            raise CapabilityError(
                f"the task wants {name}={generation[name]}",
                "a backbone samples one answer from its plain distribution, or takes the greedy one",
                f"override it with lmms-eval's --gen_kwargs {name}={idle[-1]}, and say so with the score",
            )
    return TextSampling(int(generation.get("max_new_tokens") or max_new_tokens), temperature)


def cut_at(text: str, until: str | Sequence[str] | None) -> str:
    """``text`` up to the first of the strings that end an answer."""
    stops = [until] if isinstance(until, str) else list(until or ())
    return text[: min([len(text), *(text.index(stop) for stop in stops if stop and stop in text)])]


def one_image(visuals: Sequence[Any] | None, several: SeveralImages) -> Image.Image | None:
    """The one image of a request, or None for text alone.

    Args:
        visuals: what the task's ``doc_to_visual`` gave.
        several: "join" puts several images side by side, in order, on white, scaled to the tallest.

    Raises:
        CapabilityError: a visual is no image, or there are several and they may not be joined.
    """
    images = list(visuals or ())
    for image in images:
        if not isinstance(image, Image.Image):
            raise CapabilityError(
                f"a task gave a {type(image).__name__} to look at",
                "a backbone looks at images alone, not at videos, sounds or files",
                "leave this task out",
            )
    if not images:
        return None
    if len(images) > 1 and several == "refuse":
        raise CapabilityError(
            f"a question shows {len(images)} images",
            "a backbone looks at one",
            "add several_images=join to --model_args to put them side by side, and say so with the score",
        )
    return images[0].convert("RGB") if len(images) == 1 else _side_by_side(images)


def _side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    height = max(image.height for image in images)
    scaled = [
        image.convert("RGB").resize((max(1, round(image.width * height / image.height)), height)) for image in images
    ]
    strip = Image.new("RGB", (sum(image.width for image in scaled), height), "white")
    left = 0
    for image in scaled:
        strip.paste(image, (left, 0))
        left += image.width
    return strip
