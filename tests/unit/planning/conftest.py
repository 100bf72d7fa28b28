"""Shapes of the embedded backbones."""

from __future__ import annotations

import pytest

from asg_core import RunConfig, load_backbone
from asg_core.backbones.interface import Backbone
from asg_core.planning.shape import ModelShape, Trunk, model_shape
from asg_core.runs.configuration import load_run_config

SIZE = (32, 32)
TRUNK = Trunk(layers=3, width=8, heads=4, kv_heads=2, head_width=2, ffn=16, vocabulary=100, parameters=1000, itemsize=2)


@pytest.fixture(params=["tiny", "tiny_flow"])
def config(request: pytest.FixtureRequest) -> RunConfig:
    return load_run_config(None, [f"backbone={request.param}", "dtype=float32", "lora.rank=5"])


@pytest.fixture
def shape(config: RunConfig) -> ModelShape:
    return model_shape(config)


@pytest.fixture
def loaded(config: RunConfig) -> Backbone:
    return load_backbone(config.backbone, device="cpu", dtype="float32", lora=config.lora)
