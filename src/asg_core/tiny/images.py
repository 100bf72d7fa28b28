"""Writes the unlabeled picture pool of the tiny world: pixels alone, under neutral names."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from asg_core.config.seeding import derive_seed
from asg_core.tiny.world import Scene, photograph, sample_scene

POOL_SIZE = 512


def write_images(directory: Path, seed: int) -> None:
    """Write 512 photographs of random scenes as ``0000.png`` ... into ``directory`` (created if missing).

    Nothing about the scenes is kept, neither in names nor in the files; equal seeds write equal files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(derive_seed(seed, "tiny", "pool", "noise"))
    for index, scene in enumerate(pool_scenes(seed)):
        photograph(scene, noise).save(directory / f"{index:04d}.png")


def pool_scenes(seed: int) -> list[Scene]:
    """The scenes behind the pool of a seed, in the order of the file names."""
    scenes = random.Random(derive_seed(seed, "tiny", "pool", "scenes"))
    return [sample_scene(scenes) for _ in range(POOL_SIZE)]
