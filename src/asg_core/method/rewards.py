"""The rewards of the three roles: pure functions of votes, token entropies and scores (METHOD).

Proposer and Solver: one vote and one token entropy (understanding steps 5 and 6). Generator: does the Solver read off a
candidate what it read off the source, does a drawing lead back to its prompt, do candidates differ (generation steps 1
and 3). Distances of embeddings are |u - v|^2 / 4 of unit vectors, which is (1 - cos) / 2 but exactly 0 for equal
vectors; NaN or zero vectors give NaN, which the caller drops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from asg_core.method.answers import NON_ANSWERS, Vote, answer_kind, normalise, opposite

if TYPE_CHECKING:
    from torch import Tensor

GATE_PENALTY = -0.2
"""Reward of a Proposer completion that is not a question."""

BELL_CENTRE, BELL_WIDTH = 0.9, 0.25
"""Of r_sc over H_sc, nats: where the Proposer earns most, and the standard deviation."""


def self_consistency_reward(entropy: float) -> float:
    """r_sc, a bell over H_sc (nats): 1 at 0.9, where answers disagree some, near 0 at unanimity and at chaos."""
    return math.exp(-((entropy - BELL_CENTRE) ** 2) / (2 * BELL_WIDTH**2))


def unsolvable(vote: Vote) -> bool:
    """Whether no two of the N answers agree: f <= 1.5 / N."""
    return vote.majority_share <= 1.5 / len(vote.labels)


@dataclass(frozen=True)
class ProposerReward:
    """R_p of one question and what it was made of.

    Attributes:
        value: the reward, in [0, 1], or GATE_PENALTY.
        ste_percentile: d_ste in [0, 1]; None where STE is missing or off.
        self_consistency: r_sc in [0, 1]; None where the gate failed, so that nothing was asked.
        reason: which rule had the last word; "agreed" where the cap on agreed questions lowered the value.
    """

    value: float
    ste_percentile: float | None
    self_consistency: float | None
    reason: Literal["scored", "gate", "unsolvable", "agreed"]


GATED = ProposerReward(GATE_PENALTY, None, None, "gate")
"""The reward of every completion that failed the gate."""


def proposer_reward(vote: Vote, ste_percentile: float | None) -> ProposerReward:
    """R_p of a question that passed the gate: 0.70 d_ste + 0.30 r_sc, or r_sc alone without STE.

    Unsolvable questions earn 0 and nothing overrides that. Agreed ones (f >= 0.85) whose tokens were not uncertain
    (d_ste < 0.5) earn at most 0.20. ValueError if ``ste_percentile`` is outside [0, 1] or NaN.
    """
    if ste_percentile is not None and not 0.0 <= ste_percentile <= 1.0:
        raise ValueError(f"d_ste must be in [0, 1], got {ste_percentile}")
    r_sc = self_consistency_reward(vote.entropy)
    if unsolvable(vote):
        return ProposerReward(0.0, ste_percentile, r_sc, "unsolvable")
    if ste_percentile is None:
        return ProposerReward(r_sc, None, r_sc, "scored")
    value = 0.70 * ste_percentile + 0.30 * r_sc
    if vote.majority_share >= 0.85 and ste_percentile < 0.5 and value > 0.20:
        return ProposerReward(0.20, ste_percentile, r_sc, "agreed")
    return ProposerReward(value, ste_percentile, r_sc, "scored")


def information(entropy: float, margin: float) -> float:
    """info(H, m): how much a vote can teach, in [1e-4, 1]. ``entropy`` in nats, ``margin`` in [0, 1]."""
    bell = math.exp(-((entropy - 0.675) ** 2) / (2 * 0.525**2))
    return min(max(0.5 * bell + 0.5 * max(0.0, 1.0 - margin / 0.9), 1e-4), 1.0)


def solver_rewards(vote: Vote) -> list[float]:
    """The reward of each answer, in the order of ``vote.labels``, in [-0.25, 1].

    Agreeing with the majority earns +info, disagreeing -0.25 info, each times (share of the answer's own label) ** 0.7.
    """
    info = information(vote.entropy, vote.margin)
    return [(info if label == vote.majority else -0.25 * info) * vote.shares[label] ** 0.7 for label in vote.labels]


def solver_learns(vote: Vote, min_agreement: float) -> bool:
    """Whether the Solver learns from a question: min_agreement <= f < 1, solvable, and the majority is an answer."""
    return min_agreement <= vote.majority_share < 1.0 and not unsolvable(vote) and vote.majority not in NON_ANSWERS


def reference_label(vote: Vote) -> str | None:
    """The reference answer to a spec question: the majority on the source image if f >= 2/3, else None (not kept).

    A majority that is no answer ("" or "other") gives no reference either.
    """
    return vote.majority if vote.majority_share >= 2 / 3 and vote.majority not in NON_ANSWERS else None


def spec_quality(kept: Sequence[tuple[str, str]], raw_count: int) -> float:
    """Quality of a spec, in [0, 1]: .5 min(1, n/2) + .3 n/n_raw + .2 unique share - .2 [n >= 2 and all answers yes/no].

    Args:
        kept: the n kept (question, reference label) pairs.
        raw_count: n_raw, questions written, >= n; ValueError if smaller.

    The unique share is that of distinct questions, compared as normalised text. 0 when nothing was kept.
    """
    n = len(kept)
    if raw_count < n:
        raise ValueError(f"{n} questions kept of {raw_count} written")
    if n == 0:
        return 0.0
    unique = len({normalise(question) for question, _ in kept}) / n
    only_yes_no = n >= 2 and all(answer in ("yes", "no") for _, answer in kept)
    return 0.5 * min(1.0, n / 2) + 0.3 * n / raw_count + 0.2 * unique - 0.2 * only_yes_no


def fidelity(matches: Sequence[float]) -> float:
    """S_fid in [0, 1], the mean over the kept questions of: does the answer on the candidate equal the reference.

    Args:
        matches: one per kept question, True/False from majorities, or the Solver's probability of the reference in
            [0, 1]. ValueError when empty. NaN gives NaN.
    """
    return fmean(matches)


def contradiction(answers: Sequence[tuple[str, str, str]]) -> float:
    """S_ctr in [0, 1]: share of the yes/no questions answered with the opposite; 0 without yes/no questions.

    Args:
        answers: (question, majority on the candidate, reference) per kept question.
    """
    polar = [item for item in answers if answer_kind(item[0]) == "yes_no"]
    return sum(opposite(majority, ref, question) for question, majority, ref in polar) / len(polar) if polar else 0.0


@dataclass(kw_only=True, eq=False)
class CandidateScores:
    """The four scores of one candidate, each in [0, 1]: S_fid, S_cyc, S_div and S_ctr."""

    fidelity: float = 0.0
    cycle: float = 0.0
    diversity: float = 0.0
    contradiction: float = 0.0


_PERCENT = {"fidelity": 65, "cycle": 20, "diversity": 10}


def generation_reward(quality: float, scores: CandidateScores, without: str | None = None) -> float:
    """R_g = quality * clip((.65 S_fid + .20 S_cyc + .10 S_div) / .95 - .20 S_ctr, 0, 1); NaN if a score is NaN.

    Args:
        without: name of a score to leave out; the weights of the other gains are scaled to sum to 1 as before.
    """
    weights = {name: percent / 100 for name, percent in _PERCENT.items() if name != without}
    whole = sum(_PERCENT[name] for name in weights) / 100
    gain: float = sum(weight * getattr(scores, name) for name, weight in weights.items()) / whole
    loss = 0.0 if without == "contradiction" else 0.20 * scores.contradiction
    return quality * min(max(gain - loss, 0.0), 1.0)


def _unit(vectors: Tensor) -> Tensor:
    """(..., d) float64 with unit length along the last axis, so that float32 rounding does not leave [0, 1]."""
    vectors = vectors.double()
    unit: Tensor = vectors / vectors.norm(dim=-1, keepdim=True)
    return unit


def unit_similarity(a: Tensor, b: Tensor) -> float:
    """Cosine of two (d,) vectors mapped to [0, 1]: exactly 1 for equal ones, .5 for orthogonal, 0 for opposite."""
    return float(1.0 - ((_unit(a) - _unit(b)).square().sum() / 4.0).clamp(0.0, 1.0))


def cycle_score(prompt: Tensor, caption: Tensor, image: Tensor) -> float:
    """S_cyc = .5 sim(prompt, caption of the image) + .5 sim(image, prompt), in [0, 1].

    Args:
        prompt: (d,) embedding of the drawing prompt.
        caption: (d,) embedding of the Solver's caption of the candidate.
        image: (d,) embedding of the candidate itself, in the same space; half of the score depends on it.
    """
    return 0.5 * unit_similarity(prompt, caption) + 0.5 * unit_similarity(image, prompt)


def diversity(embeddings: Tensor) -> list[float]:
    """S_div of each of n candidates: mean of (1 - cos) / 2 over the others, on this absolute scale, in [0, 1].

    Args:
        embeddings: (n, d) image embeddings. Identical ones are exactly 0 apart; a single candidate has diversity 0.
    """
    n = embeddings.shape[0]
    if n < 2:
        return [0.0] * n
    unit = _unit(embeddings)
    distance = (unit[:, None] - unit[None]).square().sum(dim=-1) / 4.0  # (n, n)
    return [float(row) for row in distance.sum(dim=1).clamp(0.0, n - 1.0) / (n - 1)]
