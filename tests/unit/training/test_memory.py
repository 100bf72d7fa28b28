"""Which errors are a lack of memory: each device says it in its own words."""

from __future__ import annotations

import pytest
import torch

from asg_core.training.memory import is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.OutOfMemoryError("HIP out of memory"),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_is_recognised_on_every_device(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ZeroDivisionError("a defect of the plugin")])
def test_another_error_is_not_taken_for_one(error: Exception) -> None:
    assert not is_out_of_memory(error)
