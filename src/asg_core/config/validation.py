"""Data into pydantic models, with errors that name the key, the value, where it came from and what is allowed.

Validation is strict in JSON's sense: ``true`` is not 1, ``"10"`` is not 10, a list is a tuple and text is a path.
"""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from asg_core.errors import ConfigError

ModelT = TypeVar("ModelT", bound=BaseModel)

_NOUNS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
_BOUNDS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a nested section, or None for a plain value."""
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All dotted keys of a model, sections included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        section = section_of(field)
        if section is not None:
            yield from known_keys(section, f"{prefix}{name}.")


def dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in nested data; a section comes before what is in it."""
    for key, value in values.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested data by dotted keys, without the sections, unless they are empty."""
    return {key: value for key, value in dotted(values) if not (isinstance(value, Mapping) and value)}


def allowed_values(field: FieldInfo) -> str:
    """What a field accepts, in words with its range, e.g. ``a whole number >= 1, <= 64``."""
    return _in_words(field.rebuild_annotation())


def _in_words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(map(_in_words, arguments))
    if origin is Annotated:
        inner, *metadata = arguments
        bounds = [f"{sign} {getattr(m, name)}" for m in metadata for name, sign in _BOUNDS if hasattr(m, name)]
        return f"{_in_words(inner)} {', '.join(bounds)}".strip()
    if origin is tuple and arguments[-1] is not ...:
        return f"a list of {len(arguments)}, each {_in_words(arguments[0])}"
    if origin in (tuple, list):
        return f"a list, each {_in_words(arguments[0])}"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "a section of key: value lines"
    return _NOUNS.get(annotation, "a value")


def validate(
    model: type[ModelT], data: Mapping[str, Any], *, prefix: str = "", origin: Callable[[str], str] = lambda key: ""
) -> ModelT:
    """``data`` as an instance of ``model``.

    Args:
        model: pydantic model to build.
        data: nested plain data.
        prefix: dotted key under which ``data`` lies, with a trailing dot, for messages.
        origin: where the value of a dotted key came from, for messages; "" if unknown.

    Raises:
        ConfigError: every offending key with its value and what is allowed; an unknown key with the nearest known one.
    """
    try:
        # a JSON round trip gives strictness about types and still lets text be a path and a list be a tuple
        return model.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        found = [_describe(model, dict(e), prefix, origin) for e in error.errors(include_url=False)]
    whats, whys, fixes = ("; ".join(dict.fromkeys(part)) for part in zip(*found, strict=True))
    raise ConfigError(whats, whys, fixes)


def _describe(
    model: type[BaseModel], error: Mapping[str, Any], prefix: str, origin: Callable[[str], str]
) -> tuple[str, str, str]:
    location = [str(part) for part in error["loc"]]
    parent, field, key = model, None, prefix
    for depth, part in enumerate(location):
        key = prefix + ".".join(location[: depth + 1])
        field = parent.model_fields.get(part)
        section = section_of(field) if field else None
        if section is None:
            break
        parent = section
    source = f" ({origin(key)})" if origin(key) else ""
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}{source}", "the configuration has no such key", _nearest(model, parent, key, prefix)
    name = key or "configuration"
    shown = json.dumps(error["input"], default=str)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    if field is None or error["type"] in ("value_error", "assertion_error"):
        return f"{name} = {shown}{source} cannot be used", str(error["msg"]), f"give another value for {name}"
    if error["type"] == "missing" and key == prefix + ".".join(location):
        return f"{name} is missing{source}", f"it has no default: {described(field)}", f"give {name}=VALUE"
    default = ""
    if not field.is_required() and not section_of(field):
        default = f"; the default is {json.dumps(field.get_default(call_default_factory=True), default=str)}"
    return (
        f"{name} = {shown}{source} cannot be used",
        f"{name} must be {allowed_values(field)} ({described(field)})",
        f"give {name} such a value{default}",
    )


def described(field: FieldInfo) -> str:
    """What a field is for: its own description, or the first line of its section's."""
    section = section_of(field)
    doc = (section.__doc__ or "").splitlines()[:1] if section else []
    return field.description or "".join(doc).rstrip(".") or "no description"


def _nearest(model: type[BaseModel], parent: type[BaseModel], key: str, prefix: str) -> str:
    """Which key was meant: one of this name elsewhere, a sibling of nearly this name, one that begins like it."""
    section, dot, name = key.rpartition(".")
    everywhere = list(known_keys(model, prefix))
    for meant in (
        [known for known in everywhere if known.rpartition(".")[2] == name],
        [section + dot + near for near in difflib.get_close_matches(name, parent.model_fields, n=1, cutoff=0.75)],
        [known for known in everywhere if known.rpartition(".")[2].startswith(f"{name}_")],
        [] if section else difflib.get_close_matches(name, everywhere, n=1, cutoff=0.7),
    ):
        if meant:
            return f"Did you mean {' or '.join(map(repr, meant))}?"
    return f"Known: {', '.join(section + dot + sibling for sibling in sorted(parent.model_fields))}."
