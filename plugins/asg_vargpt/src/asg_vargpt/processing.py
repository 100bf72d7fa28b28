"""What goes in: the tokenizer, the patches that Qwen2-VL's vision tower reads, and the pixels that the VAE encodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PilImage
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer, Qwen2VLImageProcessorPil

from asg_core.errors import WeightsError
from asg_core.models.weights.inventory import check_tokenizer_files, read_json

STOP = "<|im_end|>"
OVERSCAN = 1.125
"""A square target is cropped out of an image whose short side is this much longer."""


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The byte-level BPE tokenizer of a released directory.

    Raises:
        WeightsError: its files are missing or damaged.
    """
    check_tokenizer_files(directory)
    try:
        return Qwen2Tokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"the tokenizer in {directory} cannot be read",
            str(error),
            "give the complete directory of the released weights",
        ) from error


def stop_tokens(directory: Path, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """``<|im_end|>`` and what ``generation_config.json``, if there is one, says."""
    own = {int(tokenizer.convert_tokens_to_ids(STOP))}
    path = directory / "generation_config.json"
    listed: Any = read_json(path).get("eos_token_id", []) if path.is_file() else []
    return frozenset(own | {int(token) for token in (listed if isinstance(listed, list) else [listed])})


def image_processor(
    min_pixels: int, max_pixels: int, patch_size: int = 14, merge_size: int = 2
) -> Qwen2VLImageProcessorPil:
    """Qwen2-VL's own processor on PIL and numpy; resizes so that the area lies within the limits."""
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": min_pixels, "longest_edge": max_pixels}, patch_size=patch_size, merge_size=merge_size
    )


def patches_of(processor: Qwen2VLImageProcessorPil, images: Sequence[Image]) -> tuple[Tensor, Tensor]:
    """Patches (n, 3 * 2 * patch^2) float32 of all images one after another, and grids (images, 3) long: time, rows,
    columns in patches."""
    batch = processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
    return batch["pixel_values"], batch["image_grid_thw"]


def target_image(image: Image, size: tuple[int, int]) -> Image:
    """Resize and centre-crop an image to ``size`` (height, width), as generation targets were in training.

    A square target is cut out of an image whose short side is 1.125 times as long; any other covers the target exactly.
    Lanczos filter.
    """
    height, width = size
    image = image.convert("RGB")
    if height == width:
        factor = round(OVERSCAN * height) / min(image.size)
        scaled = [max(round(OVERSCAN * height), int(side * factor)) for side in image.size]
    else:
        factor = max(width / image.width, height / image.height)
        scaled = [max(width, int(image.width * factor)), max(height, int(image.height * factor))]
    resized = image.resize((scaled[0], scaled[1]), PilImage.Resampling.LANCZOS)
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    return resized.crop((left, top, left + width, top + height))


def pixels_of(images: Sequence[Image]) -> Tensor:
    """RGB images of one size -> (B, 3, H, W) float32 in [-1, 1]."""
    arrays = [np.asarray(image.convert("RGB"), dtype=np.float32) for image in images]
    # Channels-last memory would switch the VAE to kernels whose group norms are ten times less exact.
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous() / 255 * 2 - 1


def to_images(pixels: Tensor) -> list[Image]:
    """(B, 3, H, W) in [-1, 1] -> RGB images; values are truncated, not rounded, as the original does."""
    levels = ((pixels.float() + 1) / 2 * 255).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [PilImage.fromarray(array) for array in levels]
