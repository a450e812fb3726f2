"""Means with intervals, paired changes, and which changes to believe. Pure and seeded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mosaic.core.types.base import SCALE
from mosaic.core.types.evaluation import Score, Scored

RESAMPLES = 2000
PERMUTATIONS = 2000
LEVEL = 0.05
DISCOVERY = 0.10


def summarise(scored: Sequence[Scored], seed: int) -> Score:
    """Mean over valid scored prompts with a 95 % percentile bootstrap interval; unscored and invalid are counted.

    A constant sample has no spread to resample. Its interval is the exact one for a share of n equal outcomes:
    m +- 4 (1 - 0.025^(1/n)), clipped to the scale.
    """
    values = np.array(
        [s.score for s in scored if s.status == "ok" and s.valid and s.score is not None],
        dtype=float,
    )
    unscored = sum(s.status != "ok" for s in scored)
    invalid = sum(s.status == "ok" and not s.valid for s in scored)
    if len(values) == 0:
        return Score(
            mean=None, low=None, high=None, n_scored=0, n_unscored=unscored, n_invalid=invalid
        )
    mean = float(values.mean())
    if np.all(values == values[0]):
        half = (SCALE[1] - SCALE[0]) * (1 - (LEVEL / 2) ** (1 / len(values)))
        low, high = max(SCALE[0], mean - half), min(SCALE[1], mean + half)
    else:
        generator = np.random.default_rng(seed)
        means = values[generator.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
        low, high = (float(q) for q in np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2]))
    return Score(
        mean=mean, low=low, high=high, n_scored=len(values), n_unscored=unscored, n_invalid=invalid
    )


def paired_change(
    before: Sequence[Scored], after: Sequence[Scored], seed: int
) -> tuple[float, float] | None:
    """(mean difference, p) over prompts scored both times, by a two-sided sign-flip permutation test; None without any."""
    old = {s.id: s.score for s in before if s.status == "ok" and s.valid and s.score is not None}
    pairs = [
        (old[s.id], s.score)
        for s in after
        if s.status == "ok" and s.valid and s.score is not None and s.id in old
    ]
    if not pairs:
        return None
    difference = np.array([b - a for a, b in pairs], dtype=float)
    observed = abs(float(difference.mean()))
    if not difference.any():
        return 0.0, 1.0
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(PERMUTATIONS, len(difference)))
    extreme = np.abs((signs * difference).mean(axis=1)) >= observed - 1e-12
    return float(difference.mean()), (1 + int(extreme.sum())) / (PERMUTATIONS + 1)


def discoveries(p_values: Sequence[float | None]) -> list[bool]:
    """Which p-values hold under false-discovery control at 10 % (Benjamini-Hochberg); None never does."""
    from scipy.stats import (
        false_discovery_control,
    )  # half a second, which starting a command need not wait for

    known = [p for p in p_values if p is not None]
    if not known:
        return [False] * len(p_values)
    adjusted = iter(false_discovery_control(known))
    return [p is not None and bool(next(adjusted) <= DISCOVERY) for p in p_values]
