"""How the base is made sensitive to prompt framing, on purpose (CARD.md, headroom).

Real models answer one question differently under different wordings of the same instruction. Here that is built in
with a known shape: for each kind of question and each true answer, some of the framings were pre-trained mostly on
one wrong answer. A vote over the framings therefore knows more than any single framing, which is what
self-consistency can teach.
"""

from __future__ import annotations

import random
from functools import cache

from asg_core.method.prompts import FRAMINGS, HELD_OUT_FRAMINGS
from asg_core.tiny.questions import NUMBERS
from asg_core.tiny.world import COLORS, SHAPES, SIZES

ALL_FRAMINGS = FRAMINGS + HELD_OUT_FRAMINGS
WRONG_SHARE = 0.7
"""Share of a biased cell's pre-training examples that are wrong: greedy answers err, sampled ones vary."""

_LABELS: dict[str, tuple[tuple[str, ...], ...]] = {
    "color": (tuple(COLORS),),
    "shape": (SHAPES,),
    "count": (NUMBERS,),
    "existence": (("yes", "no"),),
    "position": (("yes", "no"),),
    "size": (SIZES,),
    "which": (tuple(COLORS), SHAPES),
}
_BIASED_FRAMINGS = (1, 2, 3, 4)
_BIASED_WEIGHTS = (15, 35, 35, 15)
_COUNT_SHARES = {"zero": 0.03, "one": 0.4, "two": 0.3, "three": 0.15, "four": 0.12}
"""How often a count is the answer; the answers of the other kinds are about equally frequent."""


@cache
def wrong_answers() -> dict[tuple[int, str, str], str]:
    """(framing index, kind, true answer) -> the wrong answer that this framing leans to; absent where it is unbiased.

    Of the seven training framings 1 to 4 are biased per (kind, answer), the least burdened first, with different wrong
    answers where the kind has that many. No framing swaps both answers of a two-way question. A held-out framing
    leans, for each kind, as one of the training framings does, as a new wording resembles known ones.
    """
    rng = random.Random(301)
    table: dict[tuple[int, str, str], str] = {}
    burden = [0.0] * len(FRAMINGS)
    for kind, groups in _LABELS.items():
        for labels in groups:
            for label in labels:
                share = _COUNT_SHARES.get(label, 1 / sum(map(len, groups)))
                free = [
                    f for f in range(len(FRAMINGS)) if len(labels) > 2 or not any((f, kind, x) in table for x in labels)
                ]
                rng.shuffle(free)
                free.sort(key=burden.__getitem__)
                others = rng.sample([x for x in labels if x != label], len(labels) - 1)
                for place, framing in enumerate(free[: rng.choices(_BIASED_FRAMINGS, _BIASED_WEIGHTS)[0]]):
                    table[framing, kind, label] = others[place % len(others)]
                    burden[framing] += share
    for held_out in range(len(FRAMINGS), len(ALL_FRAMINGS)):
        for kind, groups in _LABELS.items():
            like = rng.randrange(len(FRAMINGS))
            for label in (x for labels in groups for x in labels):
                if (like, kind, label) in table:
                    table[held_out, kind, label] = table[like, kind, label]
    return table


def framed_answer(framing: int, kind: str, answer: str, rng: random.Random) -> str:
    """The pre-training answer under framing number ``framing``: the true one, or the framing's wrong one."""
    wrong = wrong_answers().get((framing, kind, answer))
    return wrong if wrong is not None and rng.random() < WRONG_SHARE else answer
