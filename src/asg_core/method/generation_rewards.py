"""Reward of the Generator: does the Solver read off a candidate what it read off the source (METHOD, generation)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from asg_core.method.answers import NON_ANSWERS, Vote, answer_kind, normalise, opposite


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
    if not matches:
        raise ValueError("fidelity needs at least one kept question")
    return math.fsum(matches) / len(matches)


def contradiction(answers: Sequence[tuple[str, str, str]]) -> float:
    """S_ctr in [0, 1]: share of the yes/no questions answered with the opposite; 0 without yes/no questions.

    Args:
        answers: (question, majority on the candidate, reference) per kept question.
    """
    polar = [item for item in answers if answer_kind(item[0]) == "yes_no"]
    return sum(opposite(majority, ref, question) for question, majority, ref in polar) / len(polar) if polar else 0.0


@dataclass(frozen=True)
class CandidateScores:
    """The four scores of one candidate, each in [0, 1]: S_fid, S_cyc, S_div and S_ctr."""

    fidelity: float
    cycle: float
    diversity: float
    contradiction: float


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
