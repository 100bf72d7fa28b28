"""The pretended device itself: what it counts is what can be counted by hand, or on a CPU."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from devkit.pretended_cuda import PretendedCuda

BF16 = torch.bfloat16


def numbers(*shape: int, dtype: torch.dtype = BF16, learns: bool = False) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda").requires_grad_(learns)


# -- memory


def test_memory_is_what_is_alive_and_its_peak(card: PretendedCuda) -> None:
    with card.count() as counts:
        first = numbers(1024, 1024)  # 2 MiB
        view = first[:512].view(-1)
        second = first * 2
        del first
        third = second.float()  # 4 MiB
        del second, third
    assert counts.peak_bytes == 8 * 2**20
    assert counts.live_bytes == 2 * 2**20, "a view keeps all of its storage"
    del view
    assert card.memory.live == 0


def test_saved_tensors_of_autograd_are_alive(card: PretendedCuda) -> None:
    def block(x: Tensor) -> Tensor:
        return x.exp().exp().exp().exp()

    def peak(run: Callable[[Tensor], Tensor]) -> int:
        x = numbers(2**20, learns=True)
        with card.count() as counts:
            run(run(x)).sum().backward()
        return counts.peak_bytes

    saved = peak(block)
    recomputed = peak(lambda x: checkpoint(block, x, use_reentrant=False, preserve_rng_state=False))  # type: ignore[no-any-return]
    assert saved == pytest.approx(10 * 2**21, rel=0.01), "x, eight results and a gradient"
    assert recomputed == pytest.approx(7 * 2**21, rel=0.01), "x, both ends, four results again, gradient"


def test_more_than_there_is_does_not_fit(card: PretendedCuda) -> None:
    kept = numbers(40, 2**29)
    with pytest.raises(torch.OutOfMemoryError, match=r"40\.00 of 79\.65 GiB"):
        numbers(40, 2**29)
    del kept
    numbers(40, 2**29)


def test_an_optimizer_holds_two_moments(card: PretendedCuda) -> None:
    weight = nn.Parameter(numbers(1024, 1024, dtype=torch.float32))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.zeros_like(weight)
    with card.count() as counts:
        optimizer.step()
    assert counts.live_bytes == 4 * 4 * 2**20
    assert "_foreach_addcdiv_" in counts.kernels, "many tensors a kernel, as on a GPU"
    assert not counts.syncs


# -- where things are


def test_reading_waits_once_a_call_and_line(card: PretendedCuda) -> None:
    values = numbers(64)
    with card.count() as counts:
        values.tolist()
        for row in values[:3]:
            float(row)
        values.cpu()
        bool((values > 0).all())
    assert sorted(counts.syncs.values()) == [1, 1, 1, 3]
    assert all(line.startswith(f"{__name__}:") for line in counts.syncs)


@pytest.mark.parametrize(
    ("send", "blocking"),
    [
        (lambda: torch.ones(3).to("cuda"), 1),
        (lambda: torch.ones(3).to("cuda", non_blocking=True), 0),
        (lambda: torch.tensor([1, 2, 3], device="cuda"), 1),
        (lambda: torch.arange(3, device="cuda"), 0),
        (lambda: torch.zeros(3, device="cuda").copy_(torch.ones(3)), 1),
        (lambda: torch.zeros(3, device="cuda")[[0, 2]], 1),
        (lambda: torch.zeros(3, device="cuda")[torch.tensor([0, 2])], 1),
        (lambda: torch.zeros(3, device="cuda").new_tensor([1.0]), 1),
        (lambda: torch.zeros(3, device="cuda") * torch.tensor(2.0), 0),
    ],
)
def test_copies_to_the_device_that_wait(card: PretendedCuda, send: Callable[[], Tensor], blocking: int) -> None:
    with card.count() as counts:
        assert send().device.type == "cuda"
    assert counts.blocking.total() == blocking
    assert not counts.mixtures


@pytest.mark.parametrize(
    "mix",
    [
        lambda: numbers(3) + torch.ones(3, dtype=BF16),
        lambda: torch.cat([numbers(3), torch.ones(3, dtype=BF16)]),
        lambda: numbers(3).normal_(generator=torch.Generator()),
        lambda: numbers(3).masked_fill(torch.ones(3, dtype=torch.bool), 0.0),
        lambda: torch.ones(3)[torch.arange(2, device="cuda")],
    ],
)
def test_mixtures_are_found(card: PretendedCuda, mix: Callable[[], Tensor]) -> None:
    with card.count() as counts:
        mix()
    assert counts.mixtures.total() == 1
    assert next(iter(counts.mixtures)).startswith(f"{__name__}:")


def test_a_backward_pass_that_reads_is_found(card: PretendedCuda) -> None:
    x = numbers(4, learns=True)
    doubled = x * 2
    doubled.register_hook(lambda gradient: gradient * float(gradient.sum()))
    with card.count() as counts:
        float(doubled.sum())
        doubled.sum().backward()
    assert (counts.syncs.total(), counts.backward_syncs.total()) == (2, 1)


@pytest.mark.parametrize(
    ("run", "refused"),
    [
        (lambda: numbers(2, 2) @ numbers(2, 2), 0),
        (lambda: torch.arange(4, device="cuda").view(2, 2) @ torch.arange(2, device="cuda"), 1),
        (lambda: nn.functional.layer_norm(numbers(2, 4), (4,), numbers(4, dtype=torch.float32)), 1),
        (lambda: nn.functional.layer_norm(numbers(2, 4), (4,), numbers(4)), 0),
    ],
)
def test_dtypes_that_only_a_cpu_takes(card: PretendedCuda, run: Callable[[], Tensor], refused: int) -> None:
    with card.count() as counts:
        run()
    assert counts.refused.total() == refused


# -- contents of small tensors


def test_small_whole_numbers_are_those_of_the_cpu(card: PretendedCuda) -> None:
    def lengths(device: str) -> Tensor:
        grid = torch.tensor([[1, 4, 6], [2, 2, 8]], device=device)
        sizes = torch.repeat_interleave(grid[:, 1] * grid[:, 2], grid[:, 0])
        ends = nn.functional.pad(sizes.cumsum(0), (1, 0))
        mask = torch.arange(40, device=device)[None] < ends[:, None]
        mask[0, 3:5] = True
        return torch.cat([ends, mask.nonzero().flatten(), mask.sum(1)])

    assert lengths("cuda").tolist() == lengths("cpu").tolist()


def test_what_nobody_knows_does_not_shape_tensors(card: PretendedCuda) -> None:
    with pytest.raises(NotImplementedError, match="depends on values that nobody knows"):
        (numbers(5000) > 0).nonzero()


# -- amounts


def test_flops_are_those_of_torchs_own_counter(card: PretendedCuda) -> None:
    def run(device: str) -> None:
        layer = nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True, device=device)
        layer(torch.empty(2, 10, 64, device=device)).sum().backward()

    # the fused kernels of a CPU are not in torch's own list
    with sdpa_kernel(SDPBackend.MATH), card.count() as counts:
        with FlopCounterMode(display=False) as counter:
            run("cpu")
        run("cuda")
    assert counts.flops.total() == counter.get_total_flops() > 0


def test_causal_attention_is_half_the_square_and_its_gradient_five_products_for_two(card: PretendedCuda) -> None:
    q = numbers(1, 2, 128, 64, learns=True)
    with card.count() as counts:
        out = nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    forward = counts.flops.total()
    assert forward == 4 * 2 * 64 * 128 * 128 / 2
    with card.count() as counts:
        out.backward(numbers(1, 2, 128, 64))
    assert counts.flops.total() == 2.5 * forward


def test_a_fused_gradient_is_one_kernel(card: PretendedCuda) -> None:
    x = numbers(2**20, learns=True)
    y, gradient = nn.functional.silu(x), numbers(2**20)
    with card.count() as counts:
        y.backward(gradient)
    assert counts.kernels == {"silu_backward": 1}
    assert counts.peak_bytes == 4 * 2**21, "x, y, and a gradient of each"


def test_kernels_and_bytes_of_a_chain(card: PretendedCuda) -> None:
    x, table, ids = numbers(8, 128), numbers(1000, 128), torch.zeros(8, dtype=torch.long, device="cuda")
    with card.count() as counts:
        y = x.t().contiguous().view(8, 128)[:, :64]
        nn.functional.embedding(ids, table) + x
    assert counts.kernels == {"clone": 1, "embedding": 1, "add": 1}
    size = 8 * 128 * 2
    assert counts.bytes == 2 * size + (2 * size + 64) + 3 * size, "an embedding reads its rows only"
    assert y.shape == (8, 64)


# -- attention


def _heads(heads: int, length: int, width: int = 64, dtype: torch.dtype = BF16) -> Tensor:
    return numbers(2, length, heads, width, dtype=dtype).transpose(1, 2).requires_grad_()


@pytest.mark.parametrize(
    ("kernel", "given"),
    [
        ("flash", {}),
        ("flash", {"is_causal": True}),
        ("efficient", {"is_causal": True, "keys": 24}),
        ("efficient", {"mask": torch.bool}),
        ("efficient", {"mask": BF16}),
        ("efficient", {"dtype": torch.float32}),
        ("flash", {"kv_heads": 2, "enable_gqa": True}),
        ("math", {"kv_heads": 2, "enable_gqa": True, "mask": torch.bool}),
        ("math", {"dtype": torch.float64}),
        ("flash", {"width": 72}),
        ("flash", {"width": 260 - 8}),
        ("math", {"width": 50, "mask": torch.bool}),
        ("efficient", {"width": 264}),
        ("cudnn", {"cudnn": True}),
    ],
)
def test_the_kernel_that_attention_takes(card: PretendedCuda, kernel: str, given: dict[str, object]) -> None:
    options = dict(given)
    dtype, width, keys = options.pop("dtype", BF16), options.pop("width", 64), options.pop("keys", 16)
    kv_heads, mask = options.pop("kv_heads", 4), options.pop("mask", None)
    torch.backends.cuda.enable_cudnn_sdp(bool(options.pop("cudnn", False)))
    q, k, v = (_heads(n, size, width, dtype) for n, size in ((4, 16), (kv_heads, keys), (kv_heads, keys)))  # type: ignore[arg-type]
    seen = None if mask is None else torch.ones(2, 1, 16, keys, dtype=mask, device="cuda")  # type: ignore[call-overload]
    with card.count() as counts:
        out = scaled_dot_product_attention(q, k, v, seen, **options)  # type: ignore[arg-type]
        out.sum().backward()
    assert [said.partition(":")[0] for said in counts.attention] == [kernel]
    assert out.shape == q.shape
    assert q.grad is not None
    assert q.grad.shape == q.shape
    assert counts.flops.total() > 0


# -- before and after


def test_nothing_remains(card: PretendedCuda) -> None:
    card.__exit__(None, None, None)
    try:
        assert not torch.cuda.is_available()
        assert torch.accelerator.current_accelerator() is None
        with pytest.raises(RuntimeError):
            torch.Generator("cuda")
        x = torch.ones(3, requires_grad=True)
        (x * 2).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [2, 2, 2]
    finally:
        card.__enter__()
    gc.collect()
    assert card.memory.live == 0
