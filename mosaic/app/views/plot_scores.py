"""Pictures of scores: by round, objective against objective, and all objectives together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from mosaic.app.shapes import Report
from mosaic.app.views.plot_theme import (
    INK,
    MUTE,
    ROUND,
    STATIC,
    Model,
    legend_of,
    models_of,
    scale_of,
    scale_text,
    set_scale,
    words,
)
from mosaic.core.types.evaluation import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

# Where a label may stand beside its point, in points of length: near places first.
TURNS = [2 * math.pi * number / 16 + 0.4 for number in range(16)]
PLACES = [
    (radius * math.cos(turn), radius * math.sin(turn))
    for radius in (9, 15, 22, 30, 40, 52, 66)
    for turn in TURNS
]
NEAR = 10  # points of length up to which a label needs no line to its point
POINT = 12  # pixels that a point takes
# The ends of an interval in a pair's panel: (x, y) twice, in points of the scale.
Bar = tuple[tuple[float, float], tuple[float, float]]


def has_targets(report: Report) -> bool:
    return any(target is not None for target in report.targets.values())


def draw_scores(figure: Figure, report: Report) -> None:
    """A panel for each objective: base, static mixture and rounds from left to right."""
    models = models_of(report)
    rows = -(-len(report.objectives) // 2)
    columns = min(2, len(report.objectives))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for number, axes in enumerate(panels.flat):
        if number >= len(report.objectives):
            axes.set_visible(False)
            continue
        _score_panel(axes, report, models, report.objectives[number])
    figure.supylabel(scale_text(report), fontsize=9)
    _legend(figure, models, report)


def _score_panel(axes: Axes, report: Report, models: Sequence[Model], objective: str) -> None:
    set_scale(axes, report)
    line = []
    for x, model in enumerate(models):
        mean = model.mean(objective)
        if mean is None:
            axes.text(x, scale_of(report)[0], "?", ha="center", color=model.colour)
            continue
        if model.marker in ("o", "*"):
            line.append((x, mean))
        _errors(axes, x, mean, y=model.scores[objective], model=model)
    axes.plot(*zip(*line, strict=True) if line else ([], []), color=ROUND, lw=1.1, zorder=1)
    static = report.static.selection.get(objective) if report.static else None
    if static is not None and static.mean is not None:
        axes.axhline(static.mean, color=STATIC, lw=0.9, ls="--", zorder=1)
    target = report.targets[objective]
    if target is not None:
        axes.axhline(target, color=INK, lw=1.2, ls=":", zorder=1)
    axes.set_title(words(objective), fontsize=9, loc="left")
    axes.set_xticks(range(len(models)), [model.name for model in models])


def pair_count(report: Report) -> int:
    return len(report.traded) * (len(report.traded) - 1) // 2


def draw_pairs(figure: Figure, report: Report) -> None:
    """Every pair of objectives that have data, as points with their intervals."""
    models = models_of(report)
    pairs = list(combinations(report.traded, 2))
    rows, columns = -(-len(pairs) // 2), min(2, len(pairs))
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    bars = []
    for axes, (across, up) in zip(panels, pairs, strict=False):
        bars.append(_pair_panel(axes, report, models, across, up))
    for axes in panels[len(pairs) :]:
        axes.set_visible(False)
    _legend(figure, models, report)
    figure.supxlabel(scale_text(report), fontsize=9)
    figure.canvas.draw()  # labels are placed where the points have come to stand
    for axes, taken in zip(panels, bars, strict=False):
        _place_labels(axes, taken)


def _pair_panel(
    axes: Axes, report: Report, models: Sequence[Model], across: str, up: str
) -> list[Bar]:
    """Draw one pair; the ends of the intervals, which no label should cross."""
    bars: list[Bar] = []
    set_scale(axes, report, both=True)
    axes.set_box_aspect(1)
    axes.set_xlabel(words(across))
    axes.set_ylabel(words(up))
    for target, draw in (
        (report.targets[across], axes.axvline),
        (report.targets[up], axes.axhline),
    ):
        if target is not None:
            draw(target, color=INK, lw=1.2, ls=":", zorder=1)
    for model in models:
        x, y = model.mean(across), model.mean(up)
        if x is None or y is None:
            continue
        _errors(axes, x, y, x=model.scores[across], y=model.scores[up], model=model)
        label = axes.annotate(
            model.name,
            (x, y),
            textcoords="offset points",
            xytext=PLACES[0],
            ha="center",
            va="center",
            fontsize=8,
            color=model.colour,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": MUTE, "shrinkA": 0, "shrinkB": 3},
        )
        label.set_in_layout(False)
        for score, ends in ((model.scores[across], _across(y)), (model.scores[up], _upward(x))):
            if score.low is not None and score.high is not None:
                bars.append((ends(score.low), ends(score.high)))
    return bars


def _across(y: float) -> Callable[[float], tuple[float, float]]:
    return lambda x: (x, y)


def _upward(x: float) -> Callable[[float], tuple[float, float]]:
    return lambda y: (x, y)


def _errors(
    axes: Axes,
    at: float,
    mean: float,
    *,
    model: Model,
    y: Score | None = None,
    x: Score | None = None,
) -> None:
    """One point with the interval of each of its scores."""
    axes.errorbar(
        [at],
        [mean],
        yerr=_reach(y),
        xerr=_reach(x),
        marker=model.marker,
        ms=10 if model.marker == "*" else 5,
        mfc=model.colour if model.filled else "none",
        color=model.colour,
        capsize=2,
        elinewidth=0.8,
        zorder=3,
    )


def _reach(score: Score | None) -> list[list[float]] | None:
    """How far an interval reaches below and above its mean."""
    if score is None or score.mean is None or score.low is None or score.high is None:
        return None
    return [[max(0.0, score.mean - score.low)], [max(0.0, score.high - score.mean)]]


def _place_labels(axes: Axes, bars: Sequence[Bar]) -> None:
    """Move each label to the first place where it covers no point, interval or other label."""
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

    labels = [text for text in axes.texts if isinstance(text, Annotation)]
    points = [axes.transData.transform(label.xy) for label in labels]
    taken = [_box(x, y, POINT, POINT) for x, y in points]
    for bar in bars:
        (x0, y0), (x1, y1) = axes.transData.transform(bar)
        taken.append(Bbox.from_extents(x0 - 1, y0 - 1, x1 + 1, y1 + 1))
    inside: Bbox = axes.get_window_extent()
    figure = axes.figure
    assert figure is not None
    pixels = figure.dpi / 72
    for label, (x, y) in zip(labels, points, strict=True):
        assert label.arrow_patch is not None
        label.arrow_patch.set_visible(False)
        size = label.get_window_extent()
        for across, up in PLACES:
            box = _box(x + across * pixels, y + up * pixels, size.width + 2, size.height + 1)
            whole = Bbox.intersection(box, inside)
            fits = whole is not None and whole.width * whole.height > 0.999 * box.width * box.height
            if fits and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
        label.set_position((across, up))
        label.arrow_patch.set_visible(math.hypot(across, up) > NEAR)


def _box(x: float, y: float, width: float, height: float) -> Bbox:
    """A box around a middle, in pixels."""
    from matplotlib.transforms import Bbox

    return Bbox.from_bounds(x - width / 2, y - height / 2, width, height)


def draw_parallel(figure: Figure, report: Report) -> None:
    """A line for each model over all objectives, with its name at the right end."""
    axes = figure.subplots()
    set_scale(axes, report)
    models = models_of(report)
    ends: list[tuple[float, Model]] = []
    for model in models:
        means = [model.mean(objective) for objective in report.objectives]
        known = [float("nan") if mean is None else mean for mean in means]
        axes.plot(
            range(len(means)),
            known,
            color=model.colour,
            ls=model.line,
            lw=2.2 if model.marker == "*" else 1.1,
            marker=model.marker,
            ms=10 if model.marker == "*" else 5,
            mfc=model.colour if model.filled else "none",
        )
        if means[-1] is not None:
            ends.append((means[-1], model))
    for x, objective in enumerate(report.objectives):
        target = report.targets[objective]
        if target is not None:
            axes.plot([x - 0.12, x + 0.12], [target, target], color=INK, ls=":", lw=1.8)
    last = len(report.objectives) - 1
    low, high = scale_of(report)
    heights = spread([end for end, _ in ends], (high - low) / 17)
    for height, (mean, model) in zip(heights, ends, strict=True):
        axes.annotate(
            model.name,
            (last, mean),
            xytext=(last + 0.22, height),
            color=model.colour,
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": MUTE, "shrinkA": 0, "shrinkB": 4},
        )
    axes.set_xlim(-0.25, last + 0.55)
    axes.set_xticks(range(len(report.objectives)), [words(name) for name in report.objectives])
    axes.set_ylabel(scale_text(report))
    _legend(figure, models, report)


def spread(heights: Sequence[float], apart: float) -> list[float]:
    """Heights of labels, in the order given, moved up or down so that they are `apart`.

    >>> [round(height, 2) for height in spread([3.0, 3.0, 1.0], 0.5)]
    [2.75, 3.25, 1.0]
    """
    order = sorted(range(len(heights)), key=lambda number: (heights[number], number))
    groups: list[list[int]] = []
    for number in order:
        groups.append([number])
        while len(groups) > 1 and _touch(heights, groups[-2], groups[-1], apart):
            later = groups.pop()
            groups[-1] += later
    placed = [0.0] * len(heights)
    for group in groups:
        for number, height in zip(group, _stacked(heights, group, apart), strict=True):
            placed[number] = height
    return placed


def _stacked(heights: Sequence[float], group: Sequence[int], apart: float) -> list[float]:
    """The heights of labels that touch, around their common middle."""
    middle = sum(heights[number] for number in group) / len(group)
    first = middle - apart * (len(group) - 1) / 2
    return [first + apart * index for index in range(len(group))]


def _touch(
    heights: Sequence[float], lower: Sequence[int], upper: Sequence[int], apart: float
) -> bool:
    below, above = _stacked(heights, lower, apart), _stacked(heights, upper, apart)
    return above[0] - below[-1] < apart


def _legend(figure: Figure, models: Sequence[Model], report: Report) -> None:
    entries = legend_of(models, target=has_targets(report))
    figure.legend(
        handles=entries,
        loc="outside upper center",
        ncols=min(4, len(entries)),
        frameon=False,
        fontsize=8,
    )
