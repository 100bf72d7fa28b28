"""Merge trained adapters into the weights and write the released layout again, so that upstream's own code loads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from asg_bagel.backbone import MODULE, BagelBackbone
from asg_bagel.weights_map import read_weights
from asg_core.backbones.interface import Role
from asg_core.models.weights.merge import ExportReport, adapted_weights, export_merged


def export(
    backbone: BagelBackbone,
    weights: Path,
    directory: Path,
    roles: Sequence[Role],
    *,
    float32: bool = False,
) -> ExportReport:
    """Write a checkpoint in the released layout with the adapters of ``roles`` merged in.

    Args:
        backbone: holds the adapters.
        weights: the released files that ``backbone`` was loaded from; file names and shards are kept.
        directory: must not exist.
        roles: at most one text role, because Proposer and Solver sit on the same expert, and the Generator. Merging
            both changes what is drawn: the prompt is then read by the changed understanding expert, while during
            training all text adapters are off when drawing.
        float32: store merged tensors in float32. In the source's bfloat16 a small adapter is partly rounded away.

    Raises:
        ConfigError: two text roles. RunFolderError: ``directory`` exists. WeightsError: ``weights`` are damaged.
    """
    merges = adapted_weights(backbone.model.language_model, roles, lambda name: f"{MODULE}.{name}")
    return export_merged(merges, read_weights(weights), weights, directory, float32=float32)
