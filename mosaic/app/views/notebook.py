"""A run as a notebook shows it: state, scores by round, and the chosen round's result on audit."""

from __future__ import annotations

from html import escape

from mosaic.app.shapes import Report
from mosaic.core.types.evaluation import Difference, Score


def run_html(report: Report) -> str:
    """A piece of HTML without scripts or styles of its own: notebooks bring their own tables."""
    ended = f" ({escape(report.stop)})" if report.stop else ""
    title = f"<p><b>{escape(report.run)}</b>: {report.state}{ended}</p>"
    header = ["round", "planner", *(f"{name}, selection" for name in report.objectives)]
    rows = []
    for round_ in report.trials:
        name = round_.name
        if round_.round == report.chosen and round_.counts:
            name += " (chosen)"
        elif not round_.accepted and round_.round:
            name += " (not accepted)"
        scores = [round_.scores.get(objective, {}) for objective in report.objectives]
        cells = [_score(roles.get("selection")) for roles in scores]
        rows.append([name, round_.planner, *cells])
    return title + _table("Mean scores from 1 to 5, 95 % intervals", header, rows) + _audit(report)


def _audit(report: Report) -> str:
    if report.audit is None:
        return ""
    audit = report.audit
    rows = []
    for name in report.objectives:
        rows.append(
            [
                name,
                _score(audit.base.get(name)),
                _score(audit.static.get(name)),
                _score(audit.chosen.get(name)),
                _change(audit.gain.get(name)),
                _change(audit.against_base.get(name)),
            ]
        )
    header = ["objective", "base", "static", "chosen", "chosen less static", "chosen less base"]
    shown = _table("Audit: prompts that no decision saw", header, rows)
    tests = []
    for name, test in audit.independent.items():
        sides = (test.against_static, test.against_base)
        changes = [_change(side.change if side else None) for side in sides]
        scores = [_score(score) for score in (test.base, test.static, test.chosen)]
        tests.append([f"{name} ({test.objective})", *scores, *changes])
    if tests:
        shown += _table("Independent suites", ["suite", *header[1:]], tests)
    return shown


def _table(caption: str, header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = []
    for row in rows:
        lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    body = "".join(lines)
    return (
        f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _score(score: Score | None) -> str:
    if score is None or score.mean is None:
        return "-"
    return f"{score.mean:.2f} ({score.low:.2f} to {score.high:.2f})"


def _change(change: Difference | None) -> str:
    if change is None:
        return "-"
    return f"{change.mean:+z.2f} ({change.low:+z.2f} to {change.high:+z.2f})"
