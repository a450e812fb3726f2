"""What trainings do by luck: how far a mean moves from one training of a mixture to the next.

A calibration of three repeats says little of it (its estimate is between 0.2 and 1.7 times the
truth), so that what is measured is drawn toward what is usual.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev, variance

from agent.pareto import MIN_NOISE
from eval.statistics import NoiseEstimate, shrink_noise
from mosaic.core.types.evaluation import Score
from mosaic.core.types.runs import Calibration, Trial

# What is believed of a selection mean's standard deviation before anything is measured, in points
# (1-5), and how many repeats of the calibration that belief is worth. It covers a training and a
# decision's unseen prompts; the calibration tells of the training alone.
MEAN_NOISE, MEAN_NOISE_REPEATS = 0.5, 8
# The same for the mean of one slice on equal prompts, by the training alone: of the values tried,
# what finds most changes while at most a tenth of those found are a training's luck, for a luck of
# up to 0.3 points (`python -m benchmarks discoveries`).
SLICE_NOISE, SLICE_NOISE_REPEATS = 0.1, 3


def noise_of(trials: Sequence[Trial]) -> dict[str, float]:
    """Noise of one selection mean, by objective, as the repeats of one mixture show it.

    It is their standard deviation, at least 0.01: means of 3.9, 4.0 and 4.1 give 0.1. A single
    repeat leaves the interval as the only evidence: its width over 2 x 1.96 is the
    standard deviation of a normal distribution with that interval.
    """
    noise = {}
    for objective in trials[0].scores:
        scores = [t.scores[objective]["selection"] for t in trials]
        means = [s.mean for s in scores if s.mean is not None]
        spread = stdev(means) if len(means) > 1 else _interval_spread(scores)
        noise[objective] = max(MIN_NOISE, spread)
    return noise


def _interval_spread(scores: Sequence[Score]) -> float:
    """The widest interval as a standard deviation; 0 if nothing was scored.

    An interval from 3.0 to 3.98 gives 0.25.
    """
    spreads = [0.0]
    for score in scores:
        if score.high is not None and score.low is not None:
            spreads.append((score.high - score.low) / 3.92)
    return max(spreads)


def mean_noise(calibration: Calibration | None, objective: str) -> NoiseEstimate:
    """The noise of an objective's selection mean, drawn toward what is usual."""
    measured, repeats = 0.0, 0
    if calibration is not None:
        measured = calibration.noise.get(objective, 0.0)
        # The first training does not repeat another.
        repeats = len(calibration.trials) - 1
    return shrink_noise(measured, repeats, MEAN_NOISE, MEAN_NOISE_REPEATS)


def believed_noise(calibration: Calibration | None, objectives: Iterable[str]) -> dict[str, float]:
    """Objective -> the standard deviation that is believed of its selection mean, in points."""
    return {name: mean_noise(calibration, name).deviation for name in objectives}


def slice_noise(trials: Sequence[Trial], objectives: Iterable[str]) -> dict[str, NoiseEstimate]:
    """Objective -> how far a slice's mean moves from one training of the same mixture to the next.

    The variances of its slices' means over the repeats are averaged and drawn toward what is usual.
    Slices of one training may move together, so that their number makes nothing surer. Without
    repeats only what is usual is known.
    """
    found = {}
    for objective in objectives:
        variances = []
        for slice_ in trials[0].profile.of(objective) if trials else ():
            means = _slice_means(trials, objective, slice_.slice)
            if len(means) > 1:
                variances.append(variance(means))
        measured = math.sqrt(fmean(variances)) if variances else 0.0
        repeats = len(trials) - 1 if variances else 0
        found[objective] = shrink_noise(measured, repeats, SLICE_NOISE, SLICE_NOISE_REPEATS)
    return found


def _slice_means(trials: Sequence[Trial], objective: str, slice_: str) -> list[float]:
    """The means of a slice in the trials that scored it."""
    means = []
    for trial in trials:
        found = trial.profile.find(objective, slice_)
        if found is not None and found.score.mean is not None:
            means.append(found.score.mean)
    return means
