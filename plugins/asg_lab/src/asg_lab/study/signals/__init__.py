"""Signals against the truth: do entropies and agreement know when the model is wrong, do rewards follow quality?

``asg study signals`` trains, then measures here: on held-out questions, the base and every trained Solver; on what the
runs recorded, every reward beside the truth. Only for backbones whose manifest names a known world.
"""

from __future__ import annotations

from pathlib import Path

from asg_core.backbones.interface import Role
from asg_core.backbones.registry import find_manifest, resolve
from asg_core.config.schema import RunConfig
from asg_core.errors import CapabilityError, ConfigError
from asg_core.evaluation.truth import KnownWorld
from asg_core.runs.opening import load_base
from asg_lab.study.runner import is_finished, run_folder_of
from asg_lab.study.signals.page import Measured, stored_rows, write_signals
from asg_lab.study.signals.rows import BASE
from asg_lab.study.signals.solving import solve_held_out
from asg_lab.study.signals.training import read_training
from asg_lab.study.suite import Suite

QUESTIONS = 980
"""Held-out questions of each seed."""


class SignalsMeasure:
    """What a study of signals measures when its runs are done.

    Args:
        suite: the study; its runs must be on the backbone's own images.

    Raises:
        CapabilityError: the backbone knows no truth about its images. ConfigError: a run has a folder of images.
    """

    def __init__(self, suite: Suite) -> None:
        self._suite = suite
        for arm in suite.arms:
            config = suite.run_config(arm, suite.seeds[0])
            _world_class(config)
            _require_own_images(config, arm)

    def write(self, out: Path) -> Path:
        """Measure the finished runs in the study's folder; write signals.json, .md and .html there; returns the page.

        The raw rows go into ``signals_rows.json``, and come from there where the runs are gone. Unfinished runs are
        left out.
        """
        measured = stored_rows(self._suite, out)
        if measured is None:
            measured = Measured(self._suite, [], [], [], [], {})
            for seed in self._suite.seeds:
                self._measure(seed, out, measured)
        return write_signals(measured, out)

    def _measure(self, seed: int, out: Path, to: Measured) -> None:
        suite = self._suite
        config = suite.run_config(suite.reference, seed)
        questions = _world_class(config)(seed).questions(QUESTIONS)
        to.solved.extend(solve_held_out(load_base(config), None, BASE, questions, config))
        for arm in suite.arms:
            run, config = run_folder_of(out, arm, seed), suite.run_config(arm, seed)
            if not is_finished(run):
                continue
            backbone = load_base(config)
            backbone.load_role(Role.SOLVER, run / "adapters" / Role.SOLVER.value)
            to.solved.extend(solve_held_out(backbone, Role.SOLVER, arm, questions, config))
            asked, referenced, drawn = read_training(run, arm, seed, _world_class(config)(seed))
            to.asked.extend(asked)
            to.referenced.extend(referenced)
            to.drawn.extend(drawn)
            to.steps[arm] = config.steps


def _world_class(config: RunConfig) -> type[KnownWorld]:
    target = find_manifest(config.backbone).truth
    if target is None:
        raise CapabilityError(
            f"nothing is known of the images of backbone {config.backbone!r}",
            "its plugin announces no known world, so signals cannot be held against the truth",
            "study signals on a backbone that has one, such as the embedded ones",
        )
    world: type[KnownWorld] = resolve(target)
    return world


def _require_own_images(config: RunConfig, arm: str) -> None:
    if config.images is not None:
        raise ConfigError(
            f"images={config.images} of arm {arm!r} is a folder of unlabeled images",
            "only the backbone's own images have a known truth",
            "leave images out of a study of signals",
        )
