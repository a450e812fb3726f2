"""Answers by the level that they were given, drawn evenly. Pure but for reading the pool."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from mosaic.core.types.data import JudgedAnswer, Message
from training.data.pool import Pool

Cell = tuple[str, int]
"""An objective, and a level of it."""
Numbers = npt.NDArray[np.int64]
# Rows of a cell that are looked at beyond its budget, for those that are too long for what is left.
SPARE = 64


def evenly(
    cells: Mapping[Cell, Sequence[int]], lengths: Mapping[int, int], tokens: int
) -> list[int]:
    """Numbers of answers, each at most once, within a budget of tokens.

    Each cell in turn gives the next of its answers; one that is too long for what is left is passed
    over. `lengths` is number -> tokens.

    >>> cells = {("safety", 1): [0, 1], ("safety", 5): [2]}
    >>> evenly(cells, {0: 4, 1: 4, 2: 9}, 10)
    [0, 1]
    """
    waiting = {cell: list(reversed(own)) for cell, own in sorted(cells.items())}
    taken: dict[int, None] = {}
    while any(waiting.values()):
        for own in waiting.values():
            while own:
                number = own.pop()
                if number not in taken and lengths[number] <= tokens:
                    taken[number] = None
                    tokens -= lengths[number]
                    break
    return list(taken)


def by_cell(answers: Sequence[JudgedAnswer], seed: int) -> dict[Cell, list[int]]:
    """The numbers of answers with each level, in an order that the seed shuffles."""
    cells: dict[Cell, list[int]] = {}
    order = list(range(len(answers)))
    random.Random(seed).shuffle(order)
    for number in order:
        for cell in answers[number].levels.items():
            cells.setdefault(cell, []).append(number)
    return cells


def graded_levels(pool: Pool, graded: Mapping[str, str]) -> dict[str, dict[int, int]]:
    """Data set -> level -> rows of the pool, for the data sets whose qualities are levels."""
    found: dict[str, dict[int, int]] = {}
    for dataset in sorted(graded):
        counts: dict[int, int] = {}
        for bucket in pool.buckets(dataset).values():
            levels, rows = np.unique(pool.slice("quality", bucket), return_counts=True)
            for level, count in zip(levels.tolist(), rows.tolist(), strict=True):
                counts[level] = counts.get(level, 0) + count
        found[dataset] = dict(sorted(counts.items()))
    return found


def graded_doubts(
    graded: Mapping[str, str],
    declared: Mapping[str, Sequence[str]],
    levels: Mapping[str, Mapping[int, int]],
) -> list[str]:
    """Why qualities of rows may not be the levels that `graded` takes them for; a sentence each.

    `declared` is objective -> the data sets that serve it, `levels` what `graded_levels` counts.

    >>> graded_doubts({"talk": "safety"}, {"safety": ["guard"]}, {"talk": {5: 80}})[0]
    'graded.talk: safety does not name talk among its data sets (guard); its qualities count all the same'
    """
    found = []
    for dataset, objective in sorted(graded.items()):
        serving = declared.get(objective, [])
        if dataset not in serving:
            found.append(
                f"graded.{dataset}: {objective} does not name {dataset} among its data sets "
                f"({', '.join(serving) or 'none'}); its qualities count all the same"
            )
        counts = levels[dataset]
        if len(counts) == 1:
            (level, rows), *_ = counts.items()
            found.append(
                f"graded.{dataset}: all {rows:,} rows have quality {level}: they tell the data set from "
                f"others rather than one level of {objective} from another"
            )
    return found


def pool_answers(
    pool: Pool, graded: Mapping[str, str], tokens: int, max_length: int, seed: int
) -> list[JudgedAnswer]:
    """Rows of the pool whose qualities are levels, as many of each level as `tokens` allow.

    `graded` is data set -> objective. Rows of more than `max_length` tokens are left out.
    """
    generator = np.random.default_rng(seed)
    members: dict[Cell, list[Numbers]] = {}
    sizes: dict[Cell, list[Numbers]] = {}
    for dataset, objective in sorted(graded.items()):
        for bucket in pool.buckets(dataset).values():
            lengths, qualities = pool.slice("n_tokens", bucket), pool.slice("quality", bucket)
            for level in np.unique(qualities).tolist():
                places = np.flatnonzero((lengths <= max_length) & (qualities == level))
                cell = (objective, int(level))
                members.setdefault(cell, []).append(places + bucket.start)
                sizes.setdefault(cell, []).append(np.asarray(lengths)[places])
    drawn: dict[Cell, list[int]] = {}
    length_of: dict[int, int] = {}
    level_of: dict[int, Cell] = {}
    for cell in sorted(members):
        numbers, lengths = np.concatenate(members[cell]), np.concatenate(sizes[cell])
        order = generator.permutation(len(numbers))
        # More than the whole budget of one cell is never looked at.
        enough = int(np.searchsorted(np.cumsum(lengths[order]), tokens)) + SPARE
        drawn[cell] = numbers[order[:enough]].tolist()
        for number, length in zip(drawn[cell], lengths[order[:enough]].tolist(), strict=True):
            length_of[number], level_of[number] = int(length), cell
    chosen = evenly(drawn, length_of, tokens)
    found = []
    rows = pool.rows(np.array(chosen, dtype=np.int64)).to_pylist() if chosen else []
    for number, row in zip(chosen, rows, strict=True):
        objective, level = level_of[number]
        messages = []
        for message in row["messages"]:
            learn = message.get("learn") is not False
            known = {"role": message["role"], "content": message["content"], "learn": learn}
            messages.append(Message.model_validate(known))
        found.append(JudgedAnswer(id=row["id"], messages=messages, levels={objective: level}))
    return found
