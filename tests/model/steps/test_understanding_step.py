"""The understanding step on the embedded backbone: everything recorded is consistent with METHOD."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from PIL.Image import Image

from asg_core import RunConfig
from asg_core.backbones.interface import Backbone, Role, TextRequest, TextSample, TextSampling, TextSamplings
from asg_core.backbones.proxy import BackboneProxy
from asg_core.data.image_pool import PoolImage
from asg_core.method.answers import canonical_label, vote
from asg_core.method.context import StepContext
from asg_core.method.losses import EmaBaseline, leave_one_out, z_score
from asg_core.method.prompts import CANONICAL_FRAMING, FRAMINGS, frame
from asg_core.method.records import Question, UnderstandingItem
from asg_core.method.rewards import GATE_PENALTY, solver_rewards
from asg_core.method.token_entropy import RollingPercentile, solver_token_entropy
from asg_core.method.understanding import understanding_step

TEXT_ROLES = (Role.PROPOSER, Role.SOLVER)


def run(
    backbone: Backbone, images: list[PoolImage], config: RunConfig, window: RollingPercentile | None = None
) -> list[UnderstandingItem]:
    ctx = StepContext(config, 1)
    return understanding_step(backbone, images, ctx, window or RollingPercentile(), EmaBaseline())


def asked(items: list[UnderstandingItem]) -> list[Question]:
    return [q for item in items for q in item.questions if q.text is not None]


@pytest.fixture
def items(
    recorded: Callable[..., list[UnderstandingItem]], tiny: Backbone, images: list[PoolImage], config: RunConfig
) -> list[UnderstandingItem]:
    return recorded("understanding", lambda: run(tiny, images, config))


def test_each_answer_is_sampled_under_its_own_framing_and_nothing_else_varies(items: list[UnderstandingItem]) -> None:
    for item in items:
        for q in item.questions:
            for answer, framing in zip(q.answers, FRAMINGS if q.answers else (), strict=True):
                assert answer.sample.request.prompt == frame(str(q.text), framing)
                assert answer.sample.request.image is item.source.image
                assert answer.sample.temperature == 1.0


def test_seeds_are_all_different(items: list[UnderstandingItem]) -> None:
    seeds = [q.completion.request.seed for i in items for q in i.questions]
    seeds += [a.sample.request.seed for q in asked(items) for a in q.answers]
    assert len(set(seeds)) == len(seeds)


def test_votes_rewards_and_advantages_follow_from_the_recorded_answers(items: list[UnderstandingItem]) -> None:
    assert len(asked(items)) >= 6
    for q in asked(items):
        labels = [canonical_label(a.sample.text, str(q.text)) for a in q.answers]
        assert [a.label for a in q.answers] == labels
        assert q.vote is not None
        assert q.vote.majority_share == max(labels.count(x) for x in labels) / 7
        assert q.vote.entropy == pytest.approx(vote(labels, 0).entropy)
        if q.learned:
            assert 0.5 <= q.vote.majority_share < 1
            assert [a.reward for a in q.answers] == solver_rewards(q.vote)
            assert [a.advantage for a in q.answers] == leave_one_out(solver_rewards(q.vote))
        else:
            assert all(a.advantage is None for a in q.answers)
    for item in items:
        rewards = [q.reward for q in item.questions]
        assert None not in rewards
        assert [q.advantage for q in item.questions] == z_score([r for r in rewards if r is not None])
    assert any(q.learned for q in asked(items))


def test_ste_is_measured_on_one_greedy_canonical_answer(items: list[UnderstandingItem]) -> None:
    for q in asked(items):
        assert q.greedy is not None
        assert q.greedy.request.prompt == frame(str(q.text), CANONICAL_FRAMING)
        assert q.ste == solver_token_entropy(q.greedy, 5, "max")


def test_the_answer_that_ste_is_measured_on_does_not_depend_on_its_seed(
    items: list[UnderstandingItem], tiny: Backbone, config: RunConfig
) -> None:
    greedy = [q.greedy for q in asked(items) if q.greedy is not None]
    again = [replace(sample.request, seed=sample.request.seed + 1) for sample in greedy]
    sampled = tiny.solve(again, TextSampling(config.solve.max_new_tokens, temperature=0.0))
    assert [s.token_ids for s in greedy] == [s.token_ids for s in sampled]
    hot = tiny.solve(again, TextSampling(config.solve.max_new_tokens, config.solve.temperature))
    assert [s.token_ids for s in greedy] != [s.token_ids for s in hot], "sampling would have shown"


def test_percentiles_are_taken_before_any_value_of_the_step_is_inserted(
    tiny: Backbone, images: list[PoolImage], config: RunConfig
) -> None:
    window = RollingPercentile()
    for value in [0.1 * i for i in range(20)]:
        window.insert(value)
    before = window.state()
    items = run(tiny, images, config, window)
    fresh = RollingPercentile()
    fresh.restore(before)
    raws = [q.ste for q in asked(items) if q.ste is not None]
    assert [q.ste_percentile for q in asked(items) if q.ste is not None] == [fresh.difficulty(raw) for raw in raws]
    assert window.state() == [*before, *raws][-128:]


def test_switching_ste_off_leaves_the_self_consistency_reward(
    tiny: Backbone, images: list[PoolImage], config: RunConfig
) -> None:
    items = run(tiny, images, config.model_copy(update={"ste": config.ste.model_copy(update={"reduce": "off"})}))
    for q in asked(items):
        assert q.greedy is None
        assert q.scored is not None
        if q.scored.reason == "scored":
            assert q.reward == q.scored.self_consistency


class Mumbling(BackboneProxy):
    """The embedded backbone with a Proposer whose every other completion is replaced, to reach the gate."""

    def __init__(self, inner: Backbone) -> None:
        super().__init__(inner)
        self.solved: list[TextRequest] = []

    def ask(
        self, requests: Sequence[TextRequest], sampling: TextSamplings, role: Role | None = Role.PROPOSER
    ) -> list[TextSample]:
        samples = super().ask(requests, sampling, role)
        return [replace(s, text="no question here", pieces=(s.text,)) if i % 2 else s for i, s in enumerate(samples)]

    def solve(
        self, requests: Sequence[TextRequest], sampling: TextSamplings, role: Role | None = Role.SOLVER
    ) -> list[TextSample]:
        self.solved += requests
        return super().solve(requests, sampling, role)


def test_the_gate_costs_a_fixed_penalty_and_nothing_further(
    tiny: Backbone, images: list[PoolImage], config: RunConfig
) -> None:
    mumbling = Mumbling(tiny)
    items = run(mumbling, images, config)
    gated = [q for item in items for q in item.questions if q.gate is not None]
    assert len(gated) >= 3 * len(images) // 2
    for q in gated:
        assert q.reward == GATE_PENALTY
        assert q.answers == []
        assert q.vote is None
    assert len(mumbling.solved) == 8 * len(asked(items))


@pytest.mark.parametrize("ablation", ["random_rewards", "shuffled_votes"])
def test_perturbed_rewards_break_the_meaning_of_the_rewards(
    ablation: str, tiny: Backbone, images: list[PoolImage], config: RunConfig, items: list[UnderstandingItem]
) -> None:
    perturbed = run(tiny, images, config.model_copy(update={"ablation": ablation}))
    honest = [a.reward for q in asked(items) for a in q.answers if q.learned]
    broken = [a.reward for q in asked(perturbed) for a in q.answers if q.learned]
    assert [a.label for q in asked(items) for a in q.answers] == [a.label for q in asked(perturbed) for a in q.answers]
    assert broken != honest
    if ablation == "shuffled_votes":
        assert sorted(x for x in broken if x is not None) == sorted(x for x in honest if x is not None)


def test_no_usable_question_at_all_is_not_an_error(tiny: Backbone, images: list[PoolImage], config: RunConfig) -> None:
    short = config.model_copy(update={"ask": config.ask.model_copy(update={"max_new_tokens": 1})})
    items = run(tiny, images, short)
    assert asked(items) == []
    assert all(q.reward == GATE_PENALTY and q.advantage == 0.0 for item in items for q in item.questions)
    assert all(math.isfinite(q.reward or 0.0) for item in items for q in item.questions)


class Noting(BackboneProxy):
    """Remembers what was to be read ahead."""

    def __init__(self, inner: Backbone) -> None:
        super().__init__(inner)
        self.read: list[tuple[list[Image], list[Role | None]]] = []

    def prefill(self, images: Sequence[Image], roles: Sequence[Role | None]) -> None:
        self.read.append((list(images), list(roles)))


@pytest.mark.parametrize(
    ("rates", "policies"),
    [((0.0, 1e-3), {*TEXT_ROLES, None}), ((1e-3, 0.0), {*TEXT_ROLES, None}), ((0.0, 0.0), {*TEXT_ROLES})],
)
def test_images_are_read_ahead_under_the_policies_that_the_step_needs(
    rates: tuple[float, float], policies: set[Role | None], tiny: Backbone, images: list[PoolImage], config: RunConfig
) -> None:
    """The base only where an update will ask for its KL."""
    optimizer = config.optimizer.model_copy(update={"lr_proposer": rates[0], "lr_solver": rates[1]})
    noting = Noting(tiny)
    run(noting, images, config.model_copy(update={"optimizer": optimizer}))
    ((shown, roles),) = noting.read
    assert all(a is b.image for a, b in zip(shown, images, strict=True))
    assert (len(roles), set(roles)) == (len(policies), policies)
