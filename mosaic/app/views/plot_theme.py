"""Colours, marks and scales that the pictures of a run share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mosaic.app.shapes import Report
from mosaic.core.types.base import SCALE
from mosaic.core.types.evaluation import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

# Each has a contrast of at least 4.5 with the page: pictures hold text in these colours too.
LIGHT = {
    "ink": "#1d232b",
    "mute": "#59636f",
    "round": "#0b5cad",
    "chosen": "#1b6e3c",
    "static": "#a8480b",
    "grid": "#dfe3e8",
}
DARK = {
    "ink": "#dde3ea",
    "mute": "#a5b0bd",
    "round": "#7ab8f5",
    "chosen": "#74cf96",
    "static": "#f0a06a",
    "grid": "#353e49",
}
LIGHT_NAMES = {colour: name for name, colour in LIGHT.items()}
INK, MUTE, GRID = LIGHT["ink"], LIGHT["mute"], LIGHT["grid"]
ROUND, CHOSEN, STATIC = LIGHT["round"], LIGHT["chosen"], LIGHT["static"]
MARGIN = 0.1  # of an axis of scores beyond its ends


@dataclass(frozen=True)
class Model:
    """What a picture shows of one model: its name, selection scores, and how it is drawn."""

    name: str
    scores: dict[str, Score]
    colour: str
    marker: str
    line: str
    filled: bool = True

    def mean(self, objective: str) -> float | None:
        score = self.scores.get(objective)
        return score.mean if score else None


def models_of(report: Report) -> list[Model]:
    """Base, static mixture and the rounds' trials, in that order; failed ones have no scores."""
    found = []
    for round_ in report.trials:
        scores = {name: by_role["selection"] for name, by_role in round_.scores.items()}
        if round_.round == 0:
            found.append(Model("base", scores, MUTE, "D", (":")))
        elif round_.round == report.chosen and round_.counts:
            found.append(Model(round_.name, scores, CHOSEN, "*", "-"))
        else:
            kept = round_.accepted and not round_.dominated
            found.append(Model(round_.name, scores, ROUND, "o", "-", filled=kept))
        if round_.round == 0 and report.static is not None:
            found.append(Model("static", report.static.selection, STATIC, "s", "--"))
    return found


def scale_of(report: Report) -> tuple[float, float]:
    """The ends of every axis of scores in a report's pictures: from the half point below the lowest
    interval or target up to 5."""
    lows = [target for target in report.targets.values() if target is not None]
    for model in models_of(report):
        lows += [score.low for score in model.scores.values() if score.low is not None]
    lowest, highest = SCALE
    if not lows:
        return lowest, highest
    return max(lowest, math.floor(2 * min(lows)) / 2), highest


def scale_text(report: Report, lowest: float | None = None) -> str:
    """What an axis says of its scale, which may begin lower than that of other pictures."""
    low, high = scale_of(report)
    low = low if lowest is None else lowest
    zoom = "" if low == SCALE[0] else f" (shown: {low:.2g} to {high:g})"
    return f"selection mean, 1 to 5{zoom}"


def set_scale(axes: Axes, report: Report, *, both: bool = False) -> None:
    """Give an axis of scores the one scale of the report."""
    low, high = scale_of(report)
    ticks = _ticks(low, high)
    axes.set_ylim(low - MARGIN, high + MARGIN)
    axes.set_yticks(ticks)
    if both:
        axes.set_xlim(low - MARGIN, high + MARGIN)
        axes.set_xticks(ticks)
    plain(axes)
    axes.grid(axis="both" if both else "y", color=GRID, lw=0.6)
    axes.set_axisbelow(True)


def _ticks(low: float, high: float) -> list[float]:
    step = 1.0 if high - low > 2 else 0.5
    first = math.ceil(low / step) * step
    return [first + step * number for number in range(int((high - first) / step) + 1)]


def plain(axes: Axes) -> None:
    """Axes without a frame at the top and on the right."""
    axes.spines[["top", "right"]].set_visible(False)


def legend_of(models: Iterable[Model], *, target: bool) -> list[Line2D]:
    """One entry for each way in which models are drawn."""
    from matplotlib.lines import Line2D

    found: dict[str, Line2D] = {}
    for model in models:
        label = {"D": "base", "s": "static mixture", "*": "chosen round"}.get(model.marker)
        if label is None:
            label = "round" if model.filled else "round outside of the archive"
        found[label] = Line2D(
            [],
            [],
            color=model.colour,
            marker=model.marker,
            ls=model.line if model.marker != "o" else "-",
            ms=9 if model.marker == "*" else 5,
            mfc=model.colour if model.filled else "none",
            label=label,
        )
    if target:
        found["target"] = Line2D([], [], color=INK, ls=":", lw=1.2, label="target")
    return list(found.values())


def words(name: str) -> str:
    return name.replace("_", " ")


def ink_on(colour: tuple[float, ...]) -> str:
    """Black or white, whichever can be read better on a colour (red, green, blue in 0-1).

    One of them always has a contrast of at least 4.5.

    >>> ink_on((1.0, 1.0, 0.0)), ink_on((0.0, 0.0, 0.5))
    ('#000000', '#ffffff')
    """
    red, green, blue = (_linear(value) for value in colour[:3])
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "#000000" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "#ffffff"


def _linear(value: float) -> float:
    """A colour's part as light, of the sRGB curve."""
    return value / 12.92 if value <= 0.04045 else float(((value + 0.055) / 1.055) ** 2.4)
