"""The tables of a study of signals, made from its raw rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from asg_lab.study.signals.rows import Asked, Drawn, Referenced, Solved
from asg_lab.study.signals.statistics import (
    Bin,
    Estimate,
    auroc_estimate,
    calibration_estimate,
    concordance,
    ratio_estimate,
    reliability,
)

PHASES = ("first third", "last third", "all steps")
_NEARLY = 6 / 7 - 1e-9


@dataclass(frozen=True)
class HeldOut:
    """What votes and entropies of one model on held-out questions are worth.

    Attributes:
        model: "base" or an arm.
        right: share of right majorities.
        aurocs: (signal, questions, estimate): does the signal find the wrong majorities among the questions?
        bins: share of right majorities by majority share.
        calibration: expected calibration error of the majority share.
    """

    model: str
    right: Estimate
    aurocs: tuple[tuple[str, str, Estimate], ...]
    bins: tuple[Bin, ...]
    calibration: Estimate


@dataclass(frozen=True)
class Training:
    """Rewards of one arm beside the truth: per line its meaning, and one estimate for each of :data:`PHASES`."""

    model: str
    lines: tuple[tuple[str, tuple[Estimate, ...]], ...]


def held_out(model: str, rows: Sequence[Solved]) -> HeldOut:
    """The tables of one model's held-out answers."""
    wrong = np.array([not r.right for r in rows])
    share = np.array([r.f for r in rows])
    ste = np.array([np.nan if r.ste is None else r.ste for r in rows])
    h_sc = np.array([r.h_sc for r in rows])
    known = np.isfinite(ste)
    strata = (
        ("raw STE", "all", ste, known),
        ("raw STE", "at least 6 of 7 agree", ste, known & (share >= _NEARLY)),
        ("raw STE", "all seven agree", ste, known & (share == 1.0)),
        ("H_sc", "all", h_sc, np.ones(len(rows), dtype=bool)),
    )
    return HeldOut(
        model,
        ratio_estimate((~wrong).astype(np.float64), np.ones(len(rows))),
        tuple((signal, which, auroc_estimate(score[chosen], wrong[chosen])) for signal, which, score, chosen in strata),
        tuple(reliability(share, ~wrong)),
        calibration_estimate(share, ~wrong),
    )


def training(
    model: str, asked: Sequence[Asked], referenced: Sequence[Referenced], drawn: Sequence[Drawn], steps: int
) -> Training:
    """The lines of one arm, for early, late and all of its ``steps``; one line may lack any items."""

    def during(phase: str, step: int) -> bool:
        return {"first third": 3 * step <= steps, "last third": 3 * step > 2 * steps}.get(phase, True)

    cut = [
        (
            [r for r in asked if during(phase, r.step)],
            [r for r in referenced if during(phase, r.step)],
            [r for r in drawn if during(phase, r.step)],
        )
        for phase in PHASES
    ]
    lines = zip(*([*_of_questions(a), *_of_drawings(r, d)] for a, r, d in cut), strict=True)
    return Training(model, tuple((same[0][0], tuple(estimate for _, estimate in same)) for same in lines))


def _of_questions(rows: Sequence[Asked]) -> list[tuple[str, Estimate]]:
    def rewarded(right: bool | None) -> Estimate:
        return mean(rows, lambda r: r.reward if r.right is right else None)

    return [
        ("questions that have a true answer", mean(rows, lambda r: float(r.truth is not None))),
        ("majority right, of those", mean(rows, lambda r: as_number(r.right))),
        ("majority right, of those that the Solver learnt from", mean(rows, lambda r: lesson(r))),
        ("Proposer's reward where the majority is right", rewarded(True)),
        ("Proposer's reward where it is wrong", rewarded(False)),
        ("Proposer's reward where there is no true answer", rewarded(None)),
        ("AUROC of raw STE for a wrong majority", _auroc(rows, lambda r: r.ste)),
        ("AUROC of H_sc for a wrong majority", _auroc(rows, lambda r: r.h_sc)),
    ]


def _of_drawings(referenced: Sequence[Referenced], drawn: Sequence[Drawn]) -> list[tuple[str, Estimate]]:
    return [
        ("reference answers right", mean(referenced, lambda r: as_number(r.right))),
        ("Generator's reward", mean(drawn, lambda r: r.reward)),
        ("fidelity as the Solver judges it", mean(drawn, lambda r: r.s_fid)),
        ("true fidelity", mean(drawn, lambda r: r.fidelity)),
        ("drawings that truly show their prompt", mean(drawn, lambda r: as_number(r.shows))),
        ("of two drawings, the one of higher true fidelity earns more", _agreement(drawn, lambda r: r.fidelity)),
        ("of two drawings, the one that shows the prompt earns more", _agreement(drawn, lambda r: as_number(r.shows))),
    ]


def as_number(truth: bool | None) -> float | None:
    """1, 0, or None where there is no truth."""
    return None if truth is None else float(truth)


def lesson(row: Asked) -> float | None:
    """Whether what the Solver learnt from this question is true; None where it learnt nothing, or there is no truth."""
    return as_number(row.right) if row.learned else None


class _Placed(Protocol):
    @property
    def seed(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def image(self) -> int: ...


R = TypeVar("R", bound=_Placed)


def _clusters(rows: Sequence[R]) -> list[list[R]]:
    groups: dict[tuple[int, int, int], list[R]] = defaultdict(list)
    for row in rows:
        groups[row.seed, row.step, row.image].append(row)
    return list(groups.values())


def mean(rows: Sequence[R], value: Callable[[R], float | None]) -> Estimate:
    """Mean of the values that are not None, with an interval over images."""
    found = [[x for row in rows if (x := value(row)) is not None] for rows in _clusters(rows)]
    return ratio_estimate(
        np.array([sum(v) for v in found], dtype=float), np.array([len(v) for v in found], dtype=float)
    )


def _agreement(rows: Sequence[Drawn], quality: Callable[[Drawn], float | None]) -> Estimate:
    """Share of the pairs of one prompt in which the truly better drawing has the higher reward."""
    pairs = []
    for group in _clusters(rows):
        judged = [(r.reward, q) for r in group if r.reward is not None and (q := quality(r)) is not None]
        pairs.append(concordance(np.array([r for r, _ in judged]), np.array([q for _, q in judged])))
    return ratio_estimate(np.array([w for w, _ in pairs], dtype=float), np.array([n for _, n in pairs], dtype=float))


def _auroc(rows: Sequence[Asked], signal: Callable[[Asked], float | None]) -> Estimate:
    found = [(s, not r.right) for r in rows if r.right is not None and (s := signal(r)) is not None]
    return auroc_estimate(np.array([s for s, _ in found], dtype=float), np.array([w for _, w in found], dtype=bool))
