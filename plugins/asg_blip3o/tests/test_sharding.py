from __future__ import annotations

import os
from pathlib import Path

import pytest

from asg_core.testing.sharded import sharding_differences

SMALL = {"flow_steps": 4, "decoder_steps": 3, "height": 32, "width": 32}


@pytest.mark.skipif(os.environ.get("ASG_SOAK") != "1", reason="two processes that load everything: tox -e soak")
def test_a_sharded_base_gives_what_a_whole_one_gives() -> None:
    differences = sharding_differences(
        "blip3o",
        weights=Path(__file__).parent / "fixtures" / "golden" / "checkpoint",
        options={"rollout": SMALL, "quality": SMALL, "eva_head_width": 16},
        lora={"rank": 4, "alpha": 8},
    )
    assert sum(name.startswith("gradient of") for name in differences) >= 40
    assert set(differences.values()) == {0.0}
