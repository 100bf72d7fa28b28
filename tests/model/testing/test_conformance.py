"""The kit on the embedded backbones, and what it makes of announced and unannounced failures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from asg_core.backbones.interface import Backbone
from asg_core.backbones.loading import load_backbone
from asg_core.cli import main
from asg_core.errors import ConfigError
from asg_core.testing import BackboneConformance, check_backbone
from asg_core.testing.conformance import CHECKS, hygiene
from asg_core.testing.conformance.runner import selected
from asg_core.tiny.backbone import TinyBackbone
from devkit import sizes

tiny = partial(load_backbone, "tiny")


class TestTiny(BackboneConformance):
    profile: ClassVar = "full" if sizes.FULL else "quick"
    image_size: ClassVar = (32, 32)

    def load(self, **settings: Any) -> Backbone:
        return tiny(**settings)


@pytest.mark.slow
class TestTinyFlow(BackboneConformance):
    profile: ClassVar = "full" if sizes.FULL else "quick"
    image_size: ClassVar = (32, 32)

    def load(self, **settings: Any) -> Backbone:
        return load_backbone("tiny_flow", **settings)


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded backbone with an embedding that sees nothing."""
    see = TinyBackbone.embed
    monkeypatch.setattr(TinyBackbone, "embed", lambda self, items: see(self, ["a dog"] * len(items)))


@pytest.mark.usefixtures("blind")
def test_a_failure_names_its_check_and_fails_the_report():
    report = check_backbone(tiny, only=["embed"])
    assert not report.passed
    assert [outcome.check.id for outcome in report.failures] == ["embed.sees"]
    assert "the same embedding" in report.failures[0].reason


@pytest.mark.usefixtures("blind")
def test_an_expected_failure_is_good_and_keeps_its_reason():
    report = check_backbone(tiny, only=["embed"], expected_failures={"embed.sees": "blind on purpose"})
    assert report.passed
    assert [(o.check.id, o.reason) for o in report.outcomes if o.status == "expected"] == [
        ("embed.sees", "blind on purpose")
    ]


def test_a_crash_says_where_it_came_from(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def embed(self: TinyBackbone, items: Sequence[object]) -> Tensor:
        raise IndexError("off by one")

    monkeypatch.setattr(TinyBackbone, "embed", embed)
    report = check_backbone(tiny, only=["embed.sees"])
    assert report.failures[0].reason.startswith("IndexError: off by one, at test_conformance.py:")
    assert report.failures[0].reason.endswith(" in embed")
    assert "crashed" in report.failures[0].remedy
    monkeypatch.setenv("ASG_DEBUG", "1")
    assert main(["check", "tiny", "--only", "embed.sees", "device=cpu"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_expected_failure_must_really_fail():
    report = check_backbone(tiny, only=["embed"], expected_failures={"embed.sees": "out of date"})
    assert not report.passed
    assert [(o.check.id, o.status) for o in report.failures] == [("embed.sees", "unexpected")]


@pytest.mark.parametrize(("name", "reason"), [("embed.see", "a typing error"), ("embed.sees", " ")])
def test_an_expected_failure_needs_a_known_check_and_a_reason(name: str, reason: str):
    with pytest.raises(ConfigError):
        check_backbone(tiny, expected_failures={name: reason})


def test_the_quick_profile_leaves_out_the_slow_checks_alone():
    slow = {"contract.gradient_checkpointing", "device.one", "hygiene.memory", "imports.side_effects"}
    quick = [o.check.id for o in check_backbone(tiny, profile="quick", only=["contract.g", "embed.sees"]).outcomes]
    assert quick == ["embed.sees"]
    assert {check.id for check in selected("full")} - {check.id for check in selected("quick")} == slow


def test_memory_is_counted_beside_tensors_that_wrap_others():
    class Wrapper(Tensor):
        @classmethod
        def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            raise AssertionError("nothing is computed with it")

    wrapper = Tensor._make_wrapper_subclass(Wrapper, (2,))
    before = hygiene._live_bytes()
    kept = torch.zeros(1000)
    assert hygiene._live_bytes() - before == kept.nbytes
    assert wrapper.shape == (2,)


def test_only_needs_a_check_that_exists():
    with pytest.raises(ConfigError, match="embd"):
        check_backbone(tiny, only=["embd"])


@pytest.mark.usefixtures("blind")
def test_the_command_says_what_failed_and_what_to_do(capsys: pytest.CaptureFixture[str]):
    assert main(["check", "tiny", "--only", "embed", "device=cpu"]) == 1
    printed = capsys.readouterr().out
    assert "FAIL  embed.sees" in printed
    assert CHECKS["embed.sees"].remedy in printed
    assert main(["check", "tiny", "--only", "embed", "--expect", "embed.sees=blind on purpose", "device=cpu"]) == 0
