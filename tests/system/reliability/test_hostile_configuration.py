# ruff: noqa: PT017 - whether there is an error is open; if there is one, it must say something
"""Whatever a configuration holds: one typed error at most, nothing executed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asg_core.backbones.registry import find_manifest
from asg_core.config.schema import RunConfig
from asg_core.config.strict_yaml import parse_yaml
from asg_core.errors import AsgError, ConfigError
from asg_core.runs.configuration import load_run_config
from devkit.sizes import fuzz

YAML_PIECES = (
    "steps",
    "seed",
    "solve",
    "temperature",
    "backbone",
    "images",
    ": ",
    ":",
    "- ",
    "\n",
    "\n  ",
    "{",
    "}",
    "[",
    "]",
    ",",
    "&a ",
    "*a",
    "<<",
    "!!python/object/apply:os.system ",
    "!!python/name:os.getcwd",
    "!!binary ",
    "!!set ",
    "!",
    "!<tag:x>",
    "%YAML 1.1\n---\n",
    "---",
    "...",
    "? ",
    "| ",
    ">\n ",
    "'",
    '"',
    "\\x41",
    "#",
    "${oc.env:HOME}",
    "${x}",
    "???",
    "1",
    "-3",
    "0x10",
    "010",
    "1e999",
    "1_000",
    ".inf",
    ".nan",
    "9" * 400,
    "true",
    "no",
    "~",
    "null",
    "2024-01-01",
    "1:30",
    "\t",
    "\0",
    "é",
    "\u2028",
    "😀",
    "\ufeff",
    "=",
    "<<: *a",
)
yaml_texts = st.one_of(
    st.lists(st.sampled_from(YAML_PIECES), max_size=16).map("".join),
    st.lists(st.tuples(st.sampled_from(YAML_PIECES), st.sampled_from(YAML_PIECES)), max_size=6).map(
        lambda rows: "\n".join(f"{key}: {value}" for key, value in rows)
    ),
    st.text(max_size=40),
)


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(v) for key, v in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or type(value) in (str, int, bool) or (type(value) is float and np.isfinite(value))


@fuzz(2000)
@given(yaml_texts)
def test_yaml_is_plain_data_or_a_configuration_error(text: str) -> None:
    try:
        value = parse_yaml(text, "fuzz")
    except ConfigError as error:
        assert "fuzz" in error.what
        return
    assert is_plain(value)


KEYS = (
    "steps",
    "seed",
    "images",
    "out",
    "weights",
    "device",
    "trackers",
    "solve",
    "solve.temperature",
    "policy.clip",
    "ste.reduce",
    "alarms",
    "schedule.ratio",
    "schedule.mode",
    "lora.rank",
    "backbone",
    "backbone_options",
    "backbone_options.x",
    "",
    ".",
    "a[0]",
    "__class__",
    "model_config",
    "steps.x",
)


@fuzz(400)
@given(
    st.lists(
        st.tuples(st.sampled_from(KEYS), st.one_of(yaml_texts, st.sampled_from(YAML_PIECES))), min_size=1, max_size=3
    )
)
def test_settings_give_a_configuration_or_a_typed_error(words: list[tuple[str, str]]) -> None:
    try:
        config = load_run_config(None, [f"{key}={value}" for key, value in words])
    except AsgError as error:
        assert error.what
        assert error.fix
        return
    assert RunConfig.model_validate(config.model_dump()) == config


def test_absurdly_large_numbers_are_refused_or_cost_nothing() -> None:
    from asg_core.training.setup import check_plan

    for word in ("steps=" + "9" * 30, "steps=" + "9" * 4000, "images_per_step=1e3", "seed=" + "9" * 30):
        with pytest.raises(ConfigError):
            load_run_config(None, [word])
    for ratio in ("[3,2]", "[1000000000,1000000000]"):
        config = load_run_config(None, ["steps=1000000000", f"schedule.ratio={ratio}"])
        check_plan(config, find_manifest("tiny"))
