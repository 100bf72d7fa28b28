"""The entry point by which lmms-eval (0.6 and later, group ``lmms_eval.models``) finds the model ``asg``."""

from __future__ import annotations

from typing import Any


def manifests() -> list[Any]:
    """lmms-eval's ``ModelManifest`` of ``--model asg``; the class is imported when that model is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id="asg", simple_class_path="asg_lab.lmms.model.AsgModel")]
