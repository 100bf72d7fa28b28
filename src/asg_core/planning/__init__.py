"""What a run will need, from sizes alone: parameters, bytes and time, before any weight is loaded (``asg plan``).

A backbone says what it is (:class:`ModelShape`, the manifest's ``plan`` target); everything else is arithmetic here.
Nothing is measured. Memory is that of the largest moment, time a lower bound with a stated overhead of launches.
"""

from __future__ import annotations

from asg_core.planning.accelerators import ACCELERATORS, Accelerator, find_accelerator
from asg_core.planning.activations import Activations
from asg_core.planning.duration import Phase, generation_phases, seconds, understanding_phases
from asg_core.planning.memory import StepMemory, generation_memory, images_that_fit, understanding_memory
from asg_core.planning.shape import Drawing, DrawingStage, ModelShape, Part, SeenImage, Trunk, model_shape
from asg_core.planning.workload import Workload

__all__ = [
    "ACCELERATORS",
    "Accelerator",
    "Activations",
    "Drawing",
    "DrawingStage",
    "ModelShape",
    "Part",
    "Phase",
    "SeenImage",
    "StepMemory",
    "Trunk",
    "Workload",
    "find_accelerator",
    "generation_memory",
    "generation_phases",
    "images_that_fit",
    "model_shape",
    "seconds",
    "understanding_memory",
    "understanding_phases",
]
