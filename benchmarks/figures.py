"""One row of a benchmark: what was measured, its figure, and its goal if it has one."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import TypedDict

from scipy.stats import t as student


class Row(TypedDict):
    """A figure. `figure` is None if it could not be measured, `met` is None without a goal."""

    what: str
    figure: float | None
    unit: str
    goal: str | None
    met: bool | None


Rows = list[Row]


class CannotRun(Exception):
    """Raised by a benchmark that this machine cannot run.

    The message says what is missing and how to get it.
    """


def figure(
    what: str,
    value: float,
    unit: str,
    at_most: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
) -> Row:
    """A measured figure with its goal: one of `at_most`, `at_least` and `below`, or none.

    >>> figure("steps repeated", 2, "steps", at_most=0)
    {'what': 'steps repeated', 'figure': 2, 'unit': 'steps', 'goal': 'at most 0', 'met': False}
    """
    goal, met = None, None
    if at_most is not None:
        goal, met = f"at most {at_most:g}", value <= at_most
    elif at_least is not None:
        goal, met = f"at least {at_least:g}", value >= at_least
    elif below is not None:
        goal, met = f"below {below:g}", value < below
    return {"what": what, "figure": round(value, 4), "unit": unit, "goal": goal, "met": met}


def not_measured(what: str, met: bool | None = None) -> Row:
    """A row without a figure: `what` says why. `met` is False if that counts as a missed goal."""
    return {"what": what, "figure": None, "unit": "", "goal": None, "met": met}


def compared(what: str, values: Sequence[float], unit: str = "points") -> Row:
    """A mean over seeds, with its 95 % interval by Student's t in the text if there are several."""
    if len(values) > 1:
        half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
        mean = fmean(values)
        what += f" ({mean - half:+.3f} to {mean + half:+.3f})"
    return figure(what, fmean(values), unit)
