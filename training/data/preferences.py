"""Which two answers to a prompt make a preference pair. Pure: rewards go in, pairs come out.

Reward consistency (arXiv 2504.11337): a pair is kept if the chosen answer is better under *every*
objective that applies to the prompt. Of several such pairs the one with the largest gap is taken.
Gaps of different objectives are compared in standard deviations over all answers that were sampled,
so that a scale says nothing.

Two answers with rewards (5, 4) and (3, 1), and standard deviations (2, 3): the gaps are 1.0 and 1.0;
their sum is 2.0, their minimum 1.0.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mosaic.core.types.preferences import PairYield
from mosaic.core.types.runs import DpoRecipe

Floats = npt.NDArray[np.float64]
# A share of prompts with a pair below this is a collapse that people are told of.
LOW_YIELD = 0.1


class Pair(NamedTuple):
    """Numbers of two answers to one prompt, and how far apart they are (see `gap_of`)."""

    chosen: int
    rejected: int
    gap: float


@dataclass(frozen=True)
class Answers:
    """The answers to one prompt that every objective could score.

    `rewards` has a row per answer and a column per objective.
    """

    objectives: tuple[str, ...]
    rewards: Floats


def consistent(rewards: Floats, margin: float = 0.0) -> list[tuple[int, int]]:
    """All (better, worse) answers where every reward of the first is more than `margin` higher.

    >>> consistent(np.array([[5.0, 4.0], [3.0, 1.0], [4.0, 5.0]]))
    [(0, 1), (2, 1)]
    """
    ahead = (rewards[:, None, :] - rewards[None, :, :] > margin).all(axis=2)
    return [(int(one), int(other)) for one, other in np.argwhere(ahead)]


def is_sufficient(rewards: Floats, chosen: int, rejected: int) -> bool:
    """Whether the chosen answer is above the prompt's mean and the rejected one below, in every reward.

    A small step of DPO on such a pair raises the mean of every reward; consistency alone does not
    ensure it. With rewards 1, 2 and 9 the pair of 2 and 1 is consistent, and both are below 4.
    """
    means = rewards.mean(axis=0)
    return bool((rewards[chosen] > means).all() and (rewards[rejected] < means).all())


def spreads(sampled: Iterable[Answers]) -> dict[str, float]:
    """Standard deviation of each objective's rewards over all answers that it applies to."""
    values: dict[str, list[float]] = {}
    for answers in sampled:
        for column, name in enumerate(answers.objectives):
            values.setdefault(name, []).extend(answers.rewards[:, column].tolist())
    return {name: float(np.std(rewards)) for name, rewards in values.items() if rewards}


def gap_of(differences: Floats, spread: Floats, rule: str) -> float:
    """The gap of two answers in standard deviations: the `sum` over objectives, or the `minimum`.

    An objective whose rewards do not vary at all has no gaps.

    >>> gap_of(np.array([2.0, 3.0]), np.array([2.0, 3.0]), "sum")
    2.0
    """
    scaled = differences / np.where(spread > 0, spread, np.inf)
    return float(scaled.sum() if rule == "sum" else scaled.min())


def candidates(answers: Answers, recipe: DpoRecipe) -> list[tuple[int, int]]:
    """The (chosen, rejected) answers that a recipe's rule allows."""
    rewards = answers.rewards
    if recipe.rule == "objective":
        if recipe.objective not in answers.objectives:
            return []
        column = answers.objectives.index(recipe.objective)
        found = consistent(rewards[:, column : column + 1], recipe.margin)
    elif recipe.rule == "weighted":
        found = consistent(rewards.mean(axis=1, keepdims=True), recipe.margin)
    else:
        found = consistent(rewards, recipe.margin)
    if recipe.sufficient:
        found = [pair for pair in found if is_sufficient(rewards, *pair)]
    return found


def choose_pair(
    answers: Answers,
    allowed: Sequence[tuple[int, int]],
    spread: Mapping[str, float],
    rule: DpoRecipe,
) -> Pair | None:
    """The allowed pair with the largest gap, the first of equals; None if none is allowed.

    Pairs that one objective ranks are compared by its gap alone.
    """
    if not allowed:
        return None
    names = answers.objectives
    columns = list(range(len(names)))
    if rule.rule == "objective" and rule.objective in names:
        columns = [names.index(rule.objective)]
    scale = np.array([spread[names[column]] for column in columns])
    best: Pair | None = None
    for chosen, rejected in allowed:
        differences = answers.rewards[chosen, columns] - answers.rewards[rejected, columns]
        gap = gap_of(differences, scale, rule.gap)
        if best is None or gap > best.gap:
            best = Pair(chosen, rejected, gap)
    return best


def yields(sampled: Sequence[Answers], margin: float = 0.0) -> list[PairYield]:
    """For every two objectives that apply to a prompt together: how many prompts gave a pair
    that is consistent under these two."""
    counts: dict[tuple[str, str], list[int]] = {}
    for answers in sampled:
        for one, other in itertools.combinations(sorted(answers.objectives), 2):
            columns = [answers.objectives.index(one), answers.objectives.index(other)]
            count = counts.setdefault((one, other), [0, 0])
            count[0] += 1
            count[1] += bool(consistent(answers.rewards[:, columns], margin))
    found = []
    for names, (prompts, agreeing) in sorted(counts.items()):
        found.append(PairYield(objectives=names, prompts=prompts, consistent=agreeing))
    return found


def opposed(objectives: Iterable[Sequence[str]]) -> list[tuple[str, str]]:
    """Two objectives each that are practised, and never on one prompt.

    >>> opposed([["safety"], ["help", "format"], ["safety", "format"]])
    [('help', 'safety')]
    """
    together: set[tuple[str, str]] = set()
    practised: set[str] = set()
    for names in objectives:
        practised |= set(names)
        together |= set(itertools.combinations(sorted(names), 2))
    return [pair for pair in itertools.combinations(sorted(practised), 2) if pair not in together]


def expected_pairs(n: int, objectives: int) -> float:
    """Consistent pairs to expect of a prompt if rewards were independent and never tied.

    Two answers agree on the first objective in some order, and each further one agrees by a coin:
    C(n, 2) 2^(1 - K). Eight answers under two objectives give 14, sixteen under fifteen 0.0073.

    >>> expected_pairs(8, 2)
    14.0
    """
    return n * (n - 1) / 2 * 2.0 ** (1 - objectives)
