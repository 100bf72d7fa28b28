"""Does a drawing lead back to its prompt, do candidates differ: measures on embeddings (METHOD, generation step 3).

Distances are |u - v|^2 / 4 of unit vectors, which is (1 - cos) / 2 but exactly 0 for equal vectors.
NaN or zero vectors give NaN, which the caller drops.
"""

from __future__ import annotations

from torch import Tensor


def _unit(vectors: Tensor) -> Tensor:
    """(..., d) float64 with unit length along the last axis, so that float32 rounding does not leave [0, 1]."""
    vectors = vectors.double()
    unit: Tensor = vectors / vectors.norm(dim=-1, keepdim=True)
    return unit


def unit_similarity(a: Tensor, b: Tensor) -> float:
    """Cosine of two (d,) vectors mapped to [0, 1]: exactly 1 for equal ones, .5 for orthogonal, 0 for opposite."""
    return float(1.0 - ((_unit(a) - _unit(b)).square().sum() / 4.0).clamp(0.0, 1.0))


def cycle_score(prompt: Tensor, caption: Tensor, image: Tensor) -> float:
    """S_cyc = .5 sim(prompt, caption of the image) + .5 sim(image, prompt), in [0, 1].

    Args:
        prompt: (d,) embedding of the drawing prompt.
        caption: (d,) embedding of the Solver's caption of the candidate.
        image: (d,) embedding of the candidate itself, in the same space; half of the score depends on it.
    """
    return 0.5 * unit_similarity(prompt, caption) + 0.5 * unit_similarity(image, prompt)


def diversity(embeddings: Tensor) -> list[float]:
    """S_div of each of n candidates: mean of (1 - cos) / 2 over the others, on this absolute scale, in [0, 1].

    Args:
        embeddings: (n, d) image embeddings. Identical ones are exactly 0 apart; a single candidate has diversity 0.
    """
    n = embeddings.shape[0]
    if n < 2:
        return [0.0] * n
    unit = _unit(embeddings)
    distance = (unit[:, None] - unit[None]).square().sum(dim=-1) / 4.0  # (n, n)
    return [float(row) for row in distance.sum(dim=1).clamp(0.0, n - 1.0) / (n - 1)]
