"""Reports and questions as plain text for a terminal."""

from __future__ import annotations

import textwrap

from mosaic.app.shapes import Report, ReportRound
from mosaic.app.terminal import safe
from mosaic.app.views.levels import agreement_lines, control_lines, levels_line
from mosaic.app.views.spending import spending_lines
from mosaic.core.types.evaluation import Score
from mosaic.core.types.plans import ApprovalRequest, Change, ProposedPlan
from mosaic.core.types.runs import Stage

MIN_CELL = 17


def report_text(report: Report) -> str:
    """The result table of a run."""
    ended = f" ({report.stop})" if report.stop else ""
    lines = [f"{report.run}: {report.state}{ended}{_fallen(report)}", ""]
    width = max(MIN_CELL, *(len(o) for o in report.objectives))
    lines.append("selection suites (mean, 95 % interval)")
    header = "  ".join(f"{o:>{width}}" for o in report.objectives)
    lines.append(f"round  {header}  hypervolume")
    for round_, volume in zip(report.rounds, report.hypervolume, strict=True):
        scores = {o: round_.scores[o]["selection"] for o in report.objectives}
        mark = "*" if round_.round == report.chosen else " " if round_.accepted else "x"
        name = "base" if round_.round == 0 else str(round_.round)
        lines.append(f"{name:>4} {mark} {_cells(report, scores, width)}  {volume:.3f}")
    lines += _ranking_lines(report)
    lines += _noise_lines(report)
    lines += _audit_lines(report, width)
    lines += ["", f"tokens: {report.budget.spent:,} spent of {report.budget.total:,}"]
    for who, used in report.model_calls.items():
        cached = f", {used.from_cache:,} from judge.cache" if used.from_cache else ""
        lines.append(
            f"{who}: {used.answers:,} answers, {used.requests:,} requests, "
            f"{used.tokens:,} model tokens{cached}"
        )
    lines += spending_lines(report.spending)
    for round_ in report.rounds:
        lines += _remarks(round_)
    return "\n".join(safe(line) for line in lines)


def _fallen(report: Report) -> str:
    """The objectives in which the result fell below the base, for the first line."""
    if report.audit is None or not report.audit.fell:
        return ""
    parts = []
    for name in report.audit.fell:
        change = report.audit.against_base[name]
        parts.append(f"{name} by {-change.mean:.2f} ({change.low:+.2f} to {change.high:+.2f})")
    return f"; fell below the base: {', '.join(parts)}"


def _ranking_lines(report: Report) -> list[str]:
    """The archive by merit, with how probably each of its rounds is the best."""
    parts = []
    for one in report.ranking:
        name = f"round {one.round}" if one.round else "base"
        parts.append(f"{name} {100 * one.best:.0f} %")
    return (
        [f"archive by merit, and the chance of being its best: {', '.join(parts)}"] if parts else []
    )


def _noise_lines(report: Report) -> list[str]:
    """The noise of a training, and how little its repeats say of it."""
    calibration = report.calibration
    if calibration is None:
        return []
    parts = []
    for objective, measured in calibration.noise.items():
        believed = calibration.believed[objective]
        parts.append(
            f"{objective} {measured:.2f}, believed {believed.deviation:.2f} "
            f"({believed.low:.2f}-{believed.high:.2f})"
        )
    trainings = len(calibration.trials)
    return [f"noise of a training, from {trainings} of one mixture: {'; '.join(parts)}"]


def _audit_lines(report: Report, width: int) -> list[str]:
    lines = []
    if report.audit:
        times = len(report.audits)
        opened = "opened once" if times == 1 else f"opened {times} times"
        lines += ["", f"audit suites, {opened}"]
        rows = (
            ("base", report.audit.base),
            ("static", report.audit.static),
            (f"round {report.chosen}", report.audit.chosen),
        )
        for label, row in rows:
            if row:
                lines.append(f"{label:>7} {_cells(report, row, width)}")
        if report.audit.gain:
            gains = "  ".join(f"{_gain(report, o):>{width}}" for o in report.objectives)
            lines.append(f"{'gain':>7} {gains}")
            lines.append("gain: the chosen round less the pools' own proportions, on equal prompts")
        lines += control_lines(report.audit.control)
    for opening in report.audits:
        if opening.decided_after:
            later = ", ".join(str(number) for number in opening.decided_after)
            lines.append(
                f"the audit was opened after round {opening.after_round}; rounds decided after "
                f"it: {later}"
            )
    return lines


