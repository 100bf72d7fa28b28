"""What a study runs, as data: arms, each a change to a common configuration, and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict, Field, model_validator

from asg_core.config.schema import RunConfig
from asg_core.config.strict_yaml import read_yaml
from asg_core.config.validation import validate
from asg_core.errors import ConfigError, did_you_mean
from asg_core.runs.configuration import layered_run_config

_SHIPPED = "asg_lab.study"

MEASURES = {"signals": "asg_lab.study.signals:SignalsMeasure"}
"""What a suite's ``measure`` names: module:class(suite), whose ``write(out)`` measures the runs and returns a page."""


class Arm(BaseModel):
    """One configuration of a study."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    about: str = Field(description="what it is, one line")
    config: dict[str, Any] = Field(default_factory=dict, description="settings that differ from the suite's own")


class Suite(BaseModel):
    """A study: every arm is run with every seed, and compared with the reference arm and with its own beginning."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="of the study")
    about: str = Field(description="the question that it answers, one line")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        min_length=1, description="run seeds, each used by every arm"
    )
    reference: str = Field(description="arm that the others are compared with")
    config: dict[str, Any] = Field(default_factory=dict, description="settings of all arms")
    arms: dict[str, Arm] = Field(min_length=1, description="by name")
    measure: Literal["signals"] | None = Field(None, description="what is measured besides, when the runs are done")

    @model_validator(mode="after")
    def _consistent(self) -> Suite:
        if self.reference not in self.arms:
            raise ValueError(f"reference {self.reference!r} is no arm. {did_you_mean(self.reference, self.arms)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed is there twice")
        return self

    def run_config(self, arm: str, seed: int) -> RunConfig:
        """The checked configuration of one run. Raises ConfigError as ``asg train`` would."""
        merged = OmegaConf.to_container(OmegaConf.merge(self.config, self.arms[arm].config, {"seed": seed}))
        return layered_run_config([(f"arm {arm!r}", cast(dict[str, Any], merged))])

    def narrowed(self, arms: Sequence[str], seeds: Sequence[int]) -> Suite:
        """The same study with some arms and seeds only; all where none are named.

        Raises:
            ConfigError: an arm that does not exist.
        """
        for arm in arms:
            if arm not in self.arms:
                raise ConfigError(
                    f"study {self.name!r} has no arm {arm!r}", "--arms names it", did_you_mean(arm, self.arms)
                )
        chosen = {name: arm for name, arm in self.arms.items() if not arms or name in arms}
        reference = self.reference if self.reference in chosen else next(iter(chosen))
        return self.model_copy(update={"arms": chosen, "seeds": tuple(seeds) or self.seeds, "reference": reference})


def shipped_suites() -> dict[str, str]:
    """Names of the suites in the package, and the question that each answers."""
    found = (entry for entry in (files(_SHIPPED) / "suites").iterdir() if entry.name.endswith(".yaml"))
    return {suite.name: suite.about for suite in map(_parsed, sorted(map(str, found)))}


def load_suite(name: str) -> Suite:
    """A shipped suite by its name, or a suite of your own by the path of its YAML file.

    Raises:
        ConfigError: there is no such suite or file; the file does not fit; an arm's configuration is wrong.
    """
    file = Path(name)
    if not file.suffix:
        known = shipped_suites()
        if name not in known:
            raise ConfigError(
                f"there is no study {name!r}", "it is neither shipped nor a YAML file", did_you_mean(name, known)
            )
        file = Path(str(files(_SHIPPED) / "suites" / f"{name}.yaml"))
    suite = _parsed(str(file))
    for arm in suite.arms:
        suite.run_config(arm, suite.seeds[0])
    return suite


def _parsed(path: str) -> Suite:
    values: Mapping[str, Any] = read_yaml(Path(path))
    return validate(Suite, values, origin=lambda key: path)
