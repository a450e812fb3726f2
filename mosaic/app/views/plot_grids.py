"""Pictures that are grids: mixtures by round, slices by round, influence of buckets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mosaic.app.shapes import Report
from mosaic.app.views.plot_theme import ink_on, plain, words
from mosaic.core.types.evaluation import SliceProfile
from mosaic.core.types.influence import Influence
from mosaic.core.types.runs import Round

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# Data sets: greys from dark to light, and a hatching for each, since greys alone are hard to name.
DATASETS = (
    ("#4d5866", ""),
    ("#c9d0d8", "///"),
    ("#8794a3", "..."),
    ("#e8ebef", "xxx"),
    ("#69757f", "\\\\\\"),
    ("#b3bdc8", "+++"),
    ("#96a2af", "ooo"),
)
MIN_TOLD = 0.07  # the smallest share that has room for its number
UNKNOWN = float("nan")
UNCLEAR = "#d9dde3"


def draw_mixture(figure: Figure, report: Report) -> None:
    """Shares of the data sets, a bar per trial."""
    mixtures: list[tuple[str, dict[str, float]]] = []
    if report.static:
        mixtures.append(("static", report.static.plan.ratios))
    for one in report.trials:
        if one.plan:
            mixtures.append((one.name, one.plan.ratios))
    datasets: set[str] = set()
    for _, ratios in mixtures:
        datasets.update(ratios)
    axes = figure.subplots()
    plain(axes)
    bottom = [0.0] * len(mixtures)
    for index, dataset in enumerate(sorted(datasets)):
        colour, hatch = DATASETS[index % len(DATASETS)]
        heights = [ratios.get(dataset, 0.0) for _, ratios in mixtures]
        axes.bar(
            range(len(mixtures)),
            heights,
            bottom=bottom,
            color=colour,
            hatch=hatch,
            edgecolor="#5d6874",
            lw=0.6,
            width=0.7,
            label=dataset,
        )
        _tell_shares(axes, heights, bottom)
        bottom = [low + high for low, high in zip(bottom, heights, strict=True)]
    axes.set_xticks(range(len(mixtures)), [name for name, _ in mixtures])
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    axes.set_xlabel("round")
    axes.set_ylabel("percent of tokens")
    figure.legend(loc="outside upper center", ncols=min(6, len(datasets)), frameon=False)


def _tell_shares(axes: Axes, heights: Sequence[float], bottom: Sequence[float]) -> None:
    """Write each share into its part of the bar, on white, so that no hatching crosses it."""
    for x, (height, low) in enumerate(zip(heights, bottom, strict=True)):
        if height < MIN_TOLD:
            continue
        axes.text(
            x,
            low + height / 2,
            f"{100 * height:.0f}",
            ha="center",
            va="center",
            fontsize=8,
            color="#000000",
            bbox={"facecolor": "#ffffff", "edgecolor": "none", "pad": 1.2},
        )


def heat_keys(rounds: Sequence[Round]) -> list[tuple[str, str]]:
    """Every (objective, slice) that some round measured."""
    keys: set[tuple[str, str]] = set()
    for round_ in rounds:
        keys.update((s.objective, s.slice) for s in round_.profile.slices)
    return sorted(keys)


def draw_heat(figure: Figure, rounds: Sequence[Round], keys: Sequence[tuple[str, str]]) -> None:
    """A grid of slices by rounds, each cell with its mean; `?` if it was not scored."""
    from matplotlib import colormaps

    grid, texts = [], []
    for objective, slice_ in keys:
        means = [_mean(round_.profile.find(objective, slice_)) for round_ in rounds]
        grid.append([UNKNOWN if mean is None else mean for mean in means])
        texts.append(["?" if mean is None else f"{mean:.1f}" for mean in means])
    axes = figure.subplots()
    _cells(axes, grid, texts, colormaps["cividis"], (1, 5))
    numbers = ["base" if round_.round == 0 else str(round_.round) for round_ in rounds]
    axes.set_xticks(range(len(rounds)), numbers)
    axes.set_yticks(range(len(keys)), [words(f"{o} {s}") for o, s in keys])
    axes.set_xlabel("round (means of 1 to 5 on the steering suites; lighter is better)")


def draw_influence(figure: Figure, influence: Influence, objectives: Sequence[str]) -> None:
    """Colours are relative to an objective's largest effect, since losses differ in scale."""
    from matplotlib import colormaps

    largest = {}
    for objective in objectives:
        values = [abs(bucket.effects[objective].value) for bucket in influence.buckets]
        largest[objective] = max(values) or 1.0
    grid, texts = [], []
    for bucket in influence.buckets:
        effects = [(bucket.effects[name], largest[name]) for name in objectives]
        grid.append([e.value / most if e.is_clear else UNKNOWN for e, most in effects])
        texts.append([f"{e.value:+.2g} ± {e.standard_error:.1g}" for e, _ in effects])
    axes = figure.subplots()
    _cells(axes, grid, texts, colormaps["PuOr"], (-1, 1))
    axes.set_xticks(range(len(objectives)), [words(name) for name in objectives])
    names = [words(f"{bucket.dataset} {bucket.bucket}") for bucket in influence.buckets]
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("fall of the steering loss per percent of tokens; grey: not clear of zero")


def _cells(
    axes: Axes,
    grid: Sequence[Sequence[float]],
    texts: Sequence[Sequence[str]],
    colours: Colormap,
    ends: tuple[float, float],
) -> None:
    """A grid of coloured cells with their texts, the first row at the top."""
    from matplotlib.colors import Normalize

    shades = colours.with_extremes(bad=UNCLEAR)
    norm = Normalize(*ends)
    edges = [number - 0.5 for number in range(len(grid[0]) + 1)]
    rows = [number - 0.5 for number in range(len(grid) + 1)]
    axes.pcolormesh(edges, rows, grid, cmap=shades, norm=norm, edgecolors="white", lw=0.5)
    for row, values in enumerate(grid):
        for column, value in enumerate(values):
            colour = shades(norm(value)) if value == value else (0.85, 0.87, 0.89)
            text = texts[row][column]
            ink = ink_on(colour)
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _mean(slice_: SliceProfile | None) -> float | None:
    return slice_.score.mean if slice_ else None
