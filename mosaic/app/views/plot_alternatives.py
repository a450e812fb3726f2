"""The picture of what would have happened: forecasts beside what was measured, by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mosaic.app.shapes import Report
from mosaic.app.views.alternatives import OTHER, Alternative, Foretold
from mosaic.app.views.plot_theme import (
    INK,
    MARGIN,
    MUTE,
    ROUND,
    STATIC,
    plain,
    scale_of,
    scale_text,
    set_scale,
    words,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

APART = 0.22  # of a round, between marks that belong to it


def draw_alternatives(figure: Figure, report: Report, found: Sequence[Alternative]) -> None:
    """A panel for each objective that the surrogate foretells; rounds from left to right."""
    names = [name for name in report.objectives if name in found[-1].ran]
    rows, columns = -(-len(names) // 2), min(2, len(names))
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axes, name in zip(panels, names, strict=False):
        _panel(axes, report, found, name)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    lowest = min(_lows(found))
    low = scale_of(report)[0]
    if lowest < low:  # panels share their scale
        panels[0].set_ylim(bottom=lowest - MARGIN)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    figure.supylabel(scale_text(report, min(low, lowest)), fontsize=9)
    figure.supxlabel("round", fontsize=9)


def _lows(found: Sequence[Alternative]) -> list[float]:
    """The lower ends of all intervals that are foretold."""
    return [told.low for one in found for plan in (one.ran, one.other) for told in plan.values()]


def _panel(axes: Axes, report: Report, found: Sequence[Alternative], objective: str) -> None:
    set_scale(axes, report)
    plain(axes)
    measured = [(one.round, one.measured[objective]) for one in found]
    known = [(x, score) for x, score in measured if score.mean is not None]
    below = [score.mean - score.low for _, score in known]  # type: ignore[operator]
    above = [score.high - score.mean for _, score in known]  # type: ignore[operator]
    axes.errorbar(
        [x for x, _ in known],
        [score.mean for _, score in known],
        yerr=[below, above],
        fmt="o",
        ms=5,
        color=ROUND,
        capsize=2,
        elinewidth=0.8,
        label="measured, 95 % interval",
    )
    own = {one.round: one.ran[objective] for one in found if objective in one.ran}
    other = {one.round: one.other[objective] for one in found if objective in one.other}
    _forecasts(axes, own, -APART, "s", INK, "foretold of the plan that ran")
    _forecasts(axes, other, APART, "^", MUTE, f"foretold of the plan of {OTHER}, which did not run")
    static = report.static.selection.get(objective) if report.static else None
    if static is not None and static.mean is not None:
        axes.axhline(static.mean, color=STATIC, lw=0.9, ls="--", zorder=1, label="static mixture")
    axes.set_title(words(objective), fontsize=9, loc="left")
    numbers = [one.round for one in found]
    axes.set_xlim(min(numbers) - 0.6, max(numbers) + 0.6)
    axes.set_xticks(numbers)


def _forecasts(
    axes: Axes,
    found: Mapping[int, Foretold],
    beside: float,
    marker: str,
    colour: str,
    label: str,
) -> None:
    """Hollow marks with their intervals, beside the round that they are of."""
    told = found.values()
    axes.errorbar(
        [number + beside for number in found],
        [one.mean for one in told],
        yerr=[[one.mean - one.low for one in told], [one.high - one.mean for one in told]],
        fmt=marker,
        ms=5,
        mfc="none",
        color=colour,
        capsize=2,
        elinewidth=0.8,
        ls="none",
        label=label,
    )
