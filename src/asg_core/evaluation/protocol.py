"""Under what a score was measured, and whether two scores may be compared.

A folder of scores, or of images for an outside scorer, holds a ``protocol.json``: one entry for each score, written
when that score was. Two scores are compared only if their entries agree in everything but :data:`MAY_DIFFER`.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from asg_core.backbones.interface import Backbone
from asg_core.backbones.loading import validate_options
from asg_core.backbones.registry import list_plugins
from asg_core.backbones.requirements import installed_version
from asg_core.config.schema import RunConfig
from asg_core.config.validation import flat
from asg_core.errors import ConfigError
from asg_core.evaluation.digests import adapter_digests, digest_of, weights_digest
from asg_core.evaluation.items import EvalItem, EvaluationRequest
from asg_core.method import prompts
from asg_core.runs.folder import write_json

FILE = "protocol.json"
SCHEMA: Literal[1] = 1
MAY_DIFFER = ("adapters", "written")
"""What is being compared, and when it was measured."""

PACKAGES = ("asg-core", "torch", "transformers", "diffusers", "accelerate", "peft", "safetensors", "numpy", "pillow")

Protocol = dict[str, Any]


class ProtocolError(ConfigError):
    """Two scores were not measured under the same protocol, or a score has none."""


class _Document(BaseModel):
    """What the file holds."""

    schema_: Literal[1] = Field(alias="schema")
    scores: dict[str, Protocol]


@dataclass(frozen=True)
class Items:
    """What was scored or drawn.

    Attributes:
        source: where it is from: a suite's ``module:function``, the name of a prompt file, or tasks.
        sha256: of the prompt file, or of the items' identities.
        limit: at most this many per section, or None.
    """

    source: str
    sha256: str
    count: int
    limit: int | None = None


def make_protocol(
    backbone: Backbone,
    config: RunConfig,
    items: Items,
    *,
    trained: bool,
    sampling: Mapping[str, Any],
    judge: str | Mapping[str, str] | None,
    packages: Sequence[str] = (),
) -> Protocol:
    """Everything that a score depends on, as JSON data.

    Args:
        config: what ``backbone`` was loaded with; its weights, backbone options and seed are recorded.
        trained: whether role adapters were on; their digests are recorded.
        sampling: how answers or images were sampled, as far as the caller decides it.
        judge: who or what scored; None if that comes later, in another environment.
        packages: whose versions are recorded too.
    """
    name = backbone.manifest.name
    options = validate_options(backbone.manifest, config.backbone_options)
    owners = [record for record in list_plugins() for manifest in record.backbones if manifest.name == name]
    package, version = (owners[0].distribution, owners[0].version) if owners else ("not installed as a plugin", "?")
    return {
        "backbone": name,
        "plugin": f"{package} {version}",
        "weights_sha256": weights_digest(config.weights),
        "options": None if options is None else options.model_dump(mode="json"),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "device": backbone.device.type,
        "seed": config.seed,
        "items": asdict(items),
        "prompt_rewriting": "none",
        "sampling": dict(sampling),
        "template_sha256": _template_digest(name, version),
        "judge": judge,
        "versions": {
            "python": platform.python_version(),
            **{p: installed_version(p) for p in (*PACKAGES, *packages)},
        },
        "adapters": adapter_digests(backbone) if trained else None,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def evaluation_protocol(
    suite: str, request: EvaluationRequest, items: Sequence[EvalItem], config: RunConfig, packages: Sequence[str] = ()
) -> Protocol:
    """The protocol of a score by an evaluation that decides sampling and judges by itself; as :func:`make_protocol`.

    Args:
        suite: ``module:function`` of the evaluation.
        request, items: what it received and returned.
    """
    identities = json.dumps(sorted((item.section, item.category, item.key) for item in items))
    scored = Items(suite, digest_of([identities.encode()]), len(items), request.limit)
    return make_protocol(
        request.backbone,
        config,
        scored,
        trained=request.trained,
        sampling={"suite": suite},
        judge=suite,
        packages=packages,
    )


def record_protocol(folder: Path, score: str, protocol: Protocol) -> None:
    """Write the entry of ``score`` into ``folder``'s protocol.json, beside those of its other scores."""
    write_json(folder / FILE, {"schema": SCHEMA, "scores": {**read_protocols(folder), score: protocol}})


def read_protocols(folder: Path) -> dict[str, Protocol]:
    """Entries of ``folder``'s protocol.json by score, none if it has none. Raises ProtocolError if it is damaged."""
    file = folder / FILE
    if not file.is_file():
        return {}
    try:
        return _Document.model_validate_json(file.read_bytes()).scores
    except ValidationError as error:
        first = error.errors()[0]
        why = f"it is not of schema {SCHEMA}: {' '.join(map(str, [*first['loc'], first['msg']]))}"
        fix = "score again; a score without its protocol cannot be compared"
        raise ProtocolError(f"{file} cannot be read", why, fix) from error


def differences(first: Protocol, second: Protocol, may_differ: Sequence[str] = MAY_DIFFER) -> list[str]:
    """One line for every value that differs, by dotted name: ``versions.torch: 2.12.0 / 2.13.0``."""
    a, b = flat(first), flat(second)
    changed = [key for key in {**a, **b} if a.get(key, ...) != b.get(key, ...)]
    return [f"{key}: {_shown(a, key)} / {_shown(b, key)}" for key in changed if key.split(".")[0] not in may_differ]


def require_same(first: Protocol, second: Protocol) -> None:
    """Raise ProtocolError, naming every difference, unless the two may be compared."""
    found = differences(first, second)
    if found:
        raise ProtocolError(
            "the two scores were not measured under the same protocol",
            f"{len(found)} values differ:\n    " + "\n    ".join(found),
            f"score both models again with equal settings; only {' and '.join(MAY_DIFFER)} may differ",
        )


def _template_digest(backbone: str, plugin_version: str) -> str:
    texts = {
        name: value
        for name, value in sorted(vars(prompts).items())
        if name.isupper() and name[0] != "_" and isinstance(value, str | tuple)
    }
    return digest_of([json.dumps([texts, backbone, plugin_version]).encode()])


def _shown(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "absent"
    text = values[key] if isinstance(values[key], str) else json.dumps(values[key])
    return text if len(text) <= 80 else text[:77] + "..."
