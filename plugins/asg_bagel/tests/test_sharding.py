from __future__ import annotations

from asg_core.testing.sharded import sharding_differences

from bagel_fixtures import GOLDEN, OPTIONS


def test_a_sharded_base_gives_what_a_whole_one_gives() -> None:
    differences = sharding_differences("bagel", weights=GOLDEN / "checkpoint", options=OPTIONS)
    assert sum(name.startswith("gradient of") for name in differences) >= 80
    assert set(differences.values()) == {0.0}
