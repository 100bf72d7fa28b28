"""Seeds are a pure function of a path: stable over time, distinct, in range."""

from __future__ import annotations

import torch

from asg_core.config.seeding import derive_seed


def test_seeds_are_the_same_in_every_process_and_release() -> None:
    assert derive_seed(0, 1, "ask", 2, 3) == 8_645_329_271_277_629_467
    assert derive_seed(0, 1, "ask", 2, 3) == derive_seed(0, 1, "ask", 2, 3)


def test_every_part_of_the_path_matters() -> None:
    paths = [(s, t, purpose, i) for s in range(4) for t in range(10) for purpose in ("ask", "solve") for i in range(20)]
    assert len({derive_seed(*path) for path in paths}) == len(paths)
    assert len({derive_seed(1, 2), derive_seed(2, 1), derive_seed(12), derive_seed(1, 2, 0), derive_seed()}) == 5


def test_numbers_and_strings_are_told_apart() -> None:
    assert derive_seed(1) != derive_seed("1")
    assert derive_seed("a", "b") != derive_seed("ab")


def test_seeds_fit_a_generator() -> None:
    seeds = [derive_seed("range", i) for i in range(2000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
    torch.Generator().manual_seed(max(seeds))
