"""Which rounds are worth keeping, and which one is the result. Pure arithmetic on selection scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import moocore
import numpy as np

from mosaic.core.types.evaluation import Score
from mosaic.core.types.plans import ObjectiveSpec
from mosaic.core.types.runs import Round

REFERENCE = 1.0
SPAN = 4.0
MIN_NOISE = 0.01


def dominates(a: Sequence[float], b: Sequence[float], tolerance: Sequence[float]) -> bool:
    """Whether `a` is nowhere worse than `b` and somewhere better by more than the tolerance.

    A gain within the noise never costs a round its place. The relation is irreflexive and
    transitive, so a set of rounds always has members that nobody dominates.

    >>> dominates([4.2, 3.0], [4.0, 3.0], [0.1, 0.1]), dominates([4.2, 2.9], [4.0, 3.0], [0.1, 0.1])
    (True, False)
    """
    differences = np.subtract(a, b)
    return bool((differences >= 0).all() and (np.asarray(a) > np.add(b, tolerance)).any())


def archive(
    rounds: Sequence[Round], objectives: Sequence[str], noise: Mapping[str, float]
) -> list[int]:
    """Numbers of the accepted rounds that no accepted round dominates, whatever the order they came in."""
    tolerance = [noise.get(o, MIN_NOISE) for o in objectives]
    points = {
        r.round: p for r in rounds if r.accepted and (p := r.point(list(objectives))) is not None
    }
    return [
        n
        for n, p in points.items()
        if not any(dominates(q, p, tolerance) for m, q in points.items() if m != n)
    ]


def hypervolume(points: Sequence[Sequence[float]]) -> float:
    """Share of the box from 1 to 5 in every objective that the points dominate, 0-1 (moocore; maximised)."""
    inside = np.array(
        [p for p in points if all(math.isfinite(x) and x > REFERENCE for x in p)], dtype=float
    )
    if len(inside) == 0:
        return 0.0
    dimensions = inside.shape[1]
    reference = [REFERENCE] * dimensions
    return float(moocore.hypervolume(inside, ref=reference, maximise=True)) / SPAN**dimensions


def floors_broken(
    scores: Mapping[str, Mapping[str, Score]], objectives: Sequence[ObjectiveSpec]
) -> list[str]:
    """Objectives whose selection interval reaches below their floor; an unscored one with a floor is broken."""
    broken = []
    for objective in objectives:
        low = scores[objective.name]["selection"].low
        if objective.floor is not None and (low is None or low < objective.floor):
            broken.append(objective.name)
    return broken


def verdict(round_: Round, objectives: Sequence[ObjectiveSpec]) -> tuple[bool, str]:
    """Whether a round may enter the archive, and why: all objectives scored, floors held on the lower bound."""
    unscored = [o.name for o in objectives if round_.scores[o.name]["selection"].mean is None]
    if unscored:
        return False, f"not scored: {', '.join(unscored)}"
    broken = floors_broken(round_.scores, objectives)
    if broken:
        parts = [
            f"{o.name} {round_.scores[o.name]['selection'].low:.2f} < {o.floor}"
            for o in objectives
            if o.name in broken
        ]
        return False, f"below the floor on the lower bound: {', '.join(parts)}"
    return True, "all floors held" if any(
        o.floor is not None for o in objectives
    ) else "all objectives scored"


def merit(
    point: Sequence[float], objectives: Sequence[ObjectiveSpec], noise: Mapping[str, float]
) -> tuple[float, float]:
    """How good a single point is: the least shortfall below targets that is to be expected, to a thousandth of a point,
    then the volume it dominates alone.

    What was measured is taken to be off by the calibration's noise, so that a score just above its target counts for
    less than one well above it.
    """
    shortfall = sum(
        expected_shortfall(o.target - x, max(MIN_NOISE, noise.get(o.name, MIN_NOISE)))
        for o, x in zip(objectives, point, strict=True)
        if o.target is not None
    )
    return -round(shortfall, 3), hypervolume([point])


def expected_shortfall(below: float, noise: float) -> float:
    """Mean of max(0, below + noise z) for a standard normal z."""
    z = below / noise
    return below * 0.5 * math.erfc(-z / math.sqrt(2)) + noise * math.exp(-z * z / 2) / math.sqrt(
        2 * math.pi
    )


def choose(
    rounds: Sequence[Round],
    kept: Sequence[int],
    objectives: Sequence[ObjectiveSpec],
    noise: Mapping[str, float],
) -> int | None:
    """The archived round of greatest merit, the earliest of equals; None for an empty archive."""
    names = [o.name for o in objectives]
    candidates = [
        (r, p) for r in rounds if r.round in set(kept) and (p := r.point(names)) is not None
    ]
    if not candidates:
        return None
    best = max(candidates, key=lambda pair: (merit(pair[1], objectives, noise), -pair[0].round))
    return best[0].round
