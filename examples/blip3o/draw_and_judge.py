"""Draw candidates, ask about them, compare their loss under the generator: the four roles in a few lines.

python examples/blip3o/draw_and_judge.py BLIP3o-Model-8B "two red bands on a wall"
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from asg_core import load_backbone
from asg_core.backbones.interface import ImageRequest, ImageSampling, TextRequest, TextSampling


def main() -> None:
    """Draw three candidates of a caption, save them, and judge each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="released folder")
    parser.add_argument("caption")
    parser.add_argument("--size", type=int, default=640, help="pixels, a multiple of 32")
    args = parser.parse_args()
    sampler = {"decoder_steps": 25, "decoder_guidance": 2.0, "height": args.size, "width": args.size}
    backbone = load_backbone("blip3o", weights=args.weights, device="auto", options={"rollout": sampler})

    candidates = backbone.generate([ImageRequest(args.caption, seed) for seed in range(3)], ImageSampling("rollout"))
    questions = [TextRequest("Describe this image in one short sentence.", c.image, 0) for c in candidates]
    captions = backbone.solve(questions, TextSampling(48, temperature=0.0))
    text, *images = backbone.embed([args.caption, *(c.image for c in candidates)])
    with torch.no_grad():
        losses = backbone.generation_loss(candidates, [0, 0, 0]).loss
    for i, (candidate, caption, image) in enumerate(zip(candidates, captions, images, strict=True)):
        candidate.image.save(f"candidate-{i}.png")
        print(f"candidate-{i}.png  likeness {float(text @ image):.3f}  loss {float(losses[i]):.3f}  {caption.text}")


if __name__ == "__main__":
    main()
