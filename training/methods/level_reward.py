"""From class probabilities to one reward: MOSLIM's mapping (arXiv 2505.20336). Reads one file, no more.

    r(x, y) = 1/k sum_i mask_i (p_i(c_i) - mean_i(c_i)) / std_i(c_i)

k objectives; mask_i is 1 if the prompt x asks for a level c_i of objective i; p_i(c) is the
probability that the reward model gives level c. Mean and standard deviation are those of p_i(c)
over a fixed set of reference answers, so that objectives and levels weigh alike whatever their
spread: over that set, the reward of one requested level has mean 0 and variance 1.

With one objective, p = 0.9 where reference answers have 0.3 +- 0.2 is rewarded with 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from pydantic import Field, ValidationError

from mosaic.core.errors import UsageError
from mosaic.core.types.base import FrozenModel

Probabilities = Mapping[str, Mapping[int, float]]
"""objective -> level -> probability"""
# Probabilities that differ by less do so by rounding.
LEAST_DEVIATION = 1e-6
SCALE = "reward_scale.json"
"""Beside a reward model's card: the `RewardScale` over the held-out answers."""


class LevelStatistics(FrozenModel):
    """The probability of one level over the reference answers."""

    mean: float = Field(ge=0, le=1)
    deviation: float = Field(ge=0)


class RewardScale(FrozenModel):
    """What probabilities are compared with: objective -> level -> statistics.

    `answers` is how many reference answers each objective's are over.
    """

    answers: dict[str, int]
    levels: dict[str, dict[int, LevelStatistics]]

    @property
    def objectives(self) -> list[str]:
        return list(self.levels)

    def flat(self) -> list[tuple[str, int]]:
        """Levels whose probability is the same for all reference answers: they earn no reward."""
        found = []
        for objective, levels in self.levels.items():
            for level, known in levels.items():
                if known.deviation < LEAST_DEVIATION:
                    found.append((objective, level))
        return found


def measure(references: Sequence[Probabilities]) -> RewardScale:
    """The scale of a fixed set of reference answers.

    An answer counts for the objectives that it has probabilities of. The deviation is that of the
    set itself: over n, not over n - 1. ValueError for no answer.

    >>> measure([{"safety": {1: 0.1, 5: 0.9}}, {"safety": {1: 0.5, 5: 0.5}}]).levels["safety"][5]
    LevelStatistics(mean=0.7, deviation=0.2)
    """
    if not references:
        raise ValueError("no reference answer to measure the reward's scale on")
    by_head: dict[str, list[Mapping[int, float]]] = {}
    for answer in references:
        for objective, probabilities in answer.items():
            by_head.setdefault(objective, []).append(probabilities)
    levels: dict[str, dict[int, LevelStatistics]] = {}
    for objective, heads in by_head.items():
        levels[objective] = {}
        for level in heads[0]:
            values = [probabilities[level] for probabilities in heads]
            mean = fmean(values)
            variance = fmean((value - mean) ** 2 for value in values)
            levels[objective][level] = LevelStatistics(
                mean=round(mean, 12), deviation=round(math.sqrt(variance), 12)
            )
    answers = {objective: len(heads) for objective, heads in by_head.items()}
    return RewardScale(answers=answers, levels=levels)


def read_scale(folder: Path) -> RewardScale:
    """The scale in a reward model's folder. Raises UsageError if it cannot be read."""
    try:
        return RewardScale.model_validate_json((folder / SCALE).read_text())
    except (OSError, ValidationError) as error:
        first = str(error).strip().splitlines()[0]
        raise UsageError(f"{folder / SCALE}: not the scale of a reward: {first}") from None


def check_wish(wish: Mapping[str, int], scale: RewardScale) -> None:
    """Raise UsageError for a level that the reward model cannot tell, or that is told of no answer."""
    for objective, level in wish.items():
        known = scale.levels.get(objective)
        if known is None:
            raise UsageError(
                f"the reward model has no head for {objective!r}; it has "
                f"{', '.join(scale.objectives)}"
            )
        if level not in known:
            raise UsageError(
                f"{objective}: level {level} is absent from what the reward model learned from; "
                f"it tells {sorted(known)}"
            )


def reward(answer: Probabilities, wish: Mapping[str, int], scale: RewardScale) -> float:
    """The reward of an answer to a prompt that asks for these levels, in standard deviations.

    Objectives that the prompt does not ask for have no effect; a prompt that asks for nothing
    rewards nothing. A level whose probability is the same for all reference answers has no scale:
    its term is 0, and `RewardScale.flat` names it. Raises UsageError as `check_wish` does.

    >>> scale = measure([{"safety": {1: 0.1, 5: 0.9}}, {"safety": {1: 0.5, 5: 0.5}}])
    >>> round(reward({"safety": {1: 0.0, 5: 1.0}}, {"safety": 5}, scale), 3)  # (1 - 0.7) / 0.2
    1.5
    """
    check_wish(wish, scale)
    total = 0.0
    for objective, level in wish.items():
        known = scale.levels[objective][level]
        if known.deviation >= LEAST_DEVIATION:
            total += (answer[objective][level] - known.mean) / known.deviation
    return total / len(scale.levels)
