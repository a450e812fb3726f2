"""Influence as prior evidence: which way an objective answers to the mixture, by its gradients.

Estimated effects are far too large and carry no size, but their order and signs say something
(`docs/ideal.md`). So only their direction is taken. With alpha_b the effect of bucket b per log
share, at the shares s of the mixture that the adapter was trained on,

    alpha_b = s_b (effect_b - sum over c of s_c effect_c)

each is drawn toward zero by its own standard error e_b,

    shrunk_b = alpha_b t^2 / (t^2 + e_b^2),    t^2 = mean(alpha^2) - mean(e^2)

and the whole is scaled to length 1. How far it may be trusted is the cosine with the true direction
that is to be expected, the square root of t^2 / mean(alpha^2), and 0 if nothing but noise is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agent.weights import Cell, Floats
from mosaic.core.types.influence import Influence


@dataclass(frozen=True)
class Slopes:
    """How one objective answers to log shares around a mixture, but for the size of it.

    `shares` (cells,) is the mixture, `direction` (cells,) has length 1, `trust` is 0 to 1.
    """

    shares: Floats
    direction: Floats
    trust: float


def influence_slopes(influence: Influence | None, cells: Sequence[Cell]) -> dict[str, Slopes]:
    """Objective -> its slopes, for those whose influence can be told from noise.

    Cells without an estimate have no slope.
    """
    found: dict[str, Slopes] = {}
    if influence is None:
        return found
    for name in influence.prompts:
        slopes = _slopes_of(name, influence, cells)
        if slopes is not None:
            found[name] = slopes
    return found


def _slopes_of(name: str, influence: Influence, cells: Sequence[Cell]) -> Slopes | None:
    places = {cell: place for place, cell in enumerate(cells)}
    shares, effects, errors = (np.zeros(len(cells)) for _ in range(3))
    for bucket in influence.buckets:
        place = places.get((bucket.dataset, bucket.bucket))
        if place is None or name not in bucket.effects:
            continue
        shares[place] = bucket.share
        effects[place] = bucket.effects[name].value
        errors[place] = bucket.effects[name].standard_error
    if not shares.any():
        return None
    return slopes_around(shares / shares.sum(), effects, errors)


def slopes_around(shares: Floats, effects: Floats, errors: Floats) -> Slopes | None:
    """The slopes of effects with standard errors, all of shape (cells,); None if all is noise.

    Without errors nothing is drawn toward zero:

    >>> shares, nothing = np.array([0.5, 0.5]), np.zeros(2)
    >>> sure = slopes_around(shares, np.array([4.0, 0.0]), nothing)
    >>> sure.direction.round(2).tolist(), sure.trust
    ([0.71, -0.71], 1.0)

    Errors of 1 in slopes of 1 and -1 leave nothing:

    >>> slopes_around(shares, np.array([4.0, 0.0]), np.full(2, 2.0)) is None
    True
    """
    alphas, spread = shares * (effects - shares @ effects), shares * errors
    seen = float((alphas**2).mean())
    signal = seen - float((spread**2).mean())
    if signal <= 0:
        return None
    shrunk = alphas * signal / (signal + spread**2)
    direction = shrunk / np.linalg.norm(shrunk)
    return Slopes(shares, np.asarray(direction), float(np.sqrt(signal / seen)))
