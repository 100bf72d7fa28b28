"""``adapters/README.md``: what the adapters of a run are, from which base, trained on what, measured how, and not."""

from __future__ import annotations

import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from asg_core.backbones.manifest import BackboneManifest
from asg_core.config.schema import RunConfig
from asg_core.config.validation import validate
from asg_core.runs.folder import RunFolder, read_json_lines, write_atomically
from asg_core.runs.report.data import changed_settings

_OF_ONE_MACHINE = ("out", "images", "weights")


def write_card(folder: RunFolder, manifest: BackboneManifest, config: RunConfig, images: int) -> None:
    """Write the card of a finished run on so many usable ``images`` from what its folder holds, also ``summary.json``.

    Nothing of the machine goes into it: of the image folder and the weights only the last part of their paths.
    """
    summary: dict[str, Any] = json.loads(folder.summary.read_text(encoding="utf-8"))
    environment = Environment(
        loader=PackageLoader("asg_core.runs"), undefined=StrictUndefined, trim_blocks=True, autoescape=False
    )
    records = read_json_lines(folder.metrics)
    recommended = validate(RunConfig, {**manifest.defaults, "backbone": config.backbone})
    changed = changed_settings(config.model_dump(mode="json"), recommended)
    text = environment.get_template("card.md.j2").render(
        name=folder.path.resolve().name,
        manifest=manifest,
        config=config,
        weights=config.weights.name if config.weights else "the checkpoint in the package",
        images=images,
        source=f"of the folder `{config.images.name}`" if config.images else "that come with the backbone",
        quarantined=len(read_json_lines(folder.quarantine)),
        changed={key: value for key, value, _ in changed if key not in _OF_ONE_MACHINE},
        summary=summary,
        alarms=sorted({alarm for record in records for alarm in record.get("alarms") or ()}),
        rows=[row for row in summary["evaluation"] or () if row["category"] == "all"],
    )
    write_atomically(folder.adapters / "README.md", text)
