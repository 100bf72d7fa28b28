"""A CUDA device for machines that have none: it counts what the real code would do on one, and computes nothing.

from devkit.pretended_cuda import PretendedCuda

with PretendedCuda() as card:
    built = build("bagel", "full", "cuda", "bfloat16")
    with card.count() as prefill:
        built.backbone.solve([request], TextSampling(1))
prefill.syncs, prefill.blocking, prefill.attention, prefill.flops, prefill.kernels, prefill.peak_bytes

Tensors of the device have a shape, strides, a dtype and a size in bytes, but no content; those of the CPU are real.
Small whole numbers are computed all the same (``tensor.KNOWN``), because shapes and lengths are made of them. What it
finds is *where* things are, what a kernel takes, what waits, and how much there is of everything; how kernels round
and how fast they are, it cannot find.
"""

from devkit.pretended_cuda.card import PretendedCuda as PretendedCuda
from devkit.pretended_cuda.counts import Counts as Counts
from devkit.pretended_cuda.guard import obstacle as obstacle
