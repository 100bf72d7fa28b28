"""What steps cost: calls, rows, tokens, weights read and milliseconds, by phase. For plugin tests and ``profile=true``.

with counted(backbone) as costs:
    items = understanding_step(backbone, images, config, 1, window, baseline)
assert costs.network("visual.blocks").passes == 1
print(costs.table())

Phases follow from the calls of the Backbone; nothing of a step has to know that it is counted.
"""

from __future__ import annotations

import inspect
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from asg_core.backbones.interface import Backbone, GenerationLoss, Role, TokenLogits, broadcast_sampling
from asg_core.errors import ConfigError
from asg_core.runs.folder import write_json

Phase = Literal["prefill", "ask", "solve", "score", "update", "generate", "embed", "core"]
"""prefill: image prefixes of several roles at once. ask and solve: sampled text, and greedy answers (STE) in the same
batch. score: calls that are greedy throughout, and log-probs without gradients. update: from a differentiable score to
the end of the optimizer step. core: everything outside the backbone, the method's own Python."""


@dataclass
class NetworkCost:
    """Forward passes of a network, rows and positions that went through it, bytes of weights read (once a pass)."""

    passes: int = 0
    rows: int = 0
    tokens: int = 0
    bytes: int = 0


@dataclass
class PhaseCost:
    """Calls of the backbone, their requests, tokens sampled or scored in them, and wall time in milliseconds.

    A network is an outermost ``nn.ModuleList``, e.g. "language_model.layers", or a linear layer outside all of them,
    e.g. "lm_head".
    """

    calls: int = 0
    rows: int = 0
    tokens: int = 0
    milliseconds: float = 0.0
    networks: dict[str, NetworkCost] = field(default_factory=dict)


@dataclass
class Costs:
    """What was counted so far: costs by phase; backward passes, and steps that moved weights, by role; the phase under
    way."""

    phases: dict[Phase, PhaseCost] = field(default_factory=dict)
    backwards: Counter[Role] = field(default_factory=Counter)
    optimizer_steps: Counter[Role] = field(default_factory=Counter)
    phase: Phase = "core"

    def network(self, ending: str, *phases: Phase) -> NetworkCost:
        """Sum over ``phases`` (none given: all) of the networks whose name ends so.

        Raises:
            KeyError: no network of that name ran at all.
        """
        ran = [(phase, name, net) for phase, cost in self.phases.items() for name, net in cost.networks.items()]
        named = [(phase, net) for phase, name, net in ran if name.endswith(ending)]
        if not named:
            raise KeyError(f"no network {ending!r} ran, but {sorted({name for _, name, _ in ran})}")
        counts = [astuple(net) for phase, net in named if not phases or phase in phases]
        return NetworkCost(*map(sum, zip(*counts, strict=True)))

    def table(self) -> str:
        """Aligned text, one line a phase and below it one a network."""
        lines = [("phase", "calls", "rows", "tokens", "GB of weights", "ms")]
        for phase, cost in self.phases.items():
            lines.append((phase, str(cost.calls), str(cost.rows), str(cost.tokens), "", f"{cost.milliseconds:.1f}"))
            for name, net in cost.networks.items():
                read = f"{net.bytes / 1e9:.3g}"
                lines.append((f"  {name}", str(net.passes), str(net.rows), str(net.tokens), read, ""))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in lines)

    def as_json(self) -> dict[str, Any]:
        """Plain data: per phase its cost and its networks; updates by role."""
        return {
            "phases": {phase: asdict(cost) for phase, cost in self.phases.items()},
            "backwards": dict(self.backwards),
            "optimizer_steps": dict(self.optimizer_steps),
        }


@contextmanager
def counted(backbone: Backbone) -> Iterator[Costs]:
    """Count what ``backbone`` does inside the block. Networks are modules that it or an attribute holds.

    On a GPU the device is waited for where a phase ends, so that times are those of the work and not of its launch.

    Args:
        backbone: its own methods are wrapped until the block ends.

    Raises:
        ConfigError: the backbone decodes by compiled passes, in which modules are not called and cannot be counted.
    """
    if backbone.runs_compiled:
        raise ConfigError(
            "the costs of compiled decode passes cannot be counted",
            "modules are counted when they are called, and a compiled pass calls none",
            "set backbone_options.compile_decode=false",
        )
    counter = _Counter(backbone)
    with ExitStack() as undo:
        undo.enter_context(register_optimizer_step_post_hook(counter.stepped))
        for name, module, size in _networks(backbone):
            hook = partial(counter.passed, name, size)
            undo.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
        for name in _CALLS:
            own = vars(backbone).get(name)
            undo.callback(delattr, backbone, name) if own is None else undo.callback(setattr, backbone, name, own)
            setattr(backbone, name, partial(counter.call, name, getattr(backbone, name)))
        undo.callback(counter.enter, "core")
        yield counter.costs


