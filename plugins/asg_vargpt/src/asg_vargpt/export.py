"""Back to the released layout: one role's adapter merged into the weights, everything else as it was.

Tensors that no forward pass reads are kept too, so that upstream's own code loads the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from asg_core.backbones.interface import Role
from asg_core.models.weights.inventory import read_inventory
from asg_core.models.weights.merge import ExportReport, adapted_weights, export_merged
from asg_vargpt.backbone import VargptBackbone
from asg_vargpt.weights_map import released_name


def export(
    backbone: VargptBackbone,
    weights: Path,
    directory: Path,
    roles: Sequence[Role] = (Role.SOLVER,),
    *,
    float32: bool = False,
) -> ExportReport:
    """Write a checkpoint in the released layout with the adapter of one role merged in.

    Args:
        backbone: holds the adapter.
        weights: the released files that ``backbone`` was loaded from.
        directory: must not exist.
        roles: one; all three change the same layers of the language model.
        float32: store merged tensors in float32. In the source's bfloat16 a small adapter is partly rounded away.

    Raises:
        ConfigError: two roles, or none. RunFolderError: ``directory`` exists. WeightsError: ``weights`` are damaged.
    """
    merges = adapted_weights(backbone.model, roles, lambda name: released_name(backbone.model, name))
    return export_merged(merges, read_inventory(weights), weights, directory, float32=float32)
