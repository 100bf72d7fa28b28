"""Draw four candidates for a prompt, then read how likely the model finds each of them, scale by scale.

python examples/vargpt/draw_and_score.py plugins/asg_vargpt/tests/fixtures/golden/ckpt "a red kite" --resolution 0.06M
python examples/vargpt/draw_and_score.py VARGPT-v1.1 "a red kite over a calm sea"
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from asg_core import load_backbone
from asg_core.backbones.interface import ImageRequest, ImageSampling


def main() -> None:
    """Draw, save, score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("--resolution", default="0.25M")
    parser.add_argument("--out", type=Path, default=Path())
    args = parser.parse_args()

    sampler = {"resolution": args.resolution}
    backbone = load_backbone("vargpt", weights=args.weights, device="auto", options={"quality": sampler})
    samples = backbone.generate(
        [ImageRequest(args.prompt, seed) for seed in range(4)], ImageSampling("quality"), role=None
    )
    with torch.no_grad():
        scores = backbone.candidates.scores(samples, role=None)
    for sample, score in zip(samples, scores, strict=True):
        file = args.out / f"{sample.request.seed}.png"
        sample.image.save(file)
        per_scale = " ".join(f"{value:.3f}" for value in score.mean_per_scale[0].tolist())
        print(f"{file}  log-prob {score.per_image.item():.1f} nats; mean per bit at each scale: {per_scale}")


if __name__ == "__main__":
    main()
