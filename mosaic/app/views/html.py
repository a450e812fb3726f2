"""The HTML report: one self-contained page that opens offline, in light, in dark and on paper.

Plots are inline SVG by matplotlib, text is by Jinja.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agent.state import RunState
from mosaic.app.shapes import Report
from mosaic.app.stage import duration
from mosaic.app.views import plots
from mosaic.app.views.alternatives import Alternative, alternatives, caption_of
from mosaic.app.views.compare import RunComparison
from mosaic.app.views.levels import levels_line
from mosaic.app.views.parts import signed
from mosaic.app.views.report_data import INFLUENCE, PARTS, load
from mosaic.app.views.result import target_text, worse_sentences
from mosaic.app.views.spending import spending_lines
from mosaic.app.views.story import Entry, Messages, Raw
from mosaic.app.views.telling import Teller
from mosaic.app.views.text import told_text
from mosaic.app.views.trace_html import HERE, STYLE, add_filters
from mosaic.core.journal import Journal
from mosaic.core.store import Store
from mosaic.core.types.evaluation import Score
from mosaic.core.types.influence import Influence
from mosaic.core.types.records import Observe, ProposePlan
from mosaic.core.types.runs import Observation

if TYPE_CHECKING:
    from jinja2 import Environment

STYLES = (STYLE, HERE / "trace.css", HERE / "report.css")


@dataclass(frozen=True)
class Picture:
    """A plot in the report, with what stands above and below it."""

    title: str
    caption: str
    svg: str


class NoLinks:
    """A report holds entries of the trace, and no page to go to from them."""

    def entry(self, entry: Entry) -> str:
        return f"#e{entry.id}"

    def markdown(self, entry: Entry) -> str:
        return ""

    def kept(self, entry: Entry) -> str:
        return ""

    def chapter(self, number: int) -> str:
        return ""


def write_html(folder: Path, report: Report, path: Path) -> None:
    """Render a report, and the slices and the planners' reasoning behind it, into one HTML file."""
    journal, state = load(folder)
    try:
        influence = _latest_influence(journal, folder)
        others = alternatives(journal, state)
        told = {r.round: _reasoning(journal, folder, r.round) for r in state.rounds}
    finally:
        journal.close()
    text = (
        _environment()
        .get_template("report.html.j2")
        .render(
            data=report,
            parts=_parts(report),
            spending=spending_lines(report.spending),
            told=told,
            links=NoLinks(),
            pictures=_pictures(report, state, influence, others),
            style=_style(),
        )
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_comparison(found: RunComparison, path: Path) -> None:
    """Render runs side by side into one HTML file."""
    text = _environment().get_template("compare.html.j2").render(found=found, style=_style())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    add_filters(environment)
    add_result_filters(environment)
    return environment


def _style() -> str:
    return "".join(style.read_text(encoding="utf-8") for style in STYLES)


def add_result_filters(environment: Environment) -> None:
    """What the templates of a result call."""
    environment.filters["score"] = _score
    environment.filters["signed"] = signed
    environment.filters["slug"] = lambda text: str(text).replace(" ", "-")
    environment.filters["target_text"] = target_text
    environment.filters["told_text"] = told_text
    environment.filters["worse"] = worse_sentences
    environment.filters["duration"] = duration
    environment.filters["levels_text"] = levels_line


def _pictures(
    report: Report, state: RunState, influence: Influence | None, others: Sequence[Alternative]
) -> list[Picture]:
    found = []
    for name, kind in plots.KINDS.items():
        if kind.shown(report):
            found.append(Picture(kind.title, kind.caption, plots.svg(name, report, "page")))
    heat = plots.heat(state.rounds, "page")
    if heat:
        found.append(Picture("Slices", "Means on the steering suites, by round.", heat))
    if others:
        drawn = plots.what_if(report, others, "page")
        found.append(Picture("What would have happened", caption_of(others), drawn))
    if influence is not None and influence.buckets:
        drawn = plots.influence_map(influence, report.objectives, "page")
        caption = "The influence of buckets before the newest round."
        if influence.unread:
            names = ", ".join(influence.unread).replace("_", " ")
            caption += f" None on {names}: too few references that differ."
        found.append(Picture("Influence of buckets", caption, drawn))
    return found


def _parts(report: Report) -> list[str]:
    """What the seconds of rounds are told by, in the order of a table."""
    told = any(INFLUENCE in round_.seconds for round_ in report.rounds)
    return [*([INFLUENCE] if told else []), *PARTS, "other", "total"]


def _reasoning(journal: Journal, folder: Path, number: int) -> list[Entry]:
    """How the plans of a round came about: those proposed last, and what a person decided.

    Records and messages are left to the trace.
    """
    teller = Teller(journal, Store(folder))
    attempts = journal.steps(ProposePlan, number)
    count = len(attempts[-1].result.plans) if attempts else 1
    planned = journal.events(number, "planned", newest=count)
    decided = journal.events(number, "decided", newest=1)
    return [_short(teller.entry(event)) for event in [*planned, *decided]]


def _short(entry: Entry) -> Entry:
    parts = [part for part in entry.parts if not isinstance(part, Raw | Messages)]
    turns = [_short(turn) for turn in entry.turns]
    return entry.model_copy(update={"parts": parts, "turns": turns})


def _latest_influence(journal: Journal, folder: Path) -> Influence | None:
    """The influence that the planner of the newest round was told."""
    observed = journal.steps(Observe)
    if not observed:
        return None
    told = Store(folder).get_json(observed[-1].result.observation)
    return Observation.model_validate(told).influence


def _score(score: Score | None) -> str:
    if score is None or score.mean is None:
        return "not scored"
    return f"{score.mean:.2f}"
