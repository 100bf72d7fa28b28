"""``adapters/README.md``: what the adapters of a run are, from which base, trained on what, measured how, and not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from asg_core.backbones.manifest import BackboneManifest
from asg_core.config.schema import RunConfig
from asg_core.config.validation import flat, validate
from asg_core.runs.folder import RunFolder, read_json_lines, write_atomically

CARD = "README.md"


def write_card(folder: RunFolder, manifest: BackboneManifest, config: RunConfig, images: int) -> Path:
    """Write the card of a finished run from what its folder holds; returns its path.

    Nothing of the machine goes into it: of the image folder and the weights only the last part of their paths.

    Args:
        folder: of the run, with ``summary.json``.
        manifest: of its backbone.
        config: of the run.
        images: usable files in the image folder.
    """
    summary: dict[str, Any] = json.loads(folder.summary.read_text(encoding="utf-8"))
    environment = Environment(
        loader=PackageLoader("asg_core.runs"), undefined=StrictUndefined, trim_blocks=True, autoescape=False
    )
    records = read_json_lines(folder.metrics)
    text = environment.get_template("card.md.j2").render(
        name=folder.path.resolve().name,
        manifest=manifest,
        config=config,
        weights=config.weights.name if config.weights else "the checkpoint in the package",
        images=images,
        source=f"of the folder `{config.images.name}`" if config.images else "that come with the backbone",
        quarantined=len(read_json_lines(folder.quarantine)),
        changed=changed_settings(config, manifest),
        summary=summary,
        alarms=sorted({alarm for record in records for alarm in record.get("alarms") or ()}),
        rows=[row for row in summary["evaluation"] or () if row["category"] == "all"],
    )
    card: Path = folder.adapters / CARD
    write_atomically(card, text)
    return card


def changed_settings(config: RunConfig, manifest: BackboneManifest) -> dict[str, Any]:
    """Dotted keys of the settings that differ from what the backbone recommends, with their values.

    Paths are left out: they are of one machine.
    """
    usual = flat(validate(RunConfig, {**manifest.defaults, "backbone": config.backbone}).model_dump(mode="json"))
    own = flat(config.model_dump(mode="json"))
    paths = ("out", "images", "weights")
    return {key: value for key, value in own.items() if key not in paths and value != usual.get(key)}
