"""Run the checks and say what came of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from asg_core.errors import AsgError, ConfigError, did_you_mean
from asg_core.testing.conformance.check import CHECKS, Check
from asg_core.testing.conformance.subject import BackboneFactory, Subject
from asg_core.testing.conformance.violations import NotApplicable, Violation, origin

Profile = Literal["quick", "full"]


@dataclass(frozen=True)
class Outcome:
    """What came of one check.

    Attributes:
        check: which one.
        status: "passed"; "failed"; "skipped" (does not apply); "expected" (failed as announced); "unexpected" (was
            announced to fail and passed, which is a failure: the announcement is out of date).
        reason: why it failed, was skipped, or was expected to fail; "" if passed.
        crash: the exception of a call that the check made, if that is why it failed.
    """

    check: Check
    status: Literal["passed", "failed", "skipped", "expected", "unexpected"]
    reason: str = ""
    crash: Exception | None = None

    @property
    def remedy(self) -> str:
        """What to do about a failure."""
        return (
            "the call crashed before anything could be compared: mend that first" if self.crash else self.check.remedy
        )

    @property
    def good(self) -> bool:
        """Whether the backbone conforms as far as this check goes."""
        return self.status in ("passed", "skipped", "expected")


@dataclass(frozen=True)
class Report:
    """All outcomes of one backbone, in the order of the checks."""

    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        """Whether every outcome is good and at least one check passed."""
        return all(o.good for o in self.outcomes) and any(o.status == "passed" for o in self.outcomes)

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The outcomes that are not good."""
        return tuple(outcome for outcome in self.outcomes if not outcome.good)


def check_backbone(
    factory: BackboneFactory,
    *,
    expected_failures: Mapping[str, str] | None = None,
    profile: Profile = "full",
    only: Sequence[str] = (),
    image_size: tuple[int, int] | None = None,
    guidance_off: Mapping[str, Any] | None = None,
    each: Callable[[Outcome], None] = lambda outcome: None,
) -> Report:
    """Run the conformance checks on a backbone.

    Args:
        factory: loads it; every call gives a new instance with fresh adapters.
        expected_failures: id of a check -> why this backbone cannot pass it. A check that is listed and passes counts
            as a failure.
        profile: "full" runs all checks, "quick" leaves out the slow ones.
        only: run the checks whose id starts with one of these; all if there are none.
        image_size: (width, height) of drawn images in the rollout profile, or None if any one size is right.
        guidance_off: options with which the backbone draws without guidance, or None if there are none.
        each: called with every outcome as soon as there is one.

    Raises:
        ConfigError: ``expected_failures`` names an unknown check.
        AsgError: the backbone cannot be loaded.
    """
    expected = dict(expected_failures or {})
    check_names(expected)
    subject = Subject(factory, image_size, guidance_off)
    outcomes = []
    for check in selected(profile, only):
        outcomes.append(run_check(check, subject, expected.get(check.id)))
        each(outcomes[-1])
    return Report(tuple(outcomes))


def selected(profile: Profile, only: Sequence[str] = ()) -> list[Check]:
    """The checks of a profile whose id starts with one of ``only``.

    Raises:
        ConfigError: a beginning that no check has.
    """
    for start in only:
        if not any(name.startswith(start) for name in CHECKS):
            raise ConfigError(f"no check starts with {start!r}", "only names it", did_you_mean(start, CHECKS))
    chosen = [check for check in CHECKS.values() if check.quick or profile == "full"]
    return [check for check in chosen if not only or check.id.startswith(tuple(only))]


def check_names(expected_failures: Mapping[str, str]) -> None:
    """Raise ConfigError if an expected failure names no check or gives no reason."""
    for name, reason in expected_failures.items():
        if name not in CHECKS:
            raise ConfigError(f"there is no check {name!r}", "expected_failures names it", did_you_mean(name, CHECKS))
        if not reason.strip():
            raise ConfigError(
                f"the expected failure {name!r} has no reason",
                "a list without reasons cannot be judged",
                "say why this backbone cannot pass it",
            )


def run_check(check: Check, subject: Subject, expected: str | None = None) -> Outcome:
    """Run one check; ``expected`` is the reason why it is expected to fail, if it is."""
    lacking = subject.lacks(check.needs)
    if lacking is not None:
        return Outcome(check, "skipped", lacking)
    crash: Exception | None = None
    try:
        check.run(subject)
    except NotApplicable as reason:
        return Outcome(check, "skipped", str(reason))
    except Violation as violation:
        problem = str(violation)
    except Exception as error:  # noqa: BLE001 - the code under test may raise anything; all of it is a failed check
        crash = error
        message = error.what if isinstance(error, AsgError) else " ".join(str(error).split())
        problem = f"{type(error).__name__}: {message}, at {origin(error)}"
    else:
        return Outcome(check, "passed") if expected is None else Outcome(check, "unexpected", expected)
    finally:
        subject.reset()
    return Outcome(check, "failed", problem, crash) if expected is None else Outcome(check, "expected", expected)
