"""Which rounds are worth keeping, and which one is the result. Arithmetic on selection scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import moocore
import numpy as np

from mosaic.core.types.evaluation import MIN_CLUSTERS
from mosaic.core.types.plans import BASE_FLOOR, ObjectiveSpec
from mosaic.core.types.runs import Round, Trial, each_trial
from mosaic.core.types.verdicts import TrialVerdict

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
    better = False
    for x, y, tolerated in zip(a, b, tolerance, strict=True):
        if x < y:
            return False
        if x > y + tolerated:
            better = True
    return better


def dominated(
    points: Sequence[Sequence[float]],
    others: Sequence[Sequence[float]],
    tolerance: Sequence[float],
) -> list[bool]:
    """For each point whether one of the others dominates it, as `dominates` has it for two.

    >>> dominated([[4.0, 3.0], [4.2, 3.0]], [[4.2, 3.0]], [0.1, 0.1])
    [True, False]
    """
    if not len(points) or not len(others):
        return [False] * len(points)
    mine, theirs = np.array(points)[:, None], np.array(others)[None]
    nowhere_worse = (theirs >= mine).all(axis=2)
    somewhere_better = (theirs > mine + np.array(tolerance)).any(axis=2)
    found: list[bool] = (nowhere_worse & somewhere_better).any(axis=1).tolist()
    return found


def archived(
    rounds: Sequence[Round], objectives: Sequence[str], noise: Mapping[str, float]
) -> list[Round]:
    """The accepted trials that no other accepted trial dominates, each as a round of its own."""
    tolerance = [noise.get(objective, MIN_NOISE) for objective in objectives]
    accepted, points = [], []
    for one in each_trial(rounds):
        point = one.point(list(objectives))
        if one.accepted and point is not None:
            accepted.append(one)
            points.append(point)
    # No point dominates itself.
    beaten = dominated(points, points, tolerance)
    return [one for one, is_beaten in zip(accepted, beaten, strict=True) if not is_beaten]


def archive(
    rounds: Sequence[Round], objectives: Sequence[str], noise: Mapping[str, float]
) -> list[int]:
    """Numbers of the rounds with such a trial, in order."""
    return list(dict.fromkeys(one.round for one in archived(rounds, objectives, noise)))


def hypervolume(points: Sequence[Sequence[float]]) -> float:
    """Share of the box from 1 to 5 in every objective that the points dominate, 0-1.

    Computed by moocore, maximised. A single point at 3 in two objectives dominates a quarter:

    >>> hypervolume([[3, 3]]), hypervolume([[3, 3], [2, 5]])
    (0.25, 0.375)
    """
    inside = []
    for point in points:
        if all(math.isfinite(x) and x > REFERENCE for x in point):
            inside.append(point)
    if not inside:
        return 0.0
    corners = np.array(inside, dtype=float)
    dimensions = corners.shape[1]
    volume = moocore.hypervolume(corners, ref=[REFERENCE] * dimensions, maximise=True)
    return float(volume) / SPAN**dimensions


def floors_broken(
    trial: Trial, objectives: Sequence[ObjectiveSpec], noise: Mapping[str, float]
) -> list[str]:
    """Objectives with a floor that does not hold.

    A floor holds if the selection interval lies above it. The floor `base` holds if the interval of
    the difference to the base, over equal prompts, lies above minus the noise of a training, in
    points. No floor holds on an interval of too few clusters (`Score.few`), nor where nothing was
    scored.
    """
    broken = []
    for objective in objectives:
        if objective.floor is not None and not _floor_holds(objective, trial, noise):
            broken.append(objective.name)
    return broken


def _floor_holds(objective: ObjectiveSpec, trial: Trial, noise: Mapping[str, float]) -> bool:
    score = trial.scores[objective.name]["selection"]
    if score.low is None or objective.floor is None or score.few:
        return False
    if objective.floor != BASE_FLOOR:
        return score.low >= objective.floor
    if trial.plan is None:  # the base itself
        return True
    change = trial.against_base.get(objective.name)
    return change is not None and not change.few and change.low >= -noise[objective.name]


def verdict(
    round_: Round, objectives: Sequence[ObjectiveSpec], noise: Mapping[str, float]
) -> tuple[bool, str]:
    """Whether a round may enter the archive, and why.

    All objectives must be scored, and floors must hold on the lower bound of the interval. An
    objective that fell below the base is named in any case. `noise` is by objective, in points.
    """
    trial = round_.trial
    unscored = [o.name for o in objectives if trial.scores[o.name]["selection"].mean is None]
    if unscored:
        return False, f"not scored: {', '.join(unscored)}"
    broken = floors_broken(trial, objectives, noise)
    few, low = [], []
    for objective in objectives:
        if objective.name not in broken:
            continue
        missing = _too_few(objective.name, trial)
        if missing:
            few.append(missing)
        else:
            low.append(_below(objective, trial, noise))
    fallen = []
    for name, change in trial.against_base.items():
        if change.fell(noise[name]):
            fallen.append(f"{name} fell by {-change.mean:.2f} from the base")
    reasons = []
    if low:
        reasons.append(f"below the floor on the lower bound: {', '.join(low)}")
    if few:
        reasons.append(f"too few independent prompts scored for a floor: {', '.join(few)}")
    if reasons:
        return False, "; ".join([*reasons, *fallen])
    floors = any(objective.floor is not None for objective in objectives)
    held = "all floors held" if floors else "all objectives scored"
    return True, "; ".join([held, *fallen])


def _too_few(name: str, trial: Trial) -> str:
    """How many clusters were scored, by the trial and with the base, if a floor needs more."""
    score, change = trial.scores[name]["selection"], trial.against_base.get(name)
    if score.few:
        return f"{name} {score.clusters} of {MIN_CLUSTERS}"
    if change is not None and change.few:
        return f"{name} {change.clusters} of {MIN_CLUSTERS} with the base"
    return ""


def _below(objective: ObjectiveSpec, trial: Trial, noise: Mapping[str, float]) -> str:
    """By what a floor was missed."""
    name = objective.name
    if objective.floor != BASE_FLOOR:
        return f"{name} {trial.scores[name]['selection'].low:.2f} < {objective.floor}"
    change = trial.against_base.get(name)
    if change is None:
        return f"{name} not compared with the base"
    return f"{name} {change.low:+.2f} < {-noise[name]:.2f} against the base"


def merit(
    point: Sequence[float], objectives: Sequence[ObjectiveSpec], noise: Mapping[str, float]
) -> tuple[float, float]:
    """How good a single point is; the greater tuple is better.

    First counts the shortfall below targets that is to be expected, negated, to a thousandth of a
    point; then the volume that the point dominates alone. What was measured is taken to be off by
    the calibration's noise, so that a score just above its target counts for less than one well
    above it.
    """
    shortfalls = []
    for objective, score in zip(objectives, point, strict=True):
        if objective.target is not None:
            spread = max(MIN_NOISE, noise.get(objective.name, MIN_NOISE))
            shortfalls.append(expected_shortfall(objective.target - score, spread))
    return -round(sum(shortfalls), 3), hypervolume([point])


def expected_shortfall(below: float, noise: float) -> float:
    """Mean of max(0, below + noise z) for a standard normal z.

    With z = below / noise it is below Phi(z) + noise phi(z). A score 0.2 above its target with a
    noise of 0.2 falls short by 0.017 on average, one at its target by 0.4 noises:

    >>> round(expected_shortfall(-0.2, 0.2), 3), round(expected_shortfall(0.0, 0.2), 3)
    (0.017, 0.08)
    """
    z = below / noise
    return below * 0.5 * math.erfc(-z / math.sqrt(2)) + noise * math.exp(-z * z / 2) / math.sqrt(
        2 * math.pi
    )


def one_round(
    ones: Sequence[Round], objectives: Sequence[ObjectiveSpec], noise: Mapping[str, float]
) -> Round:
    """A round of several trials, each given as a round of its own; which of them counts.

    The one that counts is the accepted trial of greatest merit on selection, so that the round
    which is chosen stands for its best trial. If none is accepted it is the greatest merit of those
    that are scored, then any that was measured; of equals the earliest. `objectives` are those that
    have data.
    """
    if len(ones) == 1:
        return ones[0]
    names = [objective.name for objective in objectives]

    def rank(place: int) -> tuple[bool, bool, tuple[float, float], int]:
        one = ones[place]
        point = one.point(names)
        worth = (-math.inf, 0.0) if point is None else merit(point, objectives, noise)
        return one.failure is None, one.accepted, worth, -place

    best = ones[max(range(len(ones)), key=rank)]
    siblings = {}
    for one in ones:
        if one is not best:
            verdict = {name: getattr(one, name) for name in TrialVerdict.model_fields}
            siblings[one.trial.id] = TrialVerdict(**verdict)
    trials = [one.trial for one in ones]
    if best.failure is not None:  # then `trial` is the first
        assert best is ones[0]
    return best.model_copy(update={"trials": trials, "siblings": siblings})


def choose(
    rounds: Sequence[Round],
    kept: Sequence[int],
    objectives: Sequence[ObjectiveSpec],
    noise: Mapping[str, float],
) -> int | None:
    """The archived round of greatest merit, the earliest of equals. None for an empty archive.

    `kept` are the archive's round numbers. A round whose counting trial another one dominates is
    there for a sibling, and is not chosen.
    """
    names = [objective.name for objective in objectives]
    ranked = []
    for round_ in rounds:
        point = round_.point(names)
        if round_.round in kept and point is not None and not round_.dominated:
            ranked.append((merit(point, objectives, noise), -round_.round))
    return -max(ranked)[1] if ranked else None
