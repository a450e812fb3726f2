"""The picture of what would have happened: forecasts beside what was measured, by round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mosaic.app.shapes import Report
from mosaic.app.views.alternatives import OTHER, Alternative
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

Mark = tuple[float, float, float, float]
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
    measured: list[Mark] = []
    ran: list[Mark] = []
    other: list[Mark] = []
    for one in found:
        score = one.measured[objective]
        if score.mean is not None and score.low is not None and score.high is not None:
            measured.append((one.round, score.mean, score.low, score.high))
        for marks, told, beside in ((ran, one.ran, -APART), (other, one.other, APART)):
            if objective in told:
                known = told[objective]
                marks.append((one.round + beside, known.mean, known.low, known.high))
    _marks(axes, measured, "o", ROUND, "measured, 95 % interval", hollow=False)
    _marks(axes, ran, "s", INK, "foretold of the plan that ran")
    _marks(axes, other, "^", MUTE, f"foretold of the plan of {OTHER}, which did not run")
    static = report.static.selection.get(objective) if report.static else None
    if static is not None and static.mean is not None:
        axes.axhline(static.mean, color=STATIC, lw=0.9, ls="--", zorder=1, label="static mixture")
    axes.set_title(words(objective), fontsize=9, loc="left")
    numbers = [one.round for one in found]
    axes.set_xlim(min(numbers) - 0.6, max(numbers) + 0.6)
    axes.set_xticks(numbers)


def _marks(
    axes: Axes,
    marks: Sequence[Mark],
    marker: str,
    colour: str,
    label: str,
    *,
    hollow: bool = True,
) -> None:
    """Means with their intervals: (place, mean, lower end, upper end) each."""
    below = [mean - low for _, mean, low, _ in marks]
    above = [high - mean for _, mean, _, high in marks]
    axes.errorbar(
        [place for place, *_ in marks],
        [mean for _, mean, *_ in marks],
        yerr=[below, above],
        fmt=marker,
        ms=5,
        mfc="none" if hollow else colour,
        color=colour,
        capsize=2,
        elinewidth=0.8,
        ls="none",
        label=label,
    )
