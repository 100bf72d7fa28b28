"""What whole steps cost on an 8-layer Qwen2.5-VL with random weights: counts, which do not depend on the machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from PIL import Image

from asg_core.backbones.interface import Role, TextSample
from asg_core.config.schema import RunConfig
from asg_core.method.records import UnderstandingItem
from asg_core.testing.qwen import QwenBackbone, random_qwen
from asg_core.testing.step_costs import BESIDE_TOKENS, CountedStep, excess, understanding

LAYERS, VISION = "language_model.layers", "visual.blocks"
ASKED, ANSWERED = 16, 6
CONFIG = RunConfig.model_validate(
    {
        "ask": {"max_new_tokens": ASKED},
        "solve": {"max_new_tokens": ANSWERED},
        "optimizer": {"lr_proposer": 1e-3, "lr_solver": 1e-3},
    }
)


def picture(seed: int, side: int) -> Image.Image:
    noise = torch.randint(0, 256, (side, side, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


def backbone_of() -> QwenBackbone:
    return QwenBackbone(random_qwen(layers=8), letters_per_token=4, scale=0.02)


@pytest.fixture(scope="module")
def step_of() -> Callable[..., CountedStep]:
    """A counted step: images of 224 pixels have 64 tokens, of 448 pixels 256."""
    known: dict[tuple[int, int, int, int], CountedStep] = {}

    def run(images: int = 2, side: int = 224, questions: int = 3, framings: int = 7) -> CountedStep:
        key = (images, side, questions, framings)
        if key not in known:
            update = {
                "ask": CONFIG.ask.model_copy(update={"questions_per_image": questions}),
                "solve": CONFIG.solve.model_copy(update={"framings": framings}),
            }
            shown = [picture(i, side) for i in range(images)]
            known[key] = understanding(backbone_of(), shown, CONFIG.model_copy(update=update))
        return known[key]

    return run


def samples_of(step: CountedStep) -> tuple[list[TextSample], list[TextSample], list[TextSample]]:
    """Questions, sampled answers, greedy answers."""
    items = [item for item in step.items if isinstance(item, UnderstandingItem)]
    questions = [q for item in items for q in item.questions]
    answers = [a.sample for q in questions for a in q.answers]
    return [q.completion for q in questions], answers, [q.greedy for q in questions if q.greedy]


def test_the_step_under_test_is_a_whole_one(step_of: Callable[..., CountedStep]) -> None:
    step = step_of()
    questions, answers, greedy = samples_of(step)
    assert (len(questions), len(answers), len(greedy)) == (6, 42, 6)
    assert all(step.reports[role].step.applied for role in (Role.PROPOSER, Role.SOLVER))


@pytest.mark.parametrize("images", [1, 3])
def test_an_image_is_seen_once(step_of: Callable[..., CountedStep], images: int) -> None:
    tower = step_of(images).costs.network(VISION)
    assert (tower.passes, tower.tokens) == (1, images * 256)


@pytest.mark.parametrize("images", [1, 2, 3])
def test_an_image_prefix_is_prefilled_five_times_in_three_passes(
    step_of: Callable[..., CountedStep], images: int
) -> None:
    """Proposer, Solver and base side by side before anything is sampled; then once per role for its gradient."""
    image = 64 + 2
    prefills = [rows for rows, width in step_of(images).prefills if width >= image]
    assert prefills == [3 * images, images, images]


def one_row_each(backbone: QwenBackbone, samples: Sequence[TextSample]) -> int:
    """Tokens that the language model reads when every sample runs alone, from the image on."""
    text = backbone.text
    return sum(
        len(text.prefixes([s.request.image])[0].embeds) + len(text.prompt(s.request.prompt).embeds) + len(s.token_ids)
        for s in samples
    )


@pytest.mark.parametrize(("side", "limit"), [(224, 0.48), (448, 0.30)])
def test_a_step_reads_few_tokens(step_of: Callable[..., CountedStep], side: int, limit: float) -> None:
    """Against a step that samples, scores under the policy and scores under the base model one sample at a time."""
    step = step_of(side=side)
    questions, answers, greedy = samples_of(step)
    plain = 3 * one_row_each(backbone_of(), [*questions, *answers]) + one_row_each(backbone_of(), greedy)
    assert step.costs.network(LAYERS).tokens <= limit * plain


@pytest.mark.parametrize(("images", "questions", "framings"), [(1, 3, 7), (3, 3, 7), (2, 5, 3)])
def test_passes_depend_on_lengths_alone(
    step_of: Callable[..., CountedStep], images: int, questions: int, framings: int
) -> None:
    costs = step_of(images, 224, questions, framings).costs
    assert costs.network(LAYERS).passes <= ASKED + ANSWERED + BESIDE_TOKENS


def test_a_role_is_updated_by_one_backward_pass_and_one_optimizer_step(step_of: Callable[..., CountedStep]) -> None:
    costs = step_of().costs
    assert costs.backwards == costs.optimizer_steps == {Role.PROPOSER: 1, Role.SOLVER: 1}
    assert costs.phases["update"].calls == 2


def test_entropies_and_sampling_logprobs_cost_no_pass(step_of: Callable[..., CountedStep]) -> None:
    """The only calls are one prefill, ask, solve, and one score per update: the greedy answers that STE is measured on
    are rows of the sampled ones' batch, one row a question."""
    step = step_of()
    questions, answers, _ = samples_of(step)
    calls = {phase: cost.calls for phase, cost in step.costs.phases.items() if cost.calls}
    assert calls == {"prefill": 1, "ask": 1, "solve": 1, "update": 2}
    assert step.costs.phases["solve"].rows == len(answers) + len(questions)
    assert step.costs.network(LAYERS, "solve").passes <= ANSWERED
    assert step.costs.network("lm_head", "solve").passes <= 2 * ANSWERED


def test_logits_come_128_rows_at_a_time(step_of: Callable[..., CountedStep]) -> None:
    answers = samples_of(step_of())[1]
    assert sum(len(sample.token_ids) for sample in answers) > 128
    assert step_of().operations.rows == 128


def test_the_host_waits_once_a_token_and_four_times_an_update(step_of: Callable[..., CountedStep]) -> None:
    step = step_of()
    for phase in ("ask", "solve"):
        # the last transfer is that of log-probs and entropies
        assert step.operations.syncs_in(phase) <= step.costs.network("lm_head", phase).passes + 1
    assert step.operations.syncs_in("update") <= 4 * 2


def test_nothing_is_wasted_in_the_hot_loop(step_of: Callable[..., CountedStep]) -> None:
    assert step_of().wasted == {}
    assert excess(step_of(), language=LAYERS, vision=VISION) == []
