"""Controls: what happens if the reward carries no information? Used to measure what the method itself contributes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

Control = Literal["none", "random_rewards", "shuffled_votes"]


def controlled(rewards: Sequence[Sequence[float]], control: Control, seed: int) -> list[list[float]]:
    """The rewards of several groups as they are ("none"), as uniform noise in [0, 1) ("random_rewards"), or dealt out
    again over all groups by a seeded permutation, which keeps their distribution and breaks their meaning
    ("shuffled_votes"). Group sizes are kept."""
    if control == "none":
        return [list(group) for group in rewards]
    rng = random.Random(seed)
    flat = [value for group in rewards for value in group]
    if control == "random_rewards":
        flat = [rng.random() for _ in flat]
    else:
        rng.shuffle(flat)
    values = iter(flat)
    return [[next(values) for _ in group] for group in rewards]
