"""The counts of a step as a pytest class: one understanding and one generation step of a tiny checkpoint, counted."""

from __future__ import annotations

from typing import ClassVar

from asg_core.backbones.interface import Role
from asg_core.config.schema import RunConfig
from asg_core.models.causal import CausalBackbone
from asg_core.testing.conformance.subject import picture
from asg_core.testing.step_costs import CountedStep, excess, generation, understanding
from asg_core.training.profiler import Phase


class BackboneCosts:
    """Inherit, say how the backbone is loaded and what its networks are called, and pytest counts two steps::

        class TestCosts(BackboneCosts):
            language, vision = "language_model.layers", "visual.blocks"

            def load(self):
                return load_backbone("mine", weights=CHECKPOINT)

    Names are endings of those in :class:`asg_core.training.profiler.Costs`. What is particular to the backbone goes
    into tests of the same class, which find the counted steps in ``understood()`` and ``drawn()``.
    """

    language: ClassVar[str]
    vision: ClassVar[str]
    candidates: ClassVar[int] = 3
    images: ClassVar = (picture(1), picture(2, 88, 60))

    _steps: ClassVar[dict[str, CountedStep]]

    def __init_subclass__(cls) -> None:
        """Each class counts steps of its own."""
        super().__init_subclass__()
        cls._steps = {}

    def load(self) -> CausalBackbone:
        """A new backbone on a tiny checkpoint."""
        raise NotImplementedError("override load(self) and return your backbone")

    def understood(self) -> CountedStep:
        """The counted understanding step, taken once."""
        if "understanding" not in self._steps:
            self._steps["understanding"] = understanding(self.load(), self.images, self._config())
        return self._steps["understanding"]

    def drawn(self) -> CountedStep:
        """The counted generation step, taken once."""
        if "generation" not in self._steps:
            self._steps["generation"] = generation(self.load(), self.images, self._config())
        return self._steps["generation"]

    def _config(self) -> RunConfig:
        return RunConfig.model_validate(
            {
                "ask": {"max_new_tokens": 12, "spec_max_new_tokens": 16},
                "solve": {"max_new_tokens": 4, "caption_max_new_tokens": 6},
                "generate": {"candidates": self.candidates},
                "optimizer": {"lr_proposer": 1e-3, "lr_solver": 1e-3, "lr_generator": 1e-3},
            }
        )

    def test_an_understanding_step_stays_below_its_bars(self) -> None:
        """See :func:`asg_core.testing.step_costs.excess`; and each role learns in one optimizer step."""
        step = self.understood()
        assert excess(step, language=self.language, vision=self.vision) == []
        assert step.costs.backwards == step.costs.optimizer_steps == {Role.PROPOSER: 1, Role.SOLVER: 1}

    def test_each_picture_is_seen_once(self) -> None:
        """Those a step starts from and those that it draws. A tower that packs pictures into one row shows only that it
        runs once for each of the two."""
        shown = len(self.images)
        phases: tuple[Phase, ...] = ("prefill", "ask", "solve", "score", "update")
        assert self.understood().costs.network(self.vision, *phases).rows <= shown
        assert self.drawn().costs.network(self.vision, *phases).rows <= shown * (1 + self.candidates)

    def test_an_image_is_prefilled_five_times_in_three_passes(self) -> None:
        """Proposer, Solver and base side by side, then each role alone for its gradient, where an image of which it
        learns nothing is left out, and the prompt is read in the same pass if it is the only one."""
        prefills, images = self.understood().prefills, len(self.images)
        (_, image), (_, prompt) = prefills[:2]
        seen = [rows for rows, width in prefills if width in (image, image + prompt)]
        assert len(seen) == 3, prefills
        assert seen[0] == 3 * images
        assert max(seen[1:]) <= images

    def test_a_generation_step_sees_every_picture_once_and_learns_in_one_step(self) -> None:
        """Those it starts from under Proposer and Solver side by side, all candidates when they are judged."""
        step = self.drawn()
        assert excess(step, language=self.language, vision=self.vision) == []
        assert step.prefills[0][0] == 2 * len(self.images)
        assert step.costs.backwards == step.costs.optimizer_steps == {Role.GENERATOR: 1}
