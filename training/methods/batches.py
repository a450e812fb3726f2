"""Which rows are trained on together. Pure: lengths go in, row numbers come out.

On CPU padding is what a batch wastes, so rows of similar length share one. On GPU several rows
may be packed into one of `max_length` tokens; `pack` follows TRL's rule, to know the result before
anything is trained.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

import numpy as np

from mosaic.core.types.runs import LoraRecipe


def by_length(lengths: Sequence[int], batch_size: int, seeds: Sequence[int]) -> list[list[int]]:
    """Row numbers in batches of similar length, for one epoch per seed.

    Each seed shuffles the batches of its epoch; rows of equal length keep their order. Rows that
    fill no batch come last, those of all epochs together, so that every batch but the last is
    full.

    >>> by_length([5, 9, 5, 7, 6], batch_size=2, seeds=[1, 2])
    [[0, 2], [4, 3], [0, 2], [4, 3], [1, 1]]
    """
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    full = len(order) - len(order) % batch_size
    batches = _chunks(order[:full], batch_size)
    shuffled = []
    for seed in seeds:
        for place in np.random.default_rng(seed).permutation(len(batches)):
            shuffled.append(batches[place])
    return shuffled + _chunks(order[full:] * len(seeds), batch_size)


def _chunks(rows: list[int], size: int) -> list[list[int]]:
    """Consecutive parts of `size` rows; the last may be shorter."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def positions(batches: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    """Token positions of padded batches: each batch is as wide as its longest row.

    >>> positions([[0, 1], [2]], lengths=[3, 5, 4])  # 2 x 5 + 1 x 4
    14
    """
    total = 0
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        total += len(batch) * longest
    return total


def largest_batch(lengths: Sequence[int], recipe: LoraRecipe) -> list[int]:
    """Row numbers of the largest micro-batch that rows of these lengths can form.

    Padded, these are the `batch_size` longest rows. A set with fewer rows repeats them, as its
    last batch does over several epochs. Packed, these are the rows of the fullest `batch_size`
    packs.

    >>> from mosaic.core.types.runs import SftRecipe
    >>> largest_batch([5, 9, 5, 7, 6], SftRecipe(batch_size=2))
    [1, 3]
    >>> largest_batch([5, 9], SftRecipe(batch_size=8, epochs=2))
    [1, 0, 1, 0]
    >>> largest_batch([5, 9, 5, 7, 6], SftRecipe(batch_size=1, packing=True, max_length=10))
    [0, 2]
    """
    if recipe.packing:
        packs = pack(lengths, recipe.max_length)
        packs.sort(key=lambda rows: _tokens(rows, lengths), reverse=True)
        fullest: list[int] = []
        for rows in packs[: recipe.batch_size]:
            fullest += rows
        return fullest
    longest = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return (longest * recipe.epochs)[: recipe.batch_size]


def _tokens(rows: Sequence[int], lengths: Sequence[int]) -> int:
    return sum(lengths[row] for row in rows)


def pack(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Rows in packs of at most `max_length` tokens: best fit, longest rows first.

    Each row goes to the pack that it fills best, or else begins a new one (TRL's `bfd`). Packing
    some of these packs' rows again gives the same packs.

    >>> pack([6, 3, 5, 4, 2], max_length=10)  # 6 + 4 = 10, then 5 + 3 + 2 = 10
    [[0, 3], [2, 1, 4]]
    """
    packs: list[list[int]] = []
    by_space: dict[int, deque[list[int]]] = {}  # free tokens -> packs with as many, oldest first
    spaces: list[int] = []  # the keys of `by_space`, ascending
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        place = bisect_left(spaces, lengths[row])
        if place < len(spaces):
            space = spaces[place]
            rows = by_space[space].popleft()
            if not by_space[space]:
                del by_space[space]
                spaces.pop(place)
        else:
            space = max_length
            rows = []
            packs.append(rows)
        rows.append(row)
        left = space - lengths[row]
        if left not in by_space:
            by_space[left] = deque()
            insort(spaces, left)
        by_space[left].append(rows)
    return packs
