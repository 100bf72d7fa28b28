"""What the report plots: one panel per question a reader has about a run, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from asg_core.config.schema import RunConfig
from asg_core.method.rewards import BELL_CENTRE, BELL_WIDTH

Ink = Literal["proposer", "solver", "generator", "violet", "olive"]
Kind = Literal["understanding", "generation"]


@dataclass(frozen=True)
class Curve:
    """One metric as a curve: key in metrics.jsonl, label, ink, and the kind of step it is taken from (None: both)."""

    key: str
    label: str
    ink: Ink
    kind: Kind | None = None


@dataclass(frozen=True)
class Panel:
    """One small plot over the steps of a run.

    Attributes:
        title: what it shows, with its unit.
        note: how to read it, one sentence.
        curves: drawn in this order; those without values are left out, a panel without curves too.
        share: the y axis is fixed to [0, 1].
        log: the y axis may be logarithmic where all values are positive and span more than a factor of 50.
        band: (low, high) region that the method aims at.
        line: (value, name) of a reference level.
        only_if_nonzero: left out of the report where all values are 0.
    """

    title: str
    note: str
    curves: tuple[Curve, ...]
    share: bool = False
    log: bool = False
    band: tuple[float, float] | None = None
    line: tuple[float, str] | None = None
    only_if_nonzero: bool = False


@dataclass(frozen=True)
class PanelGroup:
    """Panels under one heading."""

    title: str
    panels: list[Panel] = field(default_factory=list)


def _roles(stem: str, *roles: Literal["proposer", "solver", "generator"]) -> tuple[Curve, ...]:
    return tuple(Curve(f"{stem}_{role}", role.capitalize(), role) for role in roles)


_SIGNAL = PanelGroup(
    "What each role earned",
    [
        Panel(
            "Mean reward",
            "Each role has its own scale. Rewards are the model's own judgement, not accuracy.",
            _roles("reward", "proposer", "solver", "generator"),
        ),
        Panel(
            "Vote entropy H_sc, nats",
            f"Disagreement of the framings. In the band, {BELL_CENTRE} ± {BELL_WIDTH}, the Proposer earns most.",
            (Curve("h_sc", "H_sc", "violet"),),
            band=(BELL_CENTRE - BELL_WIDTH, BELL_CENTRE + BELL_WIDTH),
        ),
        Panel(
            "Majority share",
            "Mean share of the largest cluster of answers. Agreement, not correctness.",
            (Curve("majority_share", "majority share f", "violet"),),
            share=True,
        ),
        Panel(
            "Token entropy STE, nats",
            "How uncertain the Solver was about the tokens of its greedy answer.",
            (Curve("ste_raw", "raw STE", "violet"),),
        ),
        Panel(
            "STE percentile",
            "Rank among the latest values, so it stays near 0.5 unless questions get harder or easier.",
            (Curve("ste_percentile", "percentile", "violet"),),
            share=True,
            line=(0.5, "0.5"),
        ),
        Panel(
            "Questions per step",
            "Asked, taught to the Solver, refused by the gate, and left without two equal answers.",
            (
                Curve("questions", "asked", "proposer"),
                Curve("learned_questions", "learned", "solver"),
                Curve("gate_failures", "gate failures", "violet"),
                Curve("unsolvable", "unsolvable", "olive"),
            ),
        ),
    ],
)

_DRAWING = PanelGroup(
    "How the drawings were judged",
    [
        Panel(
            "Parts of the generation reward",
            "Fidelity, cycle consistency and diversity count for a drawing, contradiction against it.",
            (
                Curve("s_fid", "fidelity S_fid", "generator"),
                Curve("s_cyc", "cycle S_cyc", "proposer"),
                Curve("s_div", "diversity S_div", "violet"),
                Curve("s_ctr", "contradiction S_ctr", "solver"),
            ),
            share=True,
        ),
        Panel(
            "Quality of drawing tasks",
            "A factor of every drawing's reward: enough questions kept, few dropped, not only yes or no.",
            (Curve("spec_quality", "spec quality", "proposer"),),
            share=True,
        ),
        Panel(
            "Drawing tasks per step",
            "Skipped: no task with two questions that the Solver answers consistently, in three tries.",
            (Curve("specs", "tasks", "generator"), Curve("skipped", "skipped", "olive")),
        ),
    ],
)

_UPDATES = (
    Panel(
        "Loss",
        "A policy-gradient loss has no meaningful level; look for jumps.",
        (
            *_roles("loss", "proposer", "solver", "generator"),
            Curve("penalty_generator", "Generator penalty", "olive"),
        ),
    ),
    Panel(
        "Replay, KL in nats per token",
        "Log-probs stored while sampling against scored ones: rounding, as no weight has moved in between.",
        _roles("replay_kl", "proposer", "solver", "generator"),
        log=True,
    ),
    Panel(
        "Replayed tokens beyond the clip",
        "Share of tokens whose ratio rounding alone takes out of the trust region. Learning does not see it.",
        _roles("replay_beyond_clip", "proposer", "solver", "generator"),
        share=True,
        only_if_nonzero=True,
    ),
    Panel(
        "Groups without signal",
        "Share of groups in which all rewards are equal, so that nothing is learned from them.",
        (
            Curve("zero_variance_share", "understanding", "violet", "understanding"),
            Curve("zero_variance_share", "generation", "generator", "generation"),
        ),
        share=True,
    ),
    Panel(
        "Variety",
        "Collapse shows as few distinct questions, or as one label taking nearly all answers.",
        (
            Curve("distinct_question_share", "distinct questions", "proposer"),
            Curve("constant_answer_share", "most frequent label", "solver"),
        ),
        share=True,
    ),
    Panel(
        "Seconds per step",
        "Wall time.",
        (
            Curve("seconds", "understanding", "violet", "understanding"),
            Curve("seconds", "generation", "generator", "generation"),
        ),
    ),
    Panel(
        "Dropped as non-finite",
        "Samples or updates per step that were dropped because a number was not finite.",
        (Curve("nonfinite", "dropped", "solver"),),
        only_if_nonzero=True,
    ),
)


def panel_groups(config: RunConfig) -> list[PanelGroup]:
    """Return the panels of a run; ``config`` supplies reference levels (KL target, gradient clip)."""
    steered = [
        Panel(
            "KL to the base model, nats per token",
            "How far a role's policy has moved. Flow and diffusion generators have none.",
            _roles("kl", "proposer", "solver", "generator"),
            log=True,
            line=(config.policy.kl_target, "target"),
        ),
        Panel(
            "KL weight beta",
            "Rises while KL is above its target and falls below it.",
            _roles("beta", "proposer", "solver"),
            log=True,
        ),
        Panel(
            "Gradient norm before clipping",
            f"Norms above {config.optimizer.max_grad_norm:g} are clipped to it.",
            _roles("grad_norm", "proposer", "solver", "generator"),
            log=True,
        ),
    ]
    return [_SIGNAL, _DRAWING, PanelGroup("What the updates did", [*steered, *_UPDATES])]
