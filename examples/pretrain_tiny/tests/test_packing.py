"""A packed row computes for each branch what the branch alone would give."""

from __future__ import annotations

import torch
from pretrain_tiny.packing import Branch, pack

from asg_core.tiny.backbone import TinyBackbone


def test_a_branch_sees_the_prefix_and_itself_only(tiny: TinyBackbone) -> None:
    model, words = tiny._model, tiny._vocabulary
    texts = ["what color is the circle?", "how many objects are there?", "a red circle and a blue square"]
    branches = [Branch(words.encode(text), 1) for text in texts]
    stream = torch.Generator().manual_seed(0)
    vision = model.see(torch.rand(1, 3, 32, 32, generator=stream))

    def run(row: list[Branch]) -> torch.Tensor:
        packed = pack([row], prefix=16, prefix_full_from=0)
        positions = torch.cat([torch.arange(16)[None], packed.positions], 1)
        embeds = torch.cat([vision, model.trunk.embed_tokens(packed.ids)], 1)
        return model.run(embeds, packed.mask, positions)[0]

    together = run(branches)
    start = 16
    for branch in branches:
        end = start + len(branch.ids)
        alone = run([branch])
        torch.testing.assert_close(together[start:end], alone[16:], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together[:16], alone[:16], rtol=1e-4, atol=1e-5)
        start = end


def test_targets_are_the_next_tokens_of_the_learnt_part() -> None:
    packed = pack([[Branch([5, 6, 7, 8], 2), Branch([9, 10], 1)], [Branch([3, 4], 1)]], prefix=3, prefix_full_from=1)
    assert packed.ids.tolist() == [[5, 6, 7, 8, 9, 10], [3, 4, 0, 0, 0, 0]]
    assert packed.targets.tolist() == [[-100, 7, 8, -100, 10, -100], [4, -100, -100, -100, -100, -100]]
    assert packed.positions[0].tolist() == [3, 4, 5, 6, 3, 4]
    # Prefix: the first token is causal, the other two see each other.
    assert packed.mask[0, 0, :3, :3].tolist() == [[True, False, False], [True, True, True], [True, True, True]]
    # The second branch (columns 7 and 8) does not see the first (columns 3 to 6).
    assert packed.mask[0, 0, 7].tolist() == [True] * 3 + [False] * 4 + [True, False]
