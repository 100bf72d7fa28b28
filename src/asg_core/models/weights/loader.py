"""Stored tensors into a module that was built without memory: strict, one tensor at a time, file by file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from asg_core.errors import WeightsError
from asg_core.models.weights.inventory import Inventory


@dataclass(frozen=True)
class Slot:
    """Where a stored tensor goes.

    Attributes:
        module: owner of the parameter or buffer.
        attribute: its name there.
        shape: of the stored tensor; its numbers are laid out in the parameter's own shape.
        rows: the part of the first axis that is read; None for the whole tensor.
        dtype: kept whatever dtype the model is loaded in; None for the model's.
    """

    module: nn.Module
    attribute: str
    shape: tuple[int, ...]
    rows: slice | None = None
    dtype: torch.dtype | None = None

    @property
    def tensor(self) -> Tensor:
        """The parameter or buffer as it is now."""
        held: Tensor = getattr(self.module, self.attribute)
        return held

    def put(self, tensor: Tensor) -> None:
        """Hold ``tensor`` from now on, as a frozen parameter or as a buffer."""
        if self.attribute in self.module._parameters:
            tensor = nn.Parameter(tensor, requires_grad=False)
        setattr(self.module, self.attribute, tensor)


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of a checkpoint, by stored name.

    Attributes:
        matched: loaded into the model.
        missing: needed, and in no file.
        unexpected: in a file, and no tensor of this model.
        misshapen: "name is [stored shape], expected [shape]".
        skipped: known and left out: of a part that was not asked for, or read by nothing.
    """

    matched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether the files hold exactly what the model expects."""
        return not (self.missing or self.unexpected or self.misshapen)

    def require(self, folder: Path, *, allow_unexpected: bool = False) -> None:
        """Raise WeightsError that names the first tensors which do not fit, if any."""
        complaints = [
            f"{len(names)} {word}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
            for word, names in (
                ("missing", self.missing),
                ("unexpected", () if allow_unexpected else self.unexpected),
                ("misshapen", self.misshapen),
            )
            if names
        ]
        if complaints:
            raise WeightsError(
                f"{folder} does not hold this model's tensors: {'; '.join(complaints)}",
                f"{len(self.matched)} of {len(self.matched) + len(self.missing) + len(self.misshapen)} tensors fit",
                "use weights and configuration files of one complete release",
            )


def module_slots(
    module: nn.Module, stored_name: Callable[[str], str | None] = str, *, leave: Collection[str] = ()
) -> dict[str, Slot]:
    """The places of a module's parameters and persistent buffers, by stored name.

    Args:
        module: on any device.
        stored_name: of a name in its ``state_dict``; None for what is never stored.
        leave: stored names without a place of their own, such as a tied head.
    """
    slots = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        stored = stored_name(name)
        if stored is not None and stored not in leave:
            owner, _, attribute = name.rpartition(".")
            slots[stored] = Slot(module.get_submodule(owner), attribute, tuple(tensor.shape))
    return slots


def compare(
    slots: Mapping[str, Slot],
    stored: Mapping[str, tuple[int, ...]],
    *,
    unread: Mapping[str, tuple[int, ...]] | None = None,
    skip: Callable[[str], bool] = lambda name: False,
) -> LoadReport:
    """Hold stored names and shapes against the places of a model.

    Args:
        slots: places by stored name.
        stored: shapes by stored name.
        unread: names and shapes that the files must hold although nothing is loaded from them.
        skip: whether a stored tensor without a place is known and left out.
    """
    unread = unread or {}
    expected = {**{name: slot.shape for name, slot in slots.items()}, **unread}
    fitting = {name for name, shape in expected.items() if stored.get(name) == shape}
    misshapen = sorted((expected.keys() & stored.keys()) - fitting)
    known = {name for name in stored.keys() - expected.keys() if skip(name)}
    return LoadReport(
        matched=tuple(sorted(fitting - unread.keys())),
        missing=tuple(sorted(expected.keys() - stored.keys())),
        unexpected=tuple(sorted(stored.keys() - expected.keys() - known)),
        misshapen=tuple(f"{name} is {list(stored[name])}, expected {list(expected[name])}" for name in misshapen),
        skipped=tuple(sorted(fitting & unread.keys() | known)),
    )


def fill(slots: Mapping[str, Slot], inventory: Inventory, *, device: torch.device | str, dtype: torch.dtype) -> None:
    """Read every tensor into its place, frozen.

    Besides the model at most one tensor is in memory: each goes to ``device`` before the next is read.

    Args:
        slots: places by stored name; all of them are in ``inventory``.
        dtype: what floating-point tensors become, unless their place keeps its own; others stay as stored.

    Raises:
        WeightsError: a file cannot be read.
    """
    by_file: dict[Path, list[str]] = defaultdict(list)
    for name in slots:
        by_file[inventory[name].file].append(name)
    for file, names in sorted(by_file.items()):
        try:
            with safe_open(file, framework="pt", device="cpu") as stored:
                for name in sorted(names):
                    slot = slots[name]
                    tensor = stored.get_tensor(name) if slot.rows is None else stored.get_slice(name)[slot.rows]
                    kept = (slot.dtype or dtype) if tensor.is_floating_point() else tensor.dtype
                    tensor = tensor.to(device=device, dtype=kept, copy=True)
                    slot.put(tensor.reshape(slot.tensor.shape))
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{file} cannot be read", str(error), "download the file again") from error
