"""Loading, merging, checking, documenting and storing the configuration of a run.

Layers, lowest first: defaults of ``RunConfig``, the backbone's recommended values, a YAML file, ``key=value`` words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from pydantic import BaseModel

from asg_core.backbones.loading import validate_options
from asg_core.backbones.registry import find_manifest
from asg_core.config.schema import RunConfig
from asg_core.config.strict_yaml import parse_yaml, read_yaml
from asg_core.config.validation import allowed_values, described, dotted, validate
from asg_core.errors import ConfigError
from asg_core.runs.folder import write_atomically

Layer = tuple[str, Mapping[str, Any]]
"""Where values were given, for messages, and the values."""


def load_run_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """The checked configuration of a run.

    Args:
        path: YAML file, or None.
        overrides: ``key=value`` words such as ``solve.temperature=0.7`` or ``trackers=[wandb]``. Values are YAML,
            an empty one is null, and of equal keys the last one counts.

    Raises:
        ConfigError: names the key, its value, where it was given and what is allowed.
        PluginError: the backbone is not installed or its plugin is broken.
    """
    given: list[Layer] = [(str(path), read_yaml(path))] if path is not None else []
    return layered_run_config([*given, *(("command line", _parse_override(word)) for word in overrides)])


def layered_run_config(layers: Sequence[Layer]) -> RunConfig:
    """As :func:`load_run_config`, of values that are data already, lowest layer first."""
    backbone = _merged(layers).get("backbone", RunConfig.model_fields["backbone"].default)
    if isinstance(backbone, str):
        layers = [(f"recommended by {backbone}", find_manifest(backbone).defaults), *layers]
    origins = {key: name for name, values in layers for key, _ in dotted(values)}
    config = validate(RunConfig, _merged(layers), origin=lambda key: origins.get(key, ""))
    if config.backbone_options:
        validate_options(find_manifest(config.backbone), config.backbone_options)
    return config


def write_run_config(config: RunConfig, path: Path) -> None:
    """Store a resolved configuration, every key written out, so that :func:`load_run_config` gives an equal one."""
    write_atomically(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def commented_yaml(config: RunConfig) -> str:
    """``config`` as YAML in which every key says what it means and what it accepts; loads back to the same settings.

    The options of the backbone are written out too. Raises PluginError if they cannot be found.
    """
    lines = [
        "# Configuration of an asg run. Values left out keep the defaults; any value can be given on the command line.",
        "#   asg train CONFIG.yaml key=value section.key=value",
        "",
    ]
    options = validate_options(find_manifest(config.backbone), config.backbone_options)
    return "\n".join(lines + _commented(config, "", options)) + "\n"


def _commented(section: BaseModel, indent: str, options: BaseModel | None = None) -> list[str]:
    lines = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if name == "backbone_options" and options and type(options).model_fields:
            value = options
        if isinstance(value, BaseModel):
            lines += ["", f"{indent}# {described(field)}", f"{indent}{name}:", *_commented(value, indent + "  ")]
            continue
        plain = section.model_dump(mode="json", include={name})
        # one line, in flow style: "{name: value}" without its braces
        text = yaml.safe_dump(plain, default_flow_style=True, width=10_000, allow_unicode=True).strip()[1:-1]
        lines += [f"{indent}# {described(field)} ({allowed_values(field)})", f"{indent}{text}"]
    return lines


def _parse_override(word: str) -> dict[str, Any]:
    key, equals, text = word.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"{word!r} is not key=value",
            "settings are words like steps=50 or solve.temperature=0.7",
            "write it as key=value",
        )
    value = parse_yaml(text, f"{key}=")
    return dict(reduce(lambda inner, part: {part: inner}, reversed(key.strip().split(".")), value))


def _merged(layers: Sequence[Layer]) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.merge({}, *(dict(values) for _, values in layers))))
