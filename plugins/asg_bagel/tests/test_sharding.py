from __future__ import annotations

import os

import pytest

from asg_core.testing.sharded import sharding_differences

from bagel_fixtures import GOLDEN, OPTIONS


@pytest.mark.skipif(os.environ.get("ASG_SOAK") != "1", reason="two processes that load everything: tox -e soak")
def test_a_sharded_base_gives_what_a_whole_one_gives() -> None:
    differences = sharding_differences("bagel", weights=GOLDEN / "checkpoint", options=OPTIONS)
    assert sum(name.startswith("gradient of") for name in differences) >= 80
    assert set(differences.values()) == {0.0}
