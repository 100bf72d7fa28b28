from __future__ import annotations

from pathlib import Path

from asg_core.testing.sharded import sharding_differences


def test_a_sharded_base_gives_what_a_whole_one_gives() -> None:
    differences = sharding_differences(
        "vargpt",
        weights=Path(__file__).parent / "fixtures" / "golden" / "ckpt",
        options={"rollout": {"resolution": "0.06M"}, "quality": {"resolution": "0.06M"}},
        lora={"rank": 4, "alpha": 8},
    )
    assert sum(name.startswith("gradient of") for name in differences) >= 50
    assert set(differences.values()) == {0.0}
