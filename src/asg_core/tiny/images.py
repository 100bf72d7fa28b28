"""Writes the unlabeled picture pool of the tiny world: pixels alone, under neutral names."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from asg_core.seeds import derive_seed
from asg_core.tiny.world import photograph, sample_scene

POOL_SIZE = 512


def write_images(directory: Path, seed: int) -> None:
    """Write 512 photographs of random scenes as ``0000.png`` ... into ``directory`` (created if missing).

    Nothing about the scenes is kept, neither in names nor in the files; equal seeds write equal files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    scenes = random.Random(derive_seed(seed, "tiny", "pool", "scenes"))
    noise = np.random.default_rng(derive_seed(seed, "tiny", "pool", "noise"))
    for index in range(POOL_SIZE):
        photograph(sample_scene(scenes), noise).save(directory / f"{index:04d}.png")