_CALLS = ("prefill", "ask", "solve", "token_logits", "generate", "generation_loss", "embed")


@contextmanager
def profiled(backbone: Backbone, file: Path, show: Callable[[str], None]) -> Iterator[None]:
    """:func:`counted`; at the end of the block the costs go to ``file`` and their table to ``show``."""
    with counted(backbone) as costs:
        try:
            yield
        finally:
            write_json(file, costs.as_json())
            show(costs.table())


class _Counter:
    def __init__(self, backbone: Backbone) -> None:
        self.costs = Costs()
        self._device = backbone.device
        self._since = time.perf_counter()
        self._role = Role.GENERATOR
        self._inside = False

    def enter(self, phase: Phase) -> PhaseCost:
        """Book the time since the last change to the phase that ends now."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self._cost.milliseconds += 1000 * (now - self._since)
        self._since, self.costs.phase = now, phase
        return self._cost

    @property
    def _cost(self) -> PhaseCost:
        return self.costs.phases.setdefault(self.costs.phase, PhaseCost())

    def call(self, name: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a method of the backbone in its phase."""
        if self._inside:  # a backbone that uses its own roles is still in the phase that was asked for
            return method(*args, **kwargs)
        given = inspect.signature(method).bind(*args, **kwargs).arguments
        before, phase = self.costs.phase, _phase(name, given)
        cost = self.enter(phase)
        self._inside = True
        try:
            result = method(*args, **kwargs)
        finally:
            self._inside = False
            if phase != "update":
                # a run's first update scores a few samples again, to learn what rounding does, and goes on
                self.enter("update" if (before, phase) == ("update", "score") else "core")
        items = next(iter(given.values()))
        texts = {"ask": result, "solve": result, "token_logits": items}.get(name, ())
        cost.calls += 1
        cost.rows += len(items)
        cost.tokens += sum(len(sample.token_ids) for sample in texts)
        if phase == "update":
            self._role = given.get("role") or Role.GENERATOR
            self._watch_backward(result)
        return result

    def _watch_backward(self, result: list[TokenLogits] | GenerationLoss) -> None:
        if isinstance(result, GenerationLoss):
            scores = [result.loss, result.penalty, result.token_logprobs]
        else:
            scores = [one.logprobs for one in result]
        tracked = [score for score in scores if score is not None and score.requires_grad]
        if tracked:
            role = self._role

            def seen(_: Tensor) -> None:
                self.costs.backwards[role] += 1

            register_multi_grad_hook(tracked, seen, mode="any")

    def stepped(self, *_: object) -> None:
        if self.costs.phase == "update":
            self.costs.optimizer_steps[self._role] += 1
            self.enter("core")

    def passed(self, name: str, size: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.is_floating_point()), None)
        cost = self._cost.networks.setdefault(name, NetworkCost())
        cost.passes += 1
        cost.bytes += size
        if states is not None:
            # (B, L, D) rows of positions, (L, D) one packed row, (B, C, H, W) a feature map
            cost.rows += len(states) if states.ndim > 2 else 1
            cost.tokens += states.shape[0] * states[0, 0].numel() if states.ndim == 4 else states[..., 0].numel()


def _phase(name: str, given: Mapping[str, Any]) -> Phase:
    match name:
        case "prefill" | "ask" | "generate" | "embed":
            return name
        case "solve":
            each = broadcast_sampling(given["sampling"], len(given["requests"]))
            return "score" if all(one.temperature == 0 for one in each) else "solve"
        case _:
            return "update" if torch.is_grad_enabled() else "score"


def _networks(backbone: Backbone) -> Iterator[tuple[str, nn.Module, int]]:
    """Name, the module whose calls are its passes, and bytes of weights, of every network."""
    held = [*vars(backbone).values()]
    held += [inner for value in held if hasattr(value, "__dict__") for inner in vars(value).values()]
    roots = {id(module): module for module in held if isinstance(module, nn.Module)}
    inner = {id(part) for root in roots.values() for part in root.modules() if part is not root}
    for key, root in roots.items():
        if key not in inner:
            yield from _outermost("", root)


def _outermost(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module, int]]:
    for name, child in module.named_children():
        inside = f"{path}.{name}" if path else name
        if isinstance(child, nn.ModuleList):
            for first in [layer for layer in child if layer is not None][:1]:
                yield inside, first, _bytes(child)
        elif isinstance(child, nn.Linear | BaseTunerLayer):
            yield inside, child, _bytes(child)
        else:
            yield from _outermost(inside, child)


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())
