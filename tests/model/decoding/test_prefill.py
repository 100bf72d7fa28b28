"""Image prefixes of several roles, read as one batch ahead of the calls that use them: fewer passes, same results."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from PIL import Image

from asg_core.backbones.interface import Role, TextRequest, TextSampling
from asg_core.testing.qwen import QwenBackbone, random_qwen

ROLES = [Role.PROPOSER, Role.SOLVER, None]
Picture = Callable[..., Image.Image]


@pytest.fixture
def backbone() -> QwenBackbone:
    return QwenBackbone(random_qwen(dtype=torch.float64), scale=0.2)


@pytest.fixture
def passes(backbone: QwenBackbone, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(rows, positions) of the passes so far."""
    seen: list[tuple[int, int]] = []
    forward = backbone.text.forward

    def noted(embeds: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append((embeds.shape[0], embeds.shape[1]))
        return forward(embeds, *rest)

    monkeypatch.setattr(backbone.text, "forward", noted)
    return seen


def test_rows_of_all_roles_in_one_pass_equal_rows_of_one_role(backbone: QwenBackbone, make_picture: Picture) -> None:
    """Every cached key and value, in float64; rows of another role are something else."""
    images = [make_picture(1), make_picture(2, 84, 56)]
    backbone.prefill(images, ROLES)
    entries = {entry.version[0]: entry for entry in backbone._prefixes._entries}
    backbone._prefixes.clear()
    for role in ROLES:
        backbone.prefill(images, [role])
    singles = {entry.version[0]: entry for entry in backbone._prefixes._entries}
    assert set(entries) == set(singles) == set(ROLES)

    def states(entry: object, image: Image.Image) -> list[torch.Tensor]:
        row = entry.row_of[id(image)]  # type: ignore[attr-defined]
        rows = entry.rows  # type: ignore[attr-defined]
        seen = rows.visible[row]
        layers = rows.cache.layers
        return [rows.last[row], *(s[row][:, seen] for layer in layers for s in (layer.keys, layer.values))]

    def distance(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
        return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))

    for image in images:
        for role in ROLES:
            for other in ROLES:
                apart = distance(states(entries[role], image), states(singles[other], image))
                assert apart < 1e-12 if role is other else apart > 1e-3, (role, other)


def test_calls_after_it_read_no_image_again_and_say_what_they_would_have_said(
    backbone: QwenBackbone, make_picture: Picture, passes: list[tuple[int, int]]
) -> None:
    images = [make_picture(1), make_picture(2, 84, 56)]
    prefix = max(len(segment.embeds) for segment in backbone.text.prefixes(images))
    requests = [TextRequest(prompt, image, seed) for image in images for prompt in ("Why?", "Who") for seed in range(3)]

    def step() -> list[tuple[tuple[int, ...], list[float]]]:
        asked = backbone.ask(requests, TextSampling(8))
        solved = backbone.solve(requests, TextSampling(8))
        with torch.no_grad():
            base = backbone.token_logits(solved, None)
        scored = [score.logprobs.tolist() for score in base]
        return [(s.token_ids, [*s.logprobs]) for s in (*asked, *solved)] + [((), s) for s in scored]

    backbone._prefixes.clear()
    plain = step()
    assert [rows for rows, width in passes if width >= prefix] == [2, 2, 2]
    backbone._prefixes.clear()
    passes.clear()
    backbone.prefill(images, ROLES)
    ahead = step()
    assert [rows for rows, width in passes if width >= prefix] == [6]
    for (ids, logprobs), (wanted, expected) in zip(ahead, plain, strict=True):
        assert ids == wanted
        assert logprobs == pytest.approx(expected, abs=1e-10)


def test_a_prefix_read_ahead_is_not_used_for_newer_weights(
    backbone: QwenBackbone, make_picture: Picture, passes: list[tuple[int, int]]
) -> None:
    request = [TextRequest("Why?", make_picture(1), 3)]
    backbone.prefill([request[0].image], ROLES)  # type: ignore[list-item]
    with torch.no_grad():
        for weight in backbone.trainable(Role.SOLVER).values():
            weight.mul_(2)
    (stale,) = backbone.solve(request, TextSampling(8))
    backbone._prefixes.clear()
    (fresh,) = backbone.solve(request, TextSampling(8))
    assert stale.logprobs == pytest.approx(fresh.logprobs, abs=1e-12)
    passes.clear()
    backbone.ask(request, TextSampling(1))
    assert len(passes) == 2  # the cache is empty now: image and prompt


def test_what_is_there_already_is_not_read_again_and_nothing_piles_up(
    backbone: QwenBackbone, make_picture: Picture, passes: list[tuple[int, int]]
) -> None:
    """Steps that see the same image objects: only the policies that have learned since read them again."""
    images = [make_picture(1), make_picture(2)]

    def held() -> tuple[int, int]:
        entries = backbone._prefixes._entries
        return len(entries), sum(len(rows.counter) for rows in {id(e.rows): e.rows for e in entries}.values())

    backbone.prefill(images, ROLES)
    assert held() == (3, 6)
    backbone.prefill(images[::-1], [*ROLES, Role.SOLVER])
    assert held() == (3, 6)
    assert [rows for rows, _ in passes] == [6]
    for _ in range(3):
        with torch.no_grad():
            for role in (Role.PROPOSER, Role.SOLVER):
                for weight in backbone.trainable(role).values():
                    weight.mul_(1.01)
        backbone.prefill(images, ROLES)
        assert held() == (3, 6 + 4)  # the base's rows keep their neighbours alive, once
    assert [rows for rows, _ in passes] == [6, 4, 4, 4]


def test_an_image_that_is_gone_takes_its_prefixes_of_all_roles_with_it(
    backbone: QwenBackbone, make_picture: Picture
) -> None:
    image = make_picture(1)
    backbone.prefill([image, image], ROLES)
    assert [len(entry.rows.counter) for entry in backbone._prefixes._entries] == [3, 3, 3]
    del image
    assert backbone._prefixes._entries == []
    backbone.prefill([], ROLES)
    backbone.prefill([make_picture(1)], [])
    assert backbone._prefixes._entries == []
