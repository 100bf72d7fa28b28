"""``asg export``: one role's adapter merged into a copy of the checkpoint, which transformers alone can load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from asg_core.backbones.interface import Role
from asg_core.models.weights.inventory import read_inventory
from asg_core.models.weights.merge import ExportReport, adapted_weights, export_merged
from asg_janus.backbone import JanusBackbone


def export(
    backbone: JanusBackbone, weights: Path, directory: Path, roles: Sequence[Role], *, float32: bool = False
) -> ExportReport:
    """Write ``weights`` to the new ``directory`` with the adapter of one role merged in; see ``export_merged``.

    Raises:
        ConfigError: two roles, which would change the same matrices. RunFolderError: ``directory`` exists.
    """
    merges = adapted_weights(backbone.text.model, roles, str)
    return export_merged(merges, read_inventory(weights), weights, directory, float32=float32)
