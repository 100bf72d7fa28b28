"""Three LoRA adapters over one frozen model: switch, name, save, load.

PEFT puts them in place and names them, :mod:`asg_core.models.adapted_linear` computes them. What is added: switching
that touches neither ``requires_grad`` nor layers without the role, adapters off that is the base bit for bit, an
initialisation that depends on the seed alone, and strict loading.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear, LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from asg_core.backbones.interface import Role
from asg_core.backbones.manifest import LoraSettings
from asg_core.config.seeding import derive_seed
from asg_core.errors import PluginError, WeightsError
from asg_core.models.adapted_linear import AdaptedLinear

Targets = str | Sequence[str]
"""As PEFT's ``target_modules``: a regular expression that matches whole layer names, or a list of name endings."""

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


class RoleAdapters:
    """Injects one LoRA adapter per role and switches between them. Starts with all adapters off.

    Adapter weights are float32 over a base of any float dtype; layer outputs keep the base's dtype. Dropout does not
    exist. Every base parameter is frozen; every adapter parameter requires gradients, always.

    Files: a role that lives on one module is written straight into the directory, so that
    ``PeftModel.from_pretrained(module, directory)`` loads it; a role on several modules gets one such folder per
    module, named as in ``modules``.

    Args:
        modules: the modules that carry adapters, by name; none may contain another.
        targets: for each role, which linear layers of which modules. Roles may differ in both.
        settings: rank and alpha.
        seed: of the initialisation: A uniform as in ``nn.Linear``, B zero, so that every adapter starts as the base.

    Attributes:
        active: the role whose adapter is active now; None is the base policy.

    Raises:
        PluginError: if modules overlap, already carry adapters, or a target matches no layer or one that is not linear.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        targets: Mapping[Role, Mapping[str, Targets]],
        settings: LoraSettings,
        seed: int = 0,
    ) -> None:
        parts = [part for module in modules.values() for part in module.modules()]
        if len({id(part) for part in parts}) < len(parts) or any(isinstance(part, LoraLayer) for part in parts):
            raise PluginError(
                f"modules {', '.join(modules)} overlap or already carry adapters",
                "a layer that is reachable twice would get its adapters twice",
                "pass the outer module alone and tell layers apart by targets; load the model again for new adapters",
            )
        self._configs = {
            role: {name: _inject(modules[name], role, patterns, settings) for name, patterns in on.items()}
            for role, on in targets.items()
        }
        self._layers: list[AdaptedLinear] = []
        self._weights: dict[Role, dict[str, dict[str, nn.Parameter]]] = {
            role: {name: {} for name in on} for role, on in targets.items()
        }
        for name, module in modules.items():
            for path, layer in module.named_modules():
                if isinstance(layer, LoraLayer):
                    self._adopt(name, path, layer, seed)
        self._seen: dict[Role, tuple[Hashable, ...]] = {}
        self._activate(None)

    def _adopt(self, name: str, path: str, layer: LoraLayer, seed: int) -> None:
        if not isinstance(layer, Linear):
            raise PluginError(
                f"layer {path!r} of {name!r} is a {type(layer.get_base_layer()).__name__}",
                "role adapters exist for linear layers only",
                "narrow the targets",
            )
        layer.__class__ = AdaptedLinear
        self._layers.append(layer)
        for role in map(Role, layer.lora_A):
            stream = torch.Generator().manual_seed(derive_seed(seed, "lora", role.value, name, path))
            bound = 1 / math.sqrt(layer.in_features)
            down, up = layer.lora_A[role.value], layer.lora_B[role.value]
            start = torch.empty(down.weight.shape).uniform_(-bound, bound, generator=stream)
            down.weight.data = start.to(layer.weight.device)
            up.weight.data = torch.zeros_like(up.weight, dtype=torch.float32)
            for kind, part in (("lora_A", down), ("lora_B", up)):
                part.weight.requires_grad_(True)
                self._weights[role][name][f"{path}.{kind}.weight"] = part.weight

    @contextmanager
    def use(self, role: Role | None) -> Iterator[None]:
        """Make ``role`` the active adapter inside the block, None for the base policy; then restore what was active.

        Re-entrant, cheap, and blind to ``requires_grad``. Layers that lack the role run as the base. Raises
        PluginError if there is no such adapter.
        """
        self._check(role)
        before = self.active
        self._activate(role)
        try:
            yield
        finally:
            self._activate(before)

    @contextmanager
    def use_rows(self, roles: Sequence[Role | None]) -> Iterator[None]:
        """Inside the block, row i of every batch runs under ``roles[i]``, None for the base policy. Without gradients.

        Args:
            roles: one per row; those of a role best lie together, because each run of equal ones is one product.

        Raises:
            PluginError: if there is no such adapter, or a layer is given something else than one row per role.
        """
        spans, start = [], 0
        for role, run in groupby(roles):
            self._check(role)
            stop = start + len(list(run))
            if role is not None:
                spans.append((role.value, slice(start, stop)))
            start = stop

        def add(layer: AdaptedLinear, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], result: Tensor) -> Tensor:
            rows = next(iter((*args, *kwargs.values())))
            if len(rows) != start:
                raise PluginError(
                    f"a linear layer was given {len(rows)} rows where {start} rows have a role each",
                    "with adapters side by side, the first dimension of every batch is its rows",
                    "do not pack rows in forward; or override prefill of the backbone with one that does nothing",
                )
            result = result.contiguous()
            for name, span in spans:
                if name in layer.lora_A:
                    layer.add(name, rows[span], result[span])
            return result

        with self.use(None), torch.no_grad(), ExitStack() as hooks:
            for layer in self._layers:
                hooks.callback(layer.register_forward_hook(add, with_kwargs=True).remove)
            yield

    def _check(self, role: Role | None) -> None:
        if role is not None and role not in self._weights:
            raise PluginError(
                f"this backbone has no {role.value} adapter",
                f"adapters exist for {', '.join(sorted(self._weights))}",
                "name targets for the role when creating RoleAdapters",
            )

    def _activate(self, role: Role | None) -> None:
        # PEFT's own set_adapter and enable_adapters set requires_grad on every adapter as a side effect.
        self.active = role
        for layer in self._layers:
            layer._disable_adapters = role is None or role.value not in layer.lora_A
            if role is not None:
                layer._active_adapter = [role.value]
        if role is not None and (version := self.version()) != self._seen.get(role):
            for layer in self._layers:
                layer.refresh(role.value)
            self._seen[role] = version

    def version(self) -> tuple[Hashable, ...]:
        """The active role and the state of its weights: equal to an earlier value only if no weight was written since.

        Writes that bypass autograd's version counter (``.data``) go unseen.
        """
        if self.active is None:
            return (None,)
        weights = self._weights[self.active].values()
        return (self.active, *(weight._version for of_module in weights for weight in of_module.values()))

    def parameters(self, role: Role) -> dict[str, nn.Parameter]:
        """Float32 parameters of ``role``: "module.layer.lora_A.weight" (rank, in), "....lora_B.weight" (out, rank)."""
        return {
            f"{name}.{key}": weight for name, weights in self._weights[role].items() for key, weight in weights.items()
        }

    def save(self, role: Role, directory: Path) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors`` of ``role`` in PEFT's own format."""
        for name, folder in self._folders(role, directory).items():
            folder.mkdir(parents=True, exist_ok=True)
            weights = {_PREFIX + key: w.detach().cpu().contiguous() for key, w in self._weights[role][name].items()}
            save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
            self._configs[role][name].save_pretrained(folder)

    def load(self, role: Role, directory: Path) -> None:
        """Read what :meth:`save` wrote, exactly. Nothing is changed unless everything fits. Raises WeightsError if a
        file is missing or damaged, or a tensor, the rank or alpha does not fit."""
        found = {
            name: _read(folder, self._configs[role][name], self._weights[role][name])
            for name, folder in self._folders(role, directory).items()
        }
        with torch.no_grad():
            for name, tensors in found.items():
                for key, weight in self._weights[role][name].items():
                    weight.copy_(tensors[_PREFIX + key])

    def _folders(self, role: Role, directory: Path) -> dict[str, Path]:
        names = list(self._weights[role])
        return {name: directory / name if len(names) > 1 else directory for name in names}


