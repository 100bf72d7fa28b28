"""YAML as pure data: no tags, no anchors, no interpolation, no duplicate keys, bounded size and depth.

Scalars follow YAML 1.2's core schema, not 1.1: ``off``, ``no`` and ``1:30`` are text, ``1e-6`` is a number, ``010`` is
not eight. A configuration can neither name code to run nor mean something else than it says (invariant 6).
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from asg_core.errors import ConfigError

MAX_BYTES = 256 * 1024
"""Largest configuration file that is read."""

MAX_DEPTH = 20
"""Deepest nesting of mappings and lists."""


class _StrictLoader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own protocol

    def __init__(self, text: str, source: str) -> None:
        super().__init__(text)
        self.source = source
        self.depth = 0

    def refuse(self, node: yaml.Event | yaml.Node, what: str, fix: str) -> ConfigError:
        line = f", line {node.start_mark.line + 1}" if node.start_mark else ""
        return ConfigError(f"{self.source}{line}: {what}", "a configuration holds plain data only", fix)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise self.refuse(event, f"anchor or alias {event.anchor!r} is not allowed", "write the value out")
        if event.tag is not None:
            raise self.refuse(event, f"tag {event.tag!r} is not allowed", "remove the tag and write a plain value")
        if isinstance(event, yaml.ScalarEvent) and "${" in event.value:
            raise self.refuse(event, f"interpolation {event.value[:60]!r} is not allowed", "write the value itself")
        if self.depth >= MAX_DEPTH:
            raise self.refuse(event, f"nested more than {MAX_DEPTH} deep", "flatten it; sections are one level deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.refuse(key, "a key must be a name", "quote the key if it starts with '[' or '{'")
            if key.value in seen:
                raise self.refuse(key, f"key {key.value!r} is given twice", "keep one of them")
            seen.add(key.value)
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}


def _finite_float(loader: _StrictLoader, node: yaml.ScalarNode) -> float:
    value = float(loader.construct_yaml_float(node))
    if not math.isfinite(value):
        raise loader.refuse(node, f"{node.value!r} is not a finite number", "give a finite number")
    return value


for _name, _pattern in {
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(?:0|[1-9][0-9]*)",
    "float": r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "null": r"~|null|Null|NULL|",
}.items():
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), None)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _finite_float)


def parse_yaml(text: str, source: str) -> Any:
    """The data in one YAML document: dict, list, str, int, finite float, bool or None.

    Raises:
        ConfigError: not YAML, or YAML that is more than plain data; names ``source``, e.g. a file, and the line.
    """
    try:
        return _StrictLoader(text, source).get_single_data()
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        why = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(f"{source}{line} is not valid YAML", why, "correct it, or quote the value") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file of at most :data:`MAX_BYTES`; an empty file is an empty mapping.

    Raises:
        ConfigError: missing, unreadable, too large, not UTF-8, not a mapping, or refused by :func:`parse_yaml`.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        fix = "give an existing YAML file, saved as UTF-8; asg config prints one"
        raise ConfigError(f"configuration {path} cannot be read", str(error), fix) from None
    if len(raw) > MAX_BYTES:
        why = f"it has more than {MAX_BYTES} bytes"
        raise ConfigError(f"configuration {path} is too large", why, "a configuration is a few kilobytes of YAML")
    data = parse_yaml(text, str(path))
    if data is None:
        return {}
    if not isinstance(data, dict):
        why, fix = f"it holds a {type(data).__name__}", "write 'key: value' lines; see asg config"
        raise ConfigError(f"configuration {path} is not a mapping", why, fix)
    return data
