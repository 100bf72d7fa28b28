"""Cases without a network: tokenizer, sizes, pixels."""

from __future__ import annotations

import re

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from asg_bagel.modeling_vision import grid_positions
from asg_bagel.parity.setup import Replay
from asg_bagel.processing import ResizeRule, to_patches, to_pixels


def replay_tokenizer(fixture: Replay) -> None:
    """Ids of every recorded string, marker ids, vocabulary size."""
    run, tokenizer = fixture.run, fixture.builder.tokenizer
    with run.case("tokenizer"):
        case = run.value("tokenizer")
        markers = {
            "bos_token_id": tokenizer.bos,
            "eos_token_id": tokenizer.eos,
            "start_of_image": tokenizer.image_start,
            "end_of_image": tokenizer.image_end,
        }
        run.equal("tokenizer special", markers, case["special"])
        run.equal("tokenizer length", tokenizer.size, case["len_tokenizer"])
        for entry in case["cases"]:
            run.equal(f"tokenizer {entry['text']!r}", tokenizer.encode(entry["text"]), entry["ids"])
        run.equal("tokenizer wrap", [tokenizer.bos, tokenizer.eos], tokenizer.text_segment(""))


def replay_resize_table(fixture: Replay) -> None:
    """Every recorded size under every recorded transform."""
    run = fixture.run
    with run.case("resize_table"):
        table = run.value("resize_table")
        rules = {name: ResizeRule(*numbers) for name, numbers in table["transforms"].items()}
        for row in table["rows"]:
            size = rules[row["transform"]].size(*row["in_wh"])
            run.equal(f"resize {row['transform']} {tuple(row['in_wh'])}", list(size), row["out_wh"])


def replay_preprocessing(fixture: Replay) -> None:
    """Pixels, patches and positions of the recorded pictures, and of a formula picture under the real transforms."""
    run = fixture.run
    for key in run.keys("preproc/real/"):
        with run.case(key):
            _real(fixture, key)
    for name in run.names("preproc/"):
        if not name.startswith("preproc/real/"):
            with run.case(name):
                _picture(fixture, name)


def _real(fixture: Replay, key: str) -> None:
    run = fixture.run
    numbers = re.search(r"\((\d+), (\d+)\), (\d+)\)", run.value("preproc/real")["input"])
    if numbers is None:
        raise ValueError("the formula picture has another signature")
    picture = gradient_image(*(int(n) for n in numbers.groups()))
    rule = ResizeRule(*run.value("resize_table")["transforms"][key.rpartition("/")[2]])
    pixels = to_pixels(rule.resize(picture))
    case = run.value(key)
    run.equal(f"{key} shape", list(pixels.shape), case["shape"])
    fixture.close(f"{key} mean", pixels.double().mean(), case["mean"])
    fixture.close(f"{key} std", pixels.double().std(), case["std"])
    for name in run.names(f"{key}/every_"):
        fixture.close(name, _strided(pixels, name), run.tensor(name))


def gradient_image(height: int, width: int, k: int) -> Image.Image:
    """The recorder's formula picture: two ramps and a wave."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    wave = 127.5 * (1 + np.sin((x * (2 + k) + 3 * y) / 7))
    levels = np.stack([255 * x / (width - 1), 255 * y / (height - 1), wave], axis=-1)
    return Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))


def _picture(fixture: Replay, name: str) -> None:
    _, picture, what = name.split("/")
    patch, side = fixture.model.config.vision.patch_size, fixture.model.config.vision_side
    image = fixture.image(f"images/{picture}_u8")
    for_vae = fixture.vae_rule.resize(image)
    kind = re.sub(r"_every_\w+$", "", what)
    seen = fixture.builder.vision_rule.resize(for_vae if kind == "vit_after_vae_resize" else image)
    pixels = to_pixels(seen)
    if kind == "vae_resized_u8":
        fixture.run.equal(name, torch.from_numpy(np.array(for_vae)), fixture.run.tensor(name))
    elif kind == "vae":
        fixture.close(name, to_pixels(for_vae), fixture.run.tensor(name))
    elif kind in ("vit", "vit_after_vae_resize"):
        fixture.close(name, _strided(pixels, what), fixture.run.tensor(name))
    elif kind == "vit_pos_ids":
        positions = grid_positions(seen.height // patch, seen.width // patch, side, pixels.device)
        fixture.run.equal(name, positions, fixture.run.tensor(name))
    elif first := re.fullmatch(r"vit_patches_first(\d+)", kind):
        fixture.close(name, to_patches(pixels, patch)[: int(first[1])], fixture.run.tensor(name))


def _strided(pixels: Tensor, name: str) -> Tensor:
    every = re.search(r"every_(\d+)", name)
    step = int(every[1]) if every else 1
    return pixels[:, ::step, ::step]
