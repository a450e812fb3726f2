"""In which order practice prompts are drawn. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def practice_order(slices: Sequence[str], weights: Mapping[str, float], seed: int) -> list[int]:
    """Numbers of prompts, each at most once, so that every beginning has the slices as weighted.

    `slices` names each prompt's slice. The next prompt is of the slice that is furthest behind its
    weight; the seed shuffles the prompts of a slice. Without weights the slices keep their own
    proportions; a slice without weight is never drawn. When a slice is used up the others go on.

    >>> practice_order(["a", "b", "a", "b", "a"], {"a": 0.75, "b": 0.25}, seed=1)
    [4, 0, 1, 2, 3]
    """
    generator = np.random.default_rng(seed)
    members: dict[str, list[int]] = {}
    for number in generator.permutation(len(slices)).tolist():
        members.setdefault(slices[number], []).append(number)
    if not weights:
        weights = {name: len(numbers) for name, numbers in members.items()}
    names = sorted(name for name in members if weights.get(name, 0.0) > 0)
    taken = dict.fromkeys(names, 0)
    order: list[int] = []
    while names:
        # The slice whose next prompt comes first on its own clock (as in largest-remainder seats).
        name = min(names, key=lambda name: ((taken[name] + 0.5) / weights[name], name))
        order.append(members[name][taken[name]])
        taken[name] += 1
        if taken[name] == len(members[name]):
            names.remove(name)
    return order