def _inject(module: nn.Module, role: Role, targets: Targets, settings: LoraSettings) -> LoraConfig:
    patterns = targets if isinstance(targets, str) else list(targets)
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=patterns)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        try:
            inject_adapter_in_model(config, module, adapter_name=role.value)
        except ValueError as error:
            raise PluginError(
                f"the {role.value} adapter cannot be put on {type(module).__name__}: targets {targets!r}",
                str(error),
                "name linear layers of this module in the targets",
            ) from error
    config.inference_mode = True
    if not isinstance(config.target_modules, str):
        config.target_modules = sorted(config.target_modules)  # a set is written in another order by every process
    return config


def _read(folder: Path, config: LoraConfig, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    fix = "pass the directory that save wrote for this role, backbone and rank"
    try:
        written = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        tensors: dict[str, Tensor] = load_file(folder / _WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise WeightsError(f"cannot read an adapter in {folder}", str(error), fix) from error
    for key in ("peft_type", "r", "lora_alpha"):
        if written.get(key) != config.to_dict()[key]:
            raise WeightsError(
                f"{folder / _CONFIG}: {key} is {written.get(key)!r}",
                f"this model's adapters have {config.to_dict()[key]!r}",
                fix,
            )
    expected = {_PREFIX + key: tuple(weight.shape) for key, weight in weights.items()}
    actual = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if wrong := sorted(key for key in expected.keys() | actual.keys() if expected.get(key) != actual.get(key)):
        stored, needed = actual.get(wrong[0]), expected.get(wrong[0])
        what = "lacks" if stored is None else "has an extra" if needed is None else "has a misshapen"
        raise WeightsError(
            f"{folder / _WEIGHTS} {what} tensor {wrong[0]!r}",
            f"{len(wrong)} do not fit; shape {stored} in the file, {needed} in the model",
            fix,
        )
    return tensors
