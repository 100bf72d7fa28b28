"""Paired comparison: hand-computed cases, and the coverage and size that its statistics promise."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from asg_core.errors import PluginError
from asg_core.evaluation.compare import bootstrap_interval, compare, paired_p_value, score_rows
from asg_core.evaluation.items import EvalItem


def items(scores: list[float], section: str = "s", category: str = "c", start: int = 0) -> list[EvalItem]:
    return [EvalItem(section, category, str(start + i), score) for i, score in enumerate(scores)]


def test_rows_hold_sections_first_then_their_categories_in_order() -> None:
    before = items([0, 1], "u", "colour") + items([1], "g", "two") + items([0, 0, 1], "u", "count", start=2)
    after = [EvalItem(i.section, i.category, i.key, 1.0) for i in reversed(before)]
    rows = compare(before, after)
    assert [(r.section, r.category, r.n) for r in rows] == [
        ("u", "all", 5),
        ("u", "colour", 2),
        ("u", "count", 3),
        ("g", "all", 1),
        ("g", "two", 1),
    ]
    assert [r.before for r in rows] == pytest.approx([0.4, 0.5, 1 / 3, 1, 1])
    assert [r.after for r in rows] == [1.0] * 5
    assert rows[0].difference == pytest.approx(0.6)
    assert [(r.section, r.category, r.n, r.score) for r in score_rows(before)] == [
        (r.section, r.category, r.n, r.before) for r in rows
    ]


def test_pairs_go_by_key_not_by_position() -> None:
    before = items([0, 0, 1, 1])
    shuffled = [items([0, 0, 1, 1])[i] for i in (3, 0, 2, 1)]
    row = compare(before, shuffled)[0]
    assert (row.difference, row.ci_low, row.ci_high, row.p_value) == (0, 0, 0, 1)


def test_p_value_of_right_and_wrong_answers_is_exact_mcnemar() -> None:
    rng = np.random.default_rng(0)
    # 9 better, 1 worse: 2 (C(10,0) + C(10,1)) / 2^10
    assert paired_p_value(np.array([1.0] * 9 + [-1.0] + [0.0] * 90), rng) == pytest.approx(22 / 1024)
    assert paired_p_value(np.array([1.0] * 6), rng) == pytest.approx(2 / 64)
    assert paired_p_value(np.array([1.0, -1.0]), rng) == 1
    assert paired_p_value(np.array([0.5] * 9 + [-0.5]), rng) == pytest.approx(22 / 1024)
    assert paired_p_value(np.zeros(5), rng) == 1


def test_p_value_of_graded_scores_agrees_with_enumerating_all_signs() -> None:
    differences = np.array([0.3, -0.1, 0.25, 0.4, 0.05, -0.2, 0.15, 0.35])
    signs = np.array([[1 if k >> i & 1 else -1 for i in range(8)] for k in range(256)])
    exact = (np.abs(signs @ np.abs(differences)) >= differences.sum() - 1e-12).mean()
    got = paired_p_value(differences, np.random.default_rng(0), 100_000)
    assert got == pytest.approx(exact, abs=4 * math.sqrt(exact / 100_000))
    assert paired_p_value(np.linspace(0.1, 1, 60), np.random.default_rng(0), 999) == pytest.approx(1 / 1000)


def test_interval_agrees_with_plain_resampling_of_items() -> None:
    rng = np.random.default_rng(1)
    for values in (rng.choice([-1.0, 0.0, 1.0], 400, p=[0.1, 0.6, 0.3]), rng.normal(0.1, 0.2, 60)):
        plain = rng.choice(values, size=(20_000, len(values))).mean(axis=1)
        low, high = bootstrap_interval(values, rng, 20_000)
        assert (low, high) == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.004)
    assert bootstrap_interval(np.array([0.25]), rng) == (0.25, 0.25)


def test_interval_covers_and_p_value_holds_its_size() -> None:
    rng = np.random.default_rng(2)
    covered = rejected = 0
    for _ in range(300):
        differences = rng.choice([-1.0, 0.0, 1.0], 150, p=[0.15, 0.7, 0.15])
        low, high = bootstrap_interval(differences, rng, 1000)
        covered += low <= 0 <= high
        rejected += paired_p_value(differences, rng) < 0.05
    assert 0.91 <= covered / 300 <= 0.98
    assert rejected / 300 <= 0.075


def test_a_row_depends_on_its_own_items_and_the_seed_alone() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.random(50).tolist(), rng.random(50).tolist()
    alone = compare(items(a), items(b))
    more = compare(items([1.0], "first") + items(a), items([0.0], "first") + items(b))
    assert alone == more[2:]
    assert alone == compare(items(a), items(b))
    assert alone != compare(items(a), items(b), seed=1)


def test_different_or_repeated_items_are_refused() -> None:
    with pytest.raises(PluginError, match="cannot be compared") as raised:
        compare(items([0, 1]), items([0, 1, 1]))
    assert "'2' of 's'" in raised.value.why
    with pytest.raises(PluginError, match="twice"):
        compare(items([0]) * 2, items([0]) * 2)


def test_a_category_called_all_does_not_split_its_section() -> None:
    rows = score_rows(items([0, 1], category="all") + items([1], category="x", start=2))
    assert [(r.category, r.n) for r in rows] == [("all", 3), ("x", 1)]


def test_graded_scores_of_thousands_of_items_take_seconds_not_minutes() -> None:
    rng = np.random.default_rng(4)
    a, b = items(rng.random(1000).tolist()), items(rng.random(1000).tolist())
    started = time.process_time()
    compare(a, b)
    assert time.process_time() - started < 10
