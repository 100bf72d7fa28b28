"""A backbone that another test had is as one that was just loaded."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from asg_core import load_backbone
from asg_core.backbones.interface import Backbone, Role, TextRequest, TextSampling
from asg_core.method.prompts import QUESTION_PROMPT
from devkit.lending import Library

LOAD = partial(load_backbone, "tiny", device="cpu", dtype="float32")


def said(backbone: Backbone) -> list[object]:
    samples = backbone.ask([TextRequest(QUESTION_PROMPT, None, 3)], TextSampling(6))
    return [(sample.token_ids, sample.logprobs) for sample in samples]


@pytest.fixture
def library() -> Library:
    return Library()


def test_what_a_test_did_to_a_backbone_is_gone_for_the_next(library: Library) -> None:
    fresh = said(LOAD())
    with library.lend("tiny", LOAD) as first:
        for role in Role:
            for weight in first.trainable(role).values():
                weight.grad = torch.ones_like(weight)
                with torch.no_grad():
                    weight += 0.5
        assert said(first) != fresh
        first.ask = lambda *_: []
    with library.lend("tiny", LOAD) as second:
        assert second is first
        assert said(second) == fresh
        assert all(weight.grad is None for role in Role for weight in second.trainable(role).values())


def test_a_backbone_whose_base_was_written_to_is_not_lent_again(library: Library) -> None:
    with library.lend("tiny", LOAD) as first, torch.no_grad():
        first._model.rows += 1
    with library.lend("tiny", LOAD) as second:
        assert second is not first


def test_two_at_once_are_two(library: Library) -> None:
    with library.lend("tiny", LOAD) as first, library.lend("tiny", LOAD) as second:
        assert first is not second
