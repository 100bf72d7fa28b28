"""The checks as a pytest class: one test a check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from asg_core.backbones.interface import Backbone
from asg_core.testing.conformance.check import CHECKS
from asg_core.testing.conformance.runner import Profile, check_names, run_check, selected
from asg_core.testing.conformance.subject import Subject


class BackboneConformance:
    """Inherit, say how the backbone is loaded, and pytest runs every check::

        class TestMine(BackboneConformance):
            expected_failures = {"drawing.seeds": "the decoder draws its own noise"}

            def load(self, **settings):
                return load_backbone("mine", weights=CHECKPOINT, **settings)

    A check that does not apply is skipped with its reason; one that is expected to fail is an xfail, and fails the
    test if it passes.
    """

    expected_failures: ClassVar[Mapping[str, str]] = {}
    profile: ClassVar[Profile] = "full"
    image_size: ClassVar[tuple[int, int] | None] = None
    guidance_off: ClassVar[Mapping[str, Any] | None] = None

    _subject: ClassVar[Subject | None] = None

    def __init_subclass__(cls) -> None:
        """Each class tests a backbone of its own."""
        super().__init_subclass__()
        cls._subject = None

    def load(self, **settings: Any) -> Backbone:
        """A new backbone with fresh adapters; ``settings`` are keywords of load_backbone."""
        raise NotImplementedError("override load(self, **settings) and return your backbone")

    @classmethod
    def pytest_generate_tests(cls, metafunc: Any) -> None:
        """One test for each check of the profile."""
        if "check_id" in metafunc.fixturenames:
            check_names(cls.expected_failures)
            metafunc.parametrize("check_id", [check.id for check in selected(cls.profile)])

    def test_conformance(self, check_id: str) -> None:
        """The check's property holds, or fails as announced."""
        import pytest

        cls = type(self)
        subject = cls._subject = cls._subject or Subject(self.load, self.image_size, self.guidance_off)
        check = CHECKS[check_id]
        outcome = run_check(check, subject, self.expected_failures.get(check_id))
        if outcome.status == "skipped":
            pytest.skip(outcome.reason)
        if outcome.status == "expected":
            pytest.xfail(outcome.reason)
        if outcome.status == "unexpected":
            pytest.fail(f"{check_id} was expected to fail ({outcome.reason}) and passes: take it out of the list")
        if outcome.status == "failed":
            if outcome.crash is not None:
                raise outcome.crash
            pytest.fail(f"{check.meaning}\n  found:  {outcome.reason}\n  remedy: {outcome.remedy}", pytrace=False)
