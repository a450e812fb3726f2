"""The HTML report: one self-contained page that opens offline. Plots by matplotlib as inline SVG, text by Jinja."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mosaic.app.shapes import Report
from mosaic.app.views import plots
from mosaic.app.views.report_data import load
from mosaic.app.views.trace_tree import trace_data


def write_html(folder: Path, report: Report, path: Path) -> None:
    """Render `report_data` (and the slices and traces behind it) into one HTML file."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
    )
    data = report.json_data()
    environment.filters["score"] = _score
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=1)
    environment.filters["words"] = lambda name: str(name).replace("_", " ")
    journal, state = load(folder)
    journal.close()
    planned = {e["round"]: e for e in trace_data(folder, None) if e["kind"] == "planned"}
    text = environment.get_template("report.html.j2").render(
        data=data,
        planned=planned,
        scores_svg=plots.svg("scores", data),
        front_svg=plots.svg("front", data) if len(data["objectives"]) > 1 else "",
        mixture_svg=plots.svg("mixture", data),
        heat_svg=plots.heat(list(state.rounds)),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _score(score: dict[str, Any] | None) -> str:
    if not score or score["mean"] is None:
        return "not scored"
    return f"{score['mean']:.2f}"
