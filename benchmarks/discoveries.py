"""How many of the changes that a profile believes are a training's luck, on simulated rounds.

A round has three objectives of five slices with 32 prompts each. Three calibration trainings, the
last round's and this one each move the mean of a slice by luck, alone or with the other slices of
its objective. Some slices also move by a point, up or down; every other change that is believed is
a false discovery. `slice_noise`, `paired_change` and `discoveries` are the product's. The baseline
is the same test without the noise of trainings.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agent.noise import slice_noise
from benchmarks.figures import Rows, figure
from eval.statistics import DISCOVERY, Floats, NoiseEstimate, paired_change
from eval.statistics import discoveries as believed
from mosaic.core.types.evaluation import FailureProfile, Score, Scored, SliceProfile
from mosaic.core.types.runs import Trial, TrialSpec

ROUNDS, QUICK_ROUNDS = 400, 25
OBJECTIVES, SLICES, PROMPTS, REPEATS = 3, 5, 32, 3
NAMES = [f"objective {i}" for i in range(OBJECTIVES)]
# Standard deviations in points: of prompts, and of one answer to the next.
BETWEEN_PROMPTS, OF_AN_ANSWER = 1.0, 0.8
LUCKS = (0.0, 0.1, 0.2, 0.3)
CHANGED = (0, 3, 8)
CHANGE = 1.0
SEED = 20260302
# A rate that is simulated is off by this many of its standard errors at most.
STANDARD_ERRORS = 3


@dataclass(frozen=True)
class World:
    """How far trainings move a slice by luck, in points, and how many of the slices change.

    `together` moves all slices of an objective alike.
    """

    luck: float
    together: bool
    changed: int

    @property
    def name(self) -> str:
        how = "slices together" if self.together else "each slice alone"
        return f"luck {self.luck:g}, {how}, {self.changed} of {OBJECTIVES * SLICES} changed"


@dataclass
class Found:
    """Sums over rounds: shares of false discoveries (0-1), of changes that were found, rounds."""

    false: float = 0.0
    right: float = 0.0
    rounds: int = 0

    def add(self, believes: Sequence[bool], moved: Sequence[bool]) -> None:
        """Count one round."""
        true = sum(b and m for b, m in zip(believes, moved, strict=True))
        self.false += (sum(believes) - true) / max(1, sum(believes))
        self.right += true / max(1, sum(moved))
        self.rounds += 1


def _scores(prompts: Floats, world: World, generator: np.random.Generator, moved: Floats) -> Floats:
    """Scores of one model, shape (objectives, slices, prompts); the base's `prompts` likewise."""
    shape = (OBJECTIVES, 1 if world.together else SLICES)
    luck = world.luck * generator.standard_normal(shape)
    answers = OF_AN_ANSWER * generator.standard_normal(prompts.shape)
    return np.clip(np.round(prompts + (luck + moved)[..., np.newaxis] + answers), 1, 5)


def _trial(scores: Floats, number: int) -> Trial:
    """A trial that holds nothing but its slices' means."""
    slices = []
    for objective, of_objective in zip(NAMES, scores, strict=True):
        for i, values in enumerate(of_objective):
            mean = float(values.mean())
            score = Score(mean=mean, low=mean, high=mean, n_scored=PROMPTS)
            one = SliceProfile(
                objective=objective,
                slice=str(i),
                score=score,
                failure_rate=None,
                reliability="high",
            )
            slices.append(one)
    spec = TrialSpec(base="base", seed=number)
    return Trial(id=spec.id, spec=spec, scores={}, profile=FailureProfile(round=0, slices=slices))


def _items(values: Floats) -> list[Scored]:
    return [Scored(id=str(i), status="ok", score=value) for i, value in enumerate(values)]


def _p_values(before: Floats, after: Floats, noise: dict[str, NoiseEstimate]) -> list[float | None]:
    """The p-value of each slice, objective by objective."""
    found: list[float | None] = []
    for i, j in itertools.product(range(OBJECTIVES), range(SLICES)):
        luck = noise.get(NAMES[i])
        change = paired_change(_items(before[i, j]), _items(after[i, j]), SEED, luck)
        found.append(change[1] if change else None)
    return found


def simulated(world: World, rounds: int) -> tuple[Found, Found]:
    """What is found with the noise of trainings, and without."""
    generator = np.random.default_rng(SEED)
    informed, naive = Found(), Found()
    nothing = np.zeros((OBJECTIVES, SLICES))
    for _ in range(rounds):
        prompts = 3 + BETWEEN_PROMPTS * generator.standard_normal((OBJECTIVES, SLICES, PROMPTS))
        repeats = []
        for number in range(REPEATS):
            repeats.append(_trial(_scores(prompts, world, generator, nothing), number))
        moved = nothing.copy()
        which = generator.permutation(moved.size)[: world.changed]
        moved.flat[which] = CHANGE * generator.choice([-1, 1], world.changed)
        before = _scores(prompts, world, generator, nothing)
        after = _scores(prompts, world, generator, moved)
        noise = {}
        for name, estimate in slice_noise(repeats, NAMES).items():
            noise[name] = estimate.of_difference(2)
        changed = [bool(change) for change in moved.flat]
        informed.add(believed(_p_values(before, after, noise)), changed)
        naive.add(believed(_p_values(before, after, {})), changed)
    return informed, naive


def discoveries(quick: bool) -> Rows:
    """The worst world of each, and what is found without luck."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    worlds, with_noise, without = [], [], []
    for luck, together, changed in itertools.product(LUCKS, (False, True), CHANGED):
        if together and not luck:
            continue
        world = World(luck, together, changed)
        informed, naive = simulated(world, rounds)
        worlds.append(world)
        with_noise.append(informed)
        without.append(naive)
        print(f"{world.name}: {_line(naive)} | {_line(informed)}", file=sys.stderr)
    error = STANDARD_ERRORS * (DISCOVERY * (1 - DISCOVERY) / rounds) ** 0.5
    rows = []
    for title, found in (("without training noise", without), ("product", with_noise)):
        worst = max(range(len(worlds)), key=lambda i: found[i].false)
        what = f"{title}: false discoveries, most of {len(worlds)} worlds ({worlds[worst].name})"
        limit = None if found is without else round(100 * (DISCOVERY + error), 1)
        rows.append(figure(what, 100 * found[worst].false / rounds, "%", at_most=limit))
        for luck in LUCKS:
            right = _power(worlds, found, luck)
            what = f"{title}: changes of {CHANGE:g} point that are found, luck {luck:g}"
            rows.append(figure(what, 100 * right, "%"))
    return rows


def _power(worlds: Sequence[World], found: Sequence[Found], luck: float) -> float:
    """Share of changes found, mean over the worlds of a luck in which something changed."""
    shares = []
    for world, one in zip(worlds, found, strict=True):
        if world.changed and world.luck == luck:
            shares.append(one.right / one.rounds)
    return float(np.mean(shares))


def _line(found: Found) -> str:
    false, right = 100 * found.false / found.rounds, 100 * found.right / found.rounds
    return f"{false:4.1f} % false, {right:3.0f} % found"
