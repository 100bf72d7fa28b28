"""What tensors of a device that torch does not have share: Python's access to them, and no way to numpy."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

_DATA: Any = Tensor.data


class DeviceTensor(Tensor):
    """A tensor without memory of its own; a subclass says what it stands for.

    Made with ``Tensor._make_wrapper_subclass``; operations arrive at ``__torch_dispatch__``.

    Attributes:
        content: names of the subclass's attributes that say what an instance stands for.
    """

    content: ClassVar[tuple[str, ...]]

    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @property
    def data(self) -> Tensor:
        """As of any tensor. Raises RuntimeError if it is set to a tensor of another device."""
        data: Tensor = _DATA.__get__(self)
        return data

    @data.setter
    def data(self, value: Tensor) -> None:
        if type(value) is not type(self):
            raise RuntimeError(f"the data of a {self.device.type} tensor is set to a tensor of the {value.device}")
        _DATA.__set__(self, value)
        for name in self.content:
            setattr(self, name, getattr(value, name))

    def __getitem__(self, key: Any) -> Tensor:
        """As of any tensor; torch makes tensors of lists where no dispatch mode sees it, so they are made here."""
        found: Tensor = super().__getitem__(self._as_index(key))
        return found

    def __setitem__(self, key: Any, value: Any) -> None:
        """See ``__getitem__``."""
        super().__setitem__(self._as_index(key), value)

    def _as_index(self, key: Any) -> Any:
        """An index whose lists are tensors of the device."""
        parts = key if isinstance(key, tuple) else (key,)
        made = tuple(torch.tensor(part).to(self.device) if isinstance(part, list) else part for part in parts)
        return made if isinstance(key, tuple) else made[0]

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None, device: Any = None, **_: Any) -> Tensor:  # type: ignore[override]
        """As of any tensor."""
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or self.device)

    def numpy(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused, as a GPU's tensors do. Raises TypeError."""
        raise TypeError(f"can't convert a {self.device.type} tensor to numpy: use Tensor.cpu() first")

    __array__ = numpy
