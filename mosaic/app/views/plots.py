"""The pictures of a run, by matplotlib, as SVG text."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mosaic.app.shapes import Report
from mosaic.core.types.evaluation import SliceProfile
from mosaic.core.types.influence import Influence
from mosaic.core.types.runs import Round

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#2f6db3", "#c2581e", "#3b8a54", "#8356a8", "#a58a17")
DARK_INK = "#c9d1d9"
LIGHT_INK = "#1d232b"
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.hashsalt": "mosaic",
}
UNKNOWN = float("nan")
UNCLEAR = "#d9dde3"


def svg(kind: str, report: Report, dark: bool = False) -> str:
    """One of `KINDS` drawn from a report, for a light or a dark background."""
    return _svg(lambda axes: KINDS[kind](axes, report), dark=dark)


def heat(rounds: Sequence[Round]) -> str:
    """Steering means of every slice in every round; empty if nothing was measured."""
    keys: set[tuple[str, str]] = set()
    for round_ in rounds:
        keys.update((s.objective, s.slice) for s in round_.profile.slices)
    if not keys:
        return ""
    return _svg(lambda axes: _heat(axes, rounds, sorted(keys)), height=1.2 + 0.27 * len(keys))


def _svg(draw: Callable[[Axes], None], height: float = 3.4, dark: bool = False) -> str:
    """A figure as text: the same drawing gives the same bytes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    colours = dict.fromkeys(INKED, DARK_INK if dark else LIGHT_INK)
    with rc_context({**STYLE, **colours}):
        figure = Figure(figsize=(6.4, height), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _name(number: int) -> str:
    return "base" if number == 0 else str(number)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _scores(axes: Axes, report: Report) -> None:
    """Selection means with their intervals, a line per objective; targets are dotted."""
    for index, objective in enumerate(report.objectives):
        x, y, below, above = [], [], [], []
        for round_ in report.rounds:
            score = round_.scores[objective]["selection"]
            if score.mean is None or score.low is None or score.high is None:
                continue
            x.append(round_.round + (index - 1) * 0.06)  # side by side, so that bars stay apart
            y.append(score.mean)
            below.append(score.mean - score.low)
            above.append(score.high - score.mean)
        axes.errorbar(
            x,
            y,
            yerr=[below, above],
            marker="o",
            ms=4,
            capsize=2.5,
            color=_colour(index),
            label=_words(objective),
        )
        target = report.targets[objective]
        if target is not None:
            axes.axhline(target, color=_colour(index), lw=0.8, ls=":")
    numbers = [round_.round for round_ in report.rounds]
    axes.set_xticks(numbers, [_name(number) for number in numbers])
    axes.set_ylim(0.9, 5.1)
    axes.set_xlabel("round")
    axes.set_ylabel("selection mean (1-5)")
    axes.legend(frameon=False, loc="lower right")


def _front(axes: Axes, report: Report) -> None:
    """The first two objectives against each other; the third as brightness."""
    first, second, *rest = report.traded
    for round_ in report.rounds:
        means = []
        for objective in report.traded:
            mean = round_.scores[objective]["selection"].mean
            if mean is not None:
                means.append(mean)
        if len(means) < len(report.traded):
            continue
        kept = round_.round in report.archive
        axes.scatter(
            means[0],
            means[1],
            s=60,
            c=[(means[2] - 1) / 4 if rest else 0.6],
            cmap="viridis",
            vmin=0,
            vmax=1,
            marker="o" if kept else "x",
        )
        axes.annotate(
            _name(round_.round),
            (means[0], means[1]),
            textcoords="offset points",
            xytext=(6, 4),
        )
    axes.set_xlabel(_words(first))
    axes.set_ylabel(_words(second))
    third = f"; lighter: better {_words(rest[0])}" if rest else ""
    axes.set_title(f"o in the archive, x outside{third}", fontsize=9, loc="left")


def _mixture(axes: Axes, report: Report) -> None:
    """Shares of the data sets, a bar per round."""
    mixtures: list[tuple[str, dict[str, float]]] = []
    if report.calibration:
        mixtures.append(("static", report.calibration.mixture.ratios))
    for round_ in report.rounds:
        if round_.plan:
            mixtures.append((str(round_.round), round_.plan.ratios))
    datasets: set[str] = set()
    for _, ratios in mixtures:
        datasets.update(ratios)
    names = [name for name, _ in mixtures]
    bottom = [0.0] * len(mixtures)
    for index, dataset in enumerate(sorted(datasets)):
        height = [ratios.get(dataset, 0.0) for _, ratios in mixtures]
        axes.bar(names, height, bottom=bottom, color=_colour(index), width=0.65, label=dataset)
        bottom = [low + high for low, high in zip(bottom, height, strict=True)]
    axes.set_ylim(0, 1)
    axes.set_xlabel("round")
    axes.set_ylabel("share of tokens")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def _heat(axes: Axes, rounds: Sequence[Round], keys: Sequence[tuple[str, str]]) -> None:
    """A grid of slices by rounds, each cell with its mean; `?` if it was not scored."""
    grid = []
    for row, (objective, slice_) in enumerate(keys):
        means = []
        for column, round_ in enumerate(rounds):
            mean = _mean(round_.profile.find(objective, slice_))
            means.append(UNKNOWN if mean is None else mean)
            text = "?" if mean is None else f"{mean:.1f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8)
        grid.append(means)
    axes.imshow(grid, cmap="RdYlGn", vmin=1, vmax=5, aspect="auto")
    axes.set_xticks(range(len(rounds)), [_name(round_.round) for round_ in rounds])
    axes.set_yticks(range(len(keys)), [_words(f"{o} {s}") for o, s in keys])
    axes.spines[:].set_visible(False)
    axes.set_xlabel("round (steering suites)")


def influence_map(influence: Influence, objectives: Sequence[str]) -> str:
    """Buckets by objectives: the effect of one percent more; grey if it cannot be told from zero.

    Objectives without an estimate are left out.
    """
    estimated = [name for name in objectives if name in influence.buckets[0].effects]
    height = 1.2 + 0.27 * len(influence.buckets)
    return _svg(lambda axes: _influence(axes, influence, estimated), height=height)


def _influence(axes: Axes, influence: Influence, objectives: Sequence[str]) -> None:
    """Colours are relative to an objective's largest effect, since losses differ in scale."""
    from matplotlib import colormaps

    largest = {}
    for objective in objectives:
        values = [abs(bucket.effects[objective].value) for bucket in influence.buckets]
        largest[objective] = max(values) or 1.0
    grid = []
    for row, bucket in enumerate(influence.buckets):
        shades = []
        for column, objective in enumerate(objectives):
            effect = bucket.effects[objective]
            shades.append(effect.value / largest[objective] if effect.is_clear else UNKNOWN)
            text = f"{effect.value:+.2g} ± {effect.standard_error:.1g}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8)
        grid.append(shades)
    colours = colormaps["RdYlGn"].with_extremes(bad=UNCLEAR)
    # The ends of the scale are too dark for the numbers on them.
    axes.imshow(grid, cmap=colours, vmin=-1.5, vmax=1.5, aspect="auto")
    axes.set_xticks(range(len(objectives)), [_words(name) for name in objectives])
    names = [_words(f"{bucket.dataset} {bucket.bucket}") for bucket in influence.buckets]
    axes.set_yticks(range(len(names)), names)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("fall of the steering loss per percent of tokens; grey: not clear of zero")


def _mean(slice_: SliceProfile | None) -> float | None:
    return slice_.score.mean if slice_ else None


KINDS: dict[str, Callable[[Axes, Report], None]] = {
    "scores": _scores,
    "front": _front,
    "mixture": _mixture,
}
