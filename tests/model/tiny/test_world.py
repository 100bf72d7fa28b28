"""Scenes, pictures and the exact detector."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from asg_core.tiny.detector import read_codes, read_scene
from asg_core.tiny.world import (
    CODES,
    THING_CODES,
    Scene,
    Thing,
    codebook,
    photograph,
    render,
    sample_scene,
    scene_codes,
    thing_code,
)


def test_every_code_is_read_back_from_its_picture() -> None:
    for code in range(CODES):
        assert read_codes(render([code] * 16)) == [code] * 16


def test_all_patches_differ() -> None:
    assert len({patch.tobytes() for patch in codebook()}) == CODES


def test_random_scenes_are_read_back_exactly() -> None:
    rng = random.Random(1)
    for _ in range(200):
        scene = sample_scene(rng)
        assert read_scene(render(scene_codes(scene))) == scene


def test_photographs_differ_from_the_exact_picture_but_show_the_same_things() -> None:
    rng, noise = random.Random(2), np.random.default_rng(2)
    for _ in range(50):
        scene = sample_scene(rng)
        picture = photograph(scene, noise)
        assert picture.tobytes() != render(scene_codes(scene)).tobytes()
        assert read_scene(picture).things == scene.things


def test_codes_of_a_scene_by_hand() -> None:
    scene = Scene((Thing(1, 2, "square", "blue", "big"),), tint=3)
    codes = scene_codes(scene)
    # square is shape 1, blue colour 2, big size 1: (1 * 6 + 2) * 2 + 1.
    assert codes[1 * 4 + 2] == 17 == thing_code("square", "blue", "big")
    assert set(codes[:6] + codes[7:]) == {THING_CODES + 3}


def test_scenes_hold_one_to_four_things_in_distinct_cells() -> None:
    rng = random.Random(3)
    counts = set()
    for _ in range(300):
        things = sample_scene(rng).things
        counts.add(len(things))
        assert len({(thing.row, thing.column) for thing in things}) == len(things)
    assert counts == {1, 2, 3, 4}


def test_the_detector_refuses_other_sizes() -> None:
    with pytest.raises(ValueError, match="32 x 32"):
        read_codes(Image.new("RGB", (64, 64)))
