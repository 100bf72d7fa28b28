from __future__ import annotations

import os
from pathlib import Path

import pytest

from asg_core.testing.sharded import sharding_differences


@pytest.mark.skipif(os.environ.get("ASG_SOAK") != "1", reason="two processes that load everything: tox -e soak")
def test_a_sharded_base_gives_what_a_whole_one_gives() -> None:
    differences = sharding_differences(
        "vargpt",
        weights=Path(__file__).parent / "fixtures" / "golden" / "ckpt",
        options={"rollout": {"resolution": "0.06M"}, "quality": {"resolution": "0.06M"}},
        lora={"rank": 4, "alpha": 8},
    )
    assert sum(name.startswith("gradient of") for name in differences) >= 50
    assert set(differences.values()) == {0.0}
