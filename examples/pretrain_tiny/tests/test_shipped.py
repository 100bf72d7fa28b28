"""The shipped base: small, and with the headroom that its card states."""

from __future__ import annotations

import json
from statistics import fmean

import pytest
from pretrain_tiny.table import Table, drawing_table, understanding_table
from safetensors import safe_open

from asg_core.tiny.backbone import TinyBackbone
from asg_core.tiny.questions import KINDS
from asg_core.tiny.weights import FILE_NAME, shipped


def _mean(table: Table, row: str) -> float:
    return fmean(table[row].values())


@pytest.fixture(scope="module")
def understanding(tiny: TinyBackbone) -> Table:
    return understanding_table(tiny, None, seed=1, count=84)


def test_the_checkpoint_is_small_and_says_how_it_was_made() -> None:
    path = shipped() / FILE_NAME
    assert path.stat().st_size < 5_000_000
    with safe_open(path, framework="pt") as file:
        assert "seed" in json.loads(file.metadata()["settings"])


def test_a_vote_over_the_framings_knows_more_than_one_framing(understanding: Table) -> None:
    assert _mean(understanding, "greedy, vote of 7") > _mean(understanding, "greedy, mean of 7") + 0.05
    assert _mean(understanding, "sampled, vote of 7") > _mean(understanding, "sampled, mean of 7") + 0.05


def test_the_vote_answers_above_chance_but_for_relations(understanding: Table) -> None:
    """Questions of the kind "position" are answered at chance; the card says so."""
    chance = {"color": 1 / 6, "shape": 1 / 4, "count": 0.4, "existence": 0.5, "size": 0.5, "which": 0.2}
    assert {*chance, "position"} == KINDS.keys()
    vote = understanding["greedy, vote of 7"]
    assert all(vote[kind] > low + 0.05 for kind, low in chance.items()), vote
    assert fmean(vote[kind] for kind in chance) > 0.75


def test_drawing_has_headroom_too(tiny: TinyBackbone) -> None:
    rows = drawing_table(tiny, None, seed=1, count=60)
    assert all(0.15 < fmean(row.values()) < 0.75 for row in rows.values()), rows
