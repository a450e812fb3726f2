"""The HTML report: one self-contained page that opens offline.

Plots are inline SVG by matplotlib, text is by Jinja.
"""

from __future__ import annotations

import json
from pathlib import Path

from mosaic.app.shapes import Report
from mosaic.app.views import plots
from mosaic.app.views.report_data import INFLUENCE, PARTS, load
from mosaic.app.views.spending import spending_lines
from mosaic.core.journal import Journal
from mosaic.core.store import Store
from mosaic.core.types.evaluation import Score
from mosaic.core.types.events import PlannedEvent
from mosaic.core.types.influence import Influence
from mosaic.core.types.records import Observe
from mosaic.core.types.runs import Observation


def write_html(folder: Path, report: Report, path: Path) -> None:
    """Render a report, and the slices and planners' calls behind it, into one HTML file."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
    )
    environment.filters["score"] = _score
    environment.filters["pretty"] = _pretty
    environment.filters["words"] = _words
    journal, state = load(folder)
    try:
        influence = _latest_influence(journal, folder)
        planned = {round_.round: _planned(journal, round_.round) for round_ in state.rounds}
    finally:
        journal.close()
    influence_svg = ""
    if influence is not None and influence.buckets:
        influence_svg = plots.influence_map(influence, report.objectives)
    text = environment.get_template("report.html.j2").render(
        data=report,
        parts=_parts(report),
        spending=spending_lines(report.spending),
        planned=planned,
        scores_svg=plots.svg("scores", report),
        front_svg=plots.svg("front", report) if len(report.traded) > 1 else "",
        mixture_svg=plots.svg("mixture", report),
        heat_svg=plots.heat(state.rounds),
        influence_svg=influence_svg,
        sampled=any(round_.tokens.sampled for round_ in report.rounds),
        influence_unread=influence.unread if influence else [],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _parts(report: Report) -> list[str]:
    """What the seconds of rounds are told by, in the order of a table."""
    told = any(INFLUENCE in round_.seconds for round_ in report.rounds)
    return [*([INFLUENCE] if told else []), *PARTS, "other", "total"]


def _planned(journal: Journal, number: int) -> PlannedEvent | None:
    """The last plan that was proposed in a round, with the calls that led to it."""
    for event in journal.events(number, "planned", newest=1):
        if isinstance(event.record, PlannedEvent):
            return event.record
    return None


def _latest_influence(journal: Journal, folder: Path) -> Influence | None:
    """The influence that the planner of the newest round was told."""
    observed = journal.steps(Observe)
    if not observed:
        return None
    told = Store(folder).get_json(observed[-1].result.observation)
    return Observation.model_validate(told).influence


def _words(name: object) -> str:
    return str(name).replace("_", " ")


def _pretty(value: object) -> str:
    return json.dumps(value, indent=1)


def _score(score: Score | None) -> str:
    if score is None or score.mean is None:
        return "not scored"
    return f"{score.mean:.2f}"
