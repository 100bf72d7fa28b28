"""A frozen base split over processes; a whole run with one is in test_processes.py."""

from __future__ import annotations

import pytest

from .conftest import Launch


@pytest.mark.parametrize(("name", "dtype"), [("tiny", "float32"), ("tiny_flow", "float32"), ("tiny_flow", "bfloat16")])
def test_a_sharded_base_gives_what_a_whole_one_gives(name: str, dtype: str, launch: Launch) -> None:
    for outcome in launch(2, "compare_sharded", name=name, dtype=dtype):
        differences = outcome["result"]
        assert sum(key.startswith("gradient of") for key in differences) >= 100
        assert set(differences.values()) == {0.0}


def test_a_backbone_that_names_no_layers_is_refused(launch: Launch) -> None:
    for outcome in launch(2, "refuse_to_shard"):
        assert outcome["error"] == "ConfigError"
        assert "the base of 'tiny' cannot be split over devices" in outcome["message"]
