"""The example configurations: they load, fit the options, and open with their own command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from asg_core.config_io import load_run_config
from asg_core.plugins import find_manifest, validate_options

EXAMPLES = Path(__file__).parents[3] / "examples" / "blip3o"


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="examples are in the repository only")
@pytest.mark.parametrize("name", ["h200", "understanding_24gb", "tiny"])
def test_an_example_is_valid_and_says_how_to_run_it(name: str) -> None:
    path = EXAMPLES / f"{name}.yaml"
    config = load_run_config(path, [])
    assert config.backbone == "blip3o"
    validate_options(find_manifest("blip3o"), config.backbone_options)
    assert f"#   asg train examples/blip3o/{name}.yaml weights=" in path.read_text()
