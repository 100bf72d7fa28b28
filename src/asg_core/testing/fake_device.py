"""An accelerator for machines that have none: its tensors lie in host memory and refuse to meet tensors of the CPU.

On a CPU alone every tensor is on the same device, so code that forgets ``device=`` works there and fails on a GPU. Here
the CPU computes everything, but a tensor of the device ``far`` behaves like one of a GPU as far as *where* things are
goes: it does not mix with CPU tensors, takes no CPU generator, and has to come back before numpy or a file can have it.
What kernels a GPU has, how it rounds and how fast it is, this does not show.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from asg_core.testing.device_tensor import DeviceTensor

NAME = "far"
_PATIENCE_SECONDS = 600
_INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


class FakeDeviceTensor(DeviceTensor):
    """A tensor of the far device; ``near`` is its content."""

    near: Tensor
    content = ("near",)

    @staticmethod
    def __new__(cls, near: Tensor) -> FakeDeviceTensor:
        """Wrap ``near``, which nobody else may hold."""
        tensor: FakeDeviceTensor = Tensor._make_wrapper_subclass(
            cls,
            near.size(),
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            layout=near.layout,
            device=torch.device(NAME, 0),
        )
        tensor.near = near
        return tensor

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, op: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[Any, Any] | None = None
    ) -> Any:
        """Compute on the CPU."""
        return _compute(op, args, kwargs or {})

    def tolist(self) -> Any:
        """As of any tensor."""
        return self.near.tolist()

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        """The content."""
        return f"far({self.near!r})"


def _on_fake_device(device: Any) -> bool:
    return torch.device(device).type == NAME


def _each(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """``value`` with every tensor of it changed. What operators are given is lists and tuples: torch's walk over any
    container takes most of the time of a small operation."""
    if isinstance(value, Tensor):
        return change(value)
    return type(value)([_each(change, part) for part in value]) if type(value) in (list, tuple) else value


def _content(value: Tensor) -> Tensor:
    return value.near if isinstance(value, FakeDeviceTensor) else value


def _compute(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    tensors: list[Tensor] = []

    def near(value: Tensor) -> Tensor:
        tensors.append(value)
        return _content(value)

    near_args = _each(near, tuple(args))
    near_kwargs = {name: _each(near, value) for name, value in kwargs.items()}
    if op is torch.ops.aten.copy_.default:
        op(*near_args, **near_kwargs)
        return args[0]
    device = kwargs.get("device")
    if device is not None and _on_fake_device(device):
        near_kwargs["device"] = torch.device("cpu")
    if op is torch.ops.aten._to_copy.default:
        out = op(*near_args, **near_kwargs)
        return FakeDeviceTensor(out) if _on_fake_device(device or args[0].device) else out
    some_far = any(isinstance(tensor, FakeDeviceTensor) for tensor in tensors)
    to_far = some_far if device is None else _on_fake_device(device)
    _refuse_mixtures(op, args, kwargs, tensors if some_far else [], to_far=to_far)
    out = op(*near_args, **near_kwargs)
    if not to_far:
        return out
    return _each(FakeDeviceTensor, out)


def _refuse_mixtures(
    op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: Sequence[Tensor], *, to_far: bool
) -> None:
    generator = next((leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, torch.Generator)), None)
    if to_far and generator is not None:
        raise RuntimeError(f"{op}: a {NAME} tensor is drawn with a generator of the {generator.device}")
    # A GPU takes numbers and indices from the host.
    if op in _INDEXING and isinstance(args[0], FakeDeviceTensor):
        tensors = [args[0], *(args[2:3])]
    strangers = [tuple(t.shape) for t in tensors if not isinstance(t, FakeDeviceTensor) and t.ndim]
    if strangers:
        raise RuntimeError(f"{op}: {NAME} tensors meet tensors of the CPU of the shapes {strangers}")


class _Everywhere(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what makes tensors, which no tensor does."""

    def __torch_dispatch__(
        self, op: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _compute(op, args, kwargs or {})


def obstacle() -> str | None:
    """Why there can be no far device in a process that is forked off this one; None if there can."""
    if "fork" not in multiprocessing.get_all_start_methods():
        return "torch never forgets a device, so it needs a process of its own, and this system cannot fork"
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        return f"torch {torch.__version__} takes no device that is written in Python"
    if torch.accelerator.is_available():
        return f"this machine has a device of its own, {torch.accelerator.current_accelerator()}: run it there"
    return None


def in_subprocess(work: Callable[[], str]) -> str:
    """What ``work`` says in a process forked off this one, where the far device may become known.

    If it says nothing, because it raised or died or took ten minutes, that is said instead.
    """

    def answer(connection: Connection) -> None:
        torch.set_num_threads(1)  # a forked process has none of its parent's
        connection.send(work())

    here, there = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=answer, args=(there,))
    child.start()
    there.close()
    try:
        said: str = here.recv() if here.poll(_PATIENCE_SECONDS) else f"no answer in {_PATIENCE_SECONDS} seconds"
    except EOFError:
        said = "the process that tried it died"
    finally:
        child.kill()
        child.join()
    return said


@contextmanager
def fake_device() -> Iterator[str]:
    """Inside, the device that is yielded exists. It stays known to torch until the process ends: use one of its own.

    Not where there is an :func:`obstacle`.
    """
    if torch._C._get_privateuse1_backend_name() != NAME:
        module = backend_registration._DummyBackendModule()
        # asked for by gradient checkpointing
        module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]  # type: ignore[attr-defined]
        backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=module)

    def afterwards(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        # torch fills a new tensor on its device where no dispatch mode sees it
        def made(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            return tensor if device is None else tensor.to(device)

        return made

    with (
        mock.patch.object(torch, "tensor", afterwards(torch.tensor)),
        mock.patch.object(torch, "as_tensor", afterwards(torch.as_tensor)),
        torch.autograd.set_multithreading_enabled(False),
        _Everywhere(),  # type: ignore[no-untyped-call]
    ):
        yield f"{NAME}:0"
