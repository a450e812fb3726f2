"""The pictures of a run, by matplotlib, as SVG text.

One colour has one meaning in all of them: rounds are blue circles, the chosen one a green star, the
static mixture orange squares, the base grey diamonds, and targets dotted lines. Data sets are greys
that also differ in their hatching. Nothing is told by colour alone, so that the pictures survive
colour blindness and grey print.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mosaic.app.shapes import Report
from mosaic.app.views.plot_alternatives import draw_alternatives
from mosaic.app.views.plot_grids import draw_heat, draw_influence, draw_mixture, heat_keys
from mosaic.app.views.plot_scores import draw_pairs, draw_parallel, draw_scores, pair_count
from mosaic.app.views.plot_theme import DARK, INK, LIGHT_NAMES
from mosaic.core.types.influence import Influence
from mosaic.core.types.runs import Round

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mosaic.app.views.alternatives import Alternative

# How colours are written: those of a light page, of a dark one, or as variables of a page's style.
Theme = Literal["light", "dark", "page"]
WIDTH = 6.4  # inches
POINTS = 72  # in an inch
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.hashsalt": "mosaic",
    "hatch.linewidth": 0.6,
}


@dataclass(frozen=True)
class Kind:
    """A picture of a report: how it is drawn, how high it is in inches, and what stands below it."""

    title: str
    caption: str
    draw: Callable[[Figure, Report], None]
    height: Callable[[Report], float]
    applies: Callable[[Report], bool] = lambda report: True
    measured: Callable[[Report], bool] = lambda report: bool(report.rounds)

    def shown(self, report: Report) -> bool:
        """Whether there is something to draw, for as many objectives as it can show."""
        return self.applies(report) and self.measured(report)

    def size(self, report: Report) -> tuple[int, int]:
        """Width and height in points, so that a page can keep its place free."""
        return int(WIDTH * POINTS), int(self.height(report) * POINTS)


def svg(kind: str, report: Report, theme: Theme = "light") -> str:
    """One of `KINDS` drawn from a report."""
    picture = KINDS[kind]
    return _svg(lambda figure: picture.draw(figure, report), picture.height(report), theme)


def heat(rounds: Sequence[Round], theme: Theme = "light") -> str:
    """Steering means of every slice in every round; empty if nothing was measured."""
    keys = heat_keys(rounds)
    if not keys:
        return ""
    return _svg(lambda figure: draw_heat(figure, rounds, keys), 1.2 + 0.27 * len(keys), theme)


def influence_map(influence: Influence, objectives: Sequence[str], theme: Theme = "light") -> str:
    """Buckets by objectives: the effect of one percent more; grey if it cannot be told from zero.

    Objectives without an estimate are left out.
    """
    estimated = [name for name in objectives if name in influence.buckets[0].effects]
    height = 1.2 + 0.27 * len(influence.buckets)
    return _svg(lambda figure: draw_influence(figure, influence, estimated), height, theme)


def what_if(report: Report, found: Sequence[Alternative], theme: Theme = "light") -> str:
    """Forecasts of plans that ran and of others, beside what was measured."""
    panels = sum(name in found[-1].ran for name in report.objectives)
    height = 1.0 + 1.9 * -(-panels // 2)
    return _svg(lambda figure: draw_alternatives(figure, report, found), height, theme)


def _svg(draw: Callable[[Figure], None], height: float, theme: Theme) -> str:
    """A figure as text: the same drawing gives the same bytes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**STYLE, **dict.fromkeys(INKED, INK)}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=NO_METADATA, transparent=True)
    text = buffer.getvalue()
    return _coloured(text[text.index("<svg") :], theme)


def _coloured(text: str, theme: Theme) -> str:
    """A picture in the colours of a theme; it is drawn in those of a light page."""
    if theme == "light":
        return text
    for colour, name in LIGHT_NAMES.items():
        new = DARK[name] if theme == "dark" else f"var(--plot-{name}, {colour})"
        text = text.replace(colour, new)
    return text


SCORED = "Selection means with their 95 % intervals."
KINDS: dict[str, Kind] = {
    "scores": Kind(
        title="Scores per round",
        caption=f"{SCORED} A panel for each objective, all on one scale.",
        draw=draw_scores,
        height=lambda report: 0.6 + 1.9 * -(-len(report.objectives) // 2),
    ),
    "front": Kind(
        title="Objectives against each other",
        caption=f"{SCORED} Filled rounds are in the archive, hollow ones are not; up and right is "
        "better, beyond both dotted lines both targets are met.",
        draw=draw_pairs,
        height=lambda report: 0.7 + 2.9 * -(-pair_count(report) // 2),
        applies=lambda report: 2 <= len(report.traded) <= 4,
    ),
    "parallel": Kind(
        title="All objectives together",
        caption="Selection means, a line for each model; short dotted bars are targets.",
        draw=draw_parallel,
        height=lambda report: 3.6,
        applies=lambda report: len(report.objectives) > 2,
    ),
    "mixture": Kind(
        title="Mixture per round",
        caption="Shares of the data sets in a round's tokens.",
        draw=draw_mixture,
        height=lambda report: 3.2,
        measured=lambda report: report.static is not None,
    ),
}