def _cells(report: Report, scores: dict[str, Score], width: int) -> str:
    return "  ".join(f"{_cell(scores[o]):>{width}}" for o in report.objectives)


def _gain(report: Report, objective: str) -> str:
    gain = report.audit.gain.get(objective) if report.audit else None
    return f"{gain.mean:+.2f} ({gain.low:+.2f}-{gain.high:+.2f})" if gain else "not scored"


def _cell(score: Score) -> str:
    if score.mean is None:
        return "not scored"
    return f"{score.mean:.2f} ({score.low:.2f}-{score.high:.2f})"


def _remarks(round_: ReportRound) -> list[str]:
    lines = [stage_line(round_.round, stage) for stage in round_.stages]
    lines += agreement_lines(round_.round, round_.agreement)
    if round_.replaced:
        lines.append(f"round {round_.round}: planner replaced: {round_.replaced.reason}")
    if not round_.accepted:
        lines.append(f"round {round_.round} not accepted: {round_.reason}")
    return lines


def stage_line(round_: int, stage: Stage) -> str:
    """What one method of a round cost and brought."""
    spent = f"{stage.usage.trained:,} tokens trained"
    if stage.usage.sampled:
        spent = f"{stage.usage.sampled:,} sampled, {spent}"
    brought = ""
    if stage.pairs is not None:
        brought = f"; {stage.pairs.pairs} pairs of {stage.pairs.prompts} practice prompts"
    if stage.levels is not None:
        brought += f"; {levels_line(stage.levels)}"
    if stage.steering:
        means = [f"{o} {s.mean:.2f}" for o, s in stage.steering.items() if s.mean is not None]
        brought += f"; on steering {', '.join(means)}"
    if stage.note:
        brought += f"; {stage.note}"
    return f"round {round_}, {stage.method}: {spent} of {stage.tokens:,}{brought}"


def request_text(request: ApprovalRequest) -> str:
    """The question, drawn from the plans; the planner's words stand in a box at the end."""
    cost = request.cost
    lines = [
        f"{request.run}, round {request.round}: a plan of {request.planner} waits "
        f"(request {request.request[:12]})",
        f"cost {cost.tokens:,} training tokens; {cost.left_before:,} left before, "
        f"{cost.left_after:,} after",
    ]
    for shown in request.plans:
        lines += _plan_lines(shown)
    for floor in request.floors:
        below = " (below it now)" if floor.below else ""
        lines.append(f"floor of {floor.objective}: {floor.floor}{below}")
    return "\n".join(safe(line) for line in lines)


def _plan_lines(shown: ProposedPlan) -> list[str]:
    lines = ["", f"plan {shown.plan_digest[:12]}, change against the plan executed last"]
    lines += [_change_line(change) for change in shown.changes]
    lines += ["", "stock"]
    for demand in shown.stock:
        lines.append(
            f"    {demand.dataset} {demand.bucket:<20} asked {demand.asked:>9,} of "
            f"{demand.stock:>11,}"
        )
    broken = [f"{v.path}: {v.rule}" for v in shown.violations]
    lines += ["", "violations: " + (", ".join(broken) if broken else "none")]
    predicted = [f"{p.objective} {p.change:+.2f} (at least {p.low:+.2f})" for p in shown.predicted]
    lines.append("predicted by the surrogate: " + (", ".join(predicted) or "nothing"))
    expected = [f"{o} {change:+.2f}" for o, change in shown.expected.items()]
    lines.append("expected by the planner: " + (", ".join(expected) or "nothing"))
    lines += ["", "+-- the planner's words (not checked) " + "-" * 40]
    words = textwrap.wrap(shown.rationale, 74) or ["(none)"]
    lines += [f"| {line}" for line in words]
    lines.append("+" + "-" * 76)
    return lines


def _change_line(change: Change) -> str:
    before, after = change.before, change.after
    if isinstance(before, float) and isinstance(after, float):
        mark = " " if abs(after - before) < 0.005 else "+" if after > before else "-"
        shares = f"{100 * before:6.1f} % -> {100 * after:6.1f} %"
        return f"  {mark} {change.path:<42} {shares}"
    return f"  ~ {change.path}: {before} -> {after}"
