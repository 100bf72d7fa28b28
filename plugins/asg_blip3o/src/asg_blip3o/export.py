"""Merge trained adapters into the weights and write the released layout again, so that the original code loads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from asg_blip3o.backbone import Blip3oBackbone
from asg_blip3o.weights_map import main_name, read_release
from asg_core.backbones.interface import Role
from asg_core.models.weights.merge import ExportReport, adapted_weights, export_merged


def export(
    backbone: Blip3oBackbone,
    weights: Path,
    directory: Path,
    roles: Sequence[Role] = (Role.SOLVER, Role.GENERATOR),
    *,
    float32: bool = False,
) -> ExportReport:
    """Write a checkpoint in the released layout with the adapters of ``roles`` merged in.

    Args:
        backbone: holds the adapters.
        weights: the release that ``backbone`` was loaded from; all file names and shards are kept, decoder included.
        directory: must not exist.
        roles: two roles can be merged only where they change different layers: one text role on the language model,
            the generator on the flow network. A merged text role also changes the states that drawing starts from.
        float32: store merged matrices in float32. In the source's bfloat16 a small adapter is partly rounded away.

    Raises:
        ConfigError: two roles change the same matrix. RunFolderError: ``directory`` exists.
        WeightsError: ``weights`` are damaged, or another release.
    """
    merges = adapted_weights(backbone.model, roles, main_name)
    return export_merged(merges, read_release(weights).inventory, weights, directory, float32=float32)
