"""Loading, merging, checking, documenting and storing the configuration of a run.

Layers, lowest first: defaults of ``RunConfig``, the backbone's recommended values, a YAML file, ``key=value`` words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from pydantic import BaseModel

from asg_core.backbones.loading import validate_options
from asg_core.backbones.registry import find_manifest
from asg_core.config.schema import RunConfig
from asg_core.config.strict_yaml import parse_yaml, read_yaml
from asg_core.config.validation import allowed_values, described, section_of, validate
from asg_core.errors import ConfigError
from asg_core.runs.folder import write_atomically


@dataclass(frozen=True)
class _Layer:
    name: str
    values: Mapping[str, Any]

    def has(self, key: str) -> bool:
        value: Any = self.values
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return False
            value = value[part]
        return True


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
    given = [_Layer(str(path), read_yaml(path))] if path is not None else []
    given += [_Layer("command line", _parse_override(word)) for word in overrides]
    return _checked(given)


def run_config_of(values: Mapping[str, Any], origin: str) -> RunConfig:
    """As :func:`load_run_config`, of values that are data already; ``origin`` says in messages where they are from."""
    return _checked([_Layer(origin, values)])


def _checked(given: Sequence[_Layer]) -> RunConfig:
    backbone = _merged(given).get("backbone", RunConfig.model_fields["backbone"].default)
    layers = given
    if isinstance(backbone, str):
        layers = [_Layer(f"recommended by {backbone}", find_manifest(backbone).defaults), *given]

    def origin(key: str) -> str:
        return next((layer.name for layer in reversed(layers) if layer.has(key)), "")

    config = validate(RunConfig, _merged(layers), origin=origin)
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
        if section_of(field):
            lines += ["", f"{indent}# {described(field)}", f"{indent}{name}:", *_commented(value, indent + "  ")]
            continue
        if name == "backbone_options" and options and type(options).model_fields:
            lines += [f"{indent}# {described(field)}", f"{indent}{name}:", *_commented(options, indent + "  ")]
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


def _merged(layers: Sequence[_Layer]) -> dict[str, Any]:
    merged = OmegaConf.to_container(OmegaConf.merge({}, *(dict(layer.values) for layer in layers)))
    return {str(key): value for key, value in merged.items()} if isinstance(merged, dict) else {}
