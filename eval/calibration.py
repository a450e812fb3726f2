"""How right a classifier is, class by class, and how well its confidence is earned. Pure numpy.

T = fit_temperature(logits, classes)        softmax(logits / T) fits the classes best
balanced_accuracy(classes, predicted)       the mean of the classes' recalls
calibration_error(confidence, right)        how far confidence is from accuracy
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
BINS = 10
# Held-out answers that are all told right would ask for a temperature of 0.
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.1, 10.0


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities of the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def fit_temperature(logits: Floats, classes: Numbers) -> float:
    """The temperature from 0.1 to 10 of the least mean log-loss on these answers.

    `logits` has shape (answers, classes), `classes` the true class of each answer from 0. Guo et
    al., "On Calibration of Modern Neural Networks", arXiv 1706.04599.

    A model that says 9 to 1 and is right three times of four should say 3 to 1: log 9 / log 3 = 2.

    >>> logits = np.log([[9.0, 1.0]] * 4)
    >>> round(fit_temperature(logits, np.array([0, 0, 0, 1])), 3)
    2.0
    """
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(classes))

    def log_loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / np.exp(log_temperature))
        return -float(scaled[rows, classes].mean())

    bounds = (np.log(LEAST_TEMPERATURE), np.log(MOST_TEMPERATURE))
    found = minimize_scalar(log_loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def balanced_accuracy(
    classes: Sequence[int], predicted: Sequence[int], at_least: int = 1
) -> float | None:
    """The mean recall of the classes that have `at_least` so many answers; None if none has.

    Whoever always says the commonest of three classes has 1/3, however common it is.

    >>> balanced_accuracy([5, 5, 5, 1], [5, 5, 4, 1])  # (2/3 + 1) / 2
    0.8333333333333333
    >>> balanced_accuracy([5, 5, 5, 1], [5, 5, 4, 1], at_least=3)
    0.6666666666666666
    """
    true, said = np.asarray(classes), np.asarray(predicted)
    recalls = []
    for level, count in zip(*np.unique(true, return_counts=True), strict=True):
        if count >= at_least:
            recalls.append(float((said[true == level] == level).mean()))
    return sum(recalls) / len(recalls) if recalls else None


def calibration_error(confidence: Sequence[float], right: Sequence[bool]) -> float:
    """The expected calibration error, 0-1, over ten bins of equal width.

    In each bin it is the distance of the mean confidence from the share that is right; the mean
    over bins is weighted by their answers. ValueError for no answer.

    Four answers at 0.9 of which three are right: |0.9 - 0.75|.

    >>> round(calibration_error([0.9] * 4, [True, True, True, False]), 3)
    0.15
    """
    said, true = np.asarray(confidence, dtype=float), np.asarray(right, dtype=float)
    if not len(said):
        raise ValueError("no answer to compare confidence with")
    bins = np.minimum((said * BINS).astype(int), BINS - 1)
    total = 0.0
    for number in range(BINS):
        inside = bins == number
        if inside.any():
            total += inside.sum() * abs(float(said[inside].mean() - true[inside].mean()))
    return float(total / len(said))
