"""The method "Ask, Solve, Generate" (arXiv 2606.27376), without a model, a loop or a file: usable as a library.

    image --Proposer--> K questions --Solver, 7 framings--> answers --vote--> f, m, H_sc      understanding
                                    --Solver, greedy------> STE                               R_p, R_s
    image --Proposer--> spec --Generator--> N_g drawings --Solver--> fidelity, cycle, ...      generation, R_g
    samples + advantages --> clipped policy gradient + KL to the base, or weighted regression  updates

| file | what it says |
|---|---|
| ``understanding``, ``generation`` | the two steps |
| ``prompts``, ``answers`` | the words: questions, framings and specs; labels and votes |
| ``token_entropy``, ``rewards``, ``losses`` | the formulas: STE, rewards and scores, advantages and loss terms |
| ``updates``, ``generator_updates``, ``replay`` | one update of a role; sampling and scoring agree, or the run stops |
| ``context``, ``ablations``, ``records`` | what a step needs, what it may leave out, what it leaves behind |
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "StepContext": "context",
    "generation_step": "generation",
    "proposer_reward": "rewards",
    "solver_rewards": "rewards",
    "solver_token_entropy": "token_entropy",
    "understanding_step": "understanding",
    "vote": "answers",
}
__all__ = list(_LAZY)

if TYPE_CHECKING:
    from asg_core.method.answers import vote as vote
    from asg_core.method.context import StepContext as StepContext
    from asg_core.method.generation import generation_step as generation_step
    from asg_core.method.rewards import proposer_reward as proposer_reward
    from asg_core.method.rewards import solver_rewards as solver_rewards
    from asg_core.method.token_entropy import solver_token_entropy as solver_token_entropy
    from asg_core.method.understanding import understanding_step as understanding_step


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
