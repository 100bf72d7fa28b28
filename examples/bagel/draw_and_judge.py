"""Draw candidates, let the Solver caption them, measure likeness and loss: the roles in a few lines.

python examples/bagel/draw_and_judge.py BAGEL-7B-MoT "a red bicycle leaning on a wall"
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from asg_core import load_backbone
from asg_core.backbones.interface import ImageRequest, ImageSampling, TextRequest, TextSampling
from asg_core.method.prompts import CAPTION_PROMPT


def main() -> None:
    """Draw three candidates of a caption, save them, and judge each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="folder with the released files")
    parser.add_argument("caption")
    parser.add_argument("--steps", type=int, default=50, help="points of the time grid")
    args = parser.parse_args()
    sampler = {"num_timesteps": args.steps}
    bagel = load_backbone("bagel", weights=args.weights, device="auto", options={"rollout": sampler})

    candidates = bagel.generate([ImageRequest(args.caption, seed) for seed in range(3)], ImageSampling("rollout"))
    questions = [TextRequest(CAPTION_PROMPT, candidate.image, 0) for candidate in candidates]
    captions = bagel.solve(questions, TextSampling(48, temperature=0.0))
    text, *images = bagel.embed([args.caption, *(candidate.image for candidate in candidates)])
    with torch.no_grad():
        losses = bagel.generation_loss(candidates, [0, 0, 0]).loss
    for i, (candidate, caption, image) in enumerate(zip(candidates, captions, images, strict=True)):
        candidate.image.save(f"candidate-{i}.png")
        print(f"candidate-{i}.png  likeness {float(text @ image):.3f}  loss {float(losses[i]):.3f}  {caption.text}")


if __name__ == "__main__":
    main()
