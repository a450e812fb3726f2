"""Reports and questions as plain text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mosaic.app.shapes import IndependentShape, NoteShape, Report, ReportRound
from mosaic.app.terminal import safe
from mosaic.app.views.levels import agreement_lines, control_lines, levels_line
from mosaic.app.views.result import STATIC, target_text, worse_sentences
from mosaic.app.views.spending import spending_lines
from mosaic.core.types.evaluation import Difference, Score
from mosaic.core.types.plans import ApprovalRequest, Change, ProposedPlan
from mosaic.core.types.runs import Stage

MIN_CELL = 17
LABEL = 7  # columns of a row's name


def report_text(report: Report, width: int | None = None) -> str:
    """The result of a run for a terminal of so many columns; None never folds a table."""
    ended = f" ({report.stop})" if report.stop else ""
    first = "; ".join([f"{report.run}: {report.state}{ended}", *worse_sentences(report)])
    lines = [first, *report.why.splitlines()]
    lines += [*_headline_lines(report), *_selection_lines(report, width)]
    lines += _ranking_lines(report)
    lines += _noise_lines(report)
    lines += _looks_lines(report)
    lines += _audit_lines(report, width)
    if report.notes:
        lines += ["", "what people asked of the planner"]
        lines += [f"  - {note.by}, {told_text(note)}: {note.text}" for note in report.notes]
    if report.unknown:
        lines += ["", "what this run could not know"]
        lines += [f"  - {sentence}" for sentence in report.unknown]
    lines += ["", f"tokens: {report.budget.spent:,} spent of {report.budget.total:,}"]
    for who, used in report.model_calls.items():
        cached = f", {used.from_cache:,} from judge.cache" if used.from_cache else ""
        lines.append(
            f"{who}: {used.answers:,} answers, {used.requests:,} requests, "
            f"{used.tokens:,} model tokens{cached}"
        )
    lines += spending_lines(report.spending)
    for one in report.trials:
        lines += _remarks(one)
    return "\n".join(safe(line) for line in _wrapped(lines, width))


def told_text(note: NoteShape) -> str:
    """From when on a note was told.

    >>> told_text(NoteShape(by="ann", text="more of it", told_from=2))
    'told from round 2 on'
    """
    if note.told_from is None:
        return "not told yet: no round was planned since"
    return f"told from round {note.told_from} on"


def _wrapped(lines: Sequence[str], width: int | None) -> list[str]:
    """Lines no wider than a terminal; sentences are broken, tables fit already."""
    found: list[str] = []
    for line in lines:
        if width is None or len(line) <= width:
            found.append(line)
        else:
            found += textwrap.wrap(line, width, subsequent_indent="  ")
    return found


def _headline_lines(report: Report) -> list[str]:
    lines = [*report.headline]
    if report.verdicts:
        lines.append("Targets, by the audit: " + "; ".join(map(target_text, report.verdicts)) + ".")
    if report.why_chosen:
        lines.append(report.why_chosen)
    return lines


def _selection_lines(report: Report, width: int | None) -> list[str]:
    """Base, static mixture and rounds on the selection suites."""
    if not report.rounds:
        return []
    base, *planned = report.trials
    rows = [_Row("base", " ", base.scores, report.hypervolume[0])]
    if report.static:
        scores = {o: {"selection": score} for o, score in report.static.selection.items()}
        rows.append(_Row("static", " ", scores, report.static.hypervolume))
    for one in planned:
        chosen = one.round == report.chosen and one.counts
        mark = "*" if chosen else " " if one.accepted else "x"
        volume = report.hypervolume[one.round] if one.counts else None
        rows.append(_Row(one.name, mark, one.scores, volume))
    lines = ["", "selection suites (mean, 95 % interval)"]
    for names in _blocks(report.objectives, width):
        last = names[-1] == report.objectives[-1]
        lines.append(_header(names) + ("  hypervolume" if last else ""))
        for row in rows:
            cells = _cells(names, {o: row.scores[o]["selection"] for o in names})
            shown = "-" if row.volume is None else f"{row.volume:.3f}"
            lines.append(f"{row.name:>6} {row.mark}{cells}" + (f"  {shown:>11}" if last else ""))
    return [*lines, *_legend(report)]


@dataclass(frozen=True)
class _Row:
    name: str
    mark: str
    scores: Mapping[str, Mapping[str, Score]]
    volume: float | None


def _legend(report: Report) -> list[str]:
    """What the signs and the names of the rows mean."""
    parts = []
    if report.static:
        many = report.static.trainings
        trained = f"the mean of {many} trainings" if many > 1 else "trained once"
        parts.append(f"static: {STATIC}, {trained}")
    if report.chosen is not None:
        parts.append("*: chosen")
    if any(one.plan and not one.accepted for one in report.trials):
        parts.append("x: not accepted")
    if report.several:
        parts.append("1.2: candidate 2 of round 1; a volume stands beside the one that counts")
    lines = ["; ".join(parts)] if parts else []
    return [
        *lines,
        "hypervolume: of the accepted rounds so far, a share of the best possible (0-1)",
    ]


def _blocks(objectives: Sequence[str], width: int | None) -> list[list[str]]:
    """Objectives in groups whose columns fit side by side."""
    if width is None:
        return [list(objectives)]
    blocks: list[list[str]] = [[]]
    used = LABEL
    for name in objectives:
        needed = max(MIN_CELL, len(name)) + 2
        if name == objectives[-1]:
            needed += len("  hypervolume")
        if blocks[-1] and used + needed > width:
            blocks.append([])
            used = LABEL
        blocks[-1].append(name)
        used += needed
    return blocks


def _header(names: Sequence[str]) -> str:
    return " " * (LABEL + 1) + "  ".join(f"{o:>{max(MIN_CELL, len(o))}}" for o in names)


def _ranking_lines(report: Report) -> list[str]:
    """The archive by merit, with how probably each of its rounds is the best."""
    parts = []
    for one in report.ranking:
        name = f"round {one.name}" if one.round else "base"
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


def _looks_lines(report: Report) -> list[str]:
    """How many mixtures were tried cheaply, and what that took."""
    if not report.looks:
        return []
    looks = [look for taken in report.looks for look in taken.looks]
    trained = [look for look in looks if look.trained]
    lines = [
        f"looks: {len(looks)} mixtures tried cheaply, {len(trained)} of them trained, on "
        f"{sum(look.trained for look in trained):,} tokens"
    ]
    for taken in report.looks:
        if taken.note:
            lines.append(f"looks before round {max(1, taken.round)}: {taken.note}")
    return lines


def _audit_lines(report: Report, width: int | None) -> list[str]:
    audit, lines = report.audit, []
    if audit:
        times = len(report.audits)
        opened = "opened once" if times == 1 else f"opened {times} times"
        rows = {"base": audit.base, "static": audit.static, "chosen": audit.chosen}
        changes = {"-static": audit.gain, "-base": audit.against_base}
        lines += ["", f"audit suites, {opened}"]
        lines += _models_table(report.objectives, rows, changes, width)
        if audit.chosen:
            lines.append(
                f"chosen: round {report.chosen_name}; -static and -base: chosen less either, on equal "
                "prompts"
            )
        lines += control_lines(audit.control)
        lines += _independent_lines(audit.independent, width)
    for opening in report.audits:
        if opening.decided_after:
            later = ", ".join(str(number) for number in opening.decided_after)
            lines.append(
                f"the audit was opened after round {opening.after_round}; rounds decided after "
                f"it: {later}"
            )
    return lines


def _models_table(
    columns: Sequence[str],
    scores: Mapping[str, Mapping[str, Score]],
    changes: Mapping[str, Mapping[str, Difference]],
    width: int | None,
) -> list[str]:
    """A column per suite; a row per model, then one per difference. What is empty has no row."""
    lines = []
    for names in _blocks(columns, width):
        lines.append(_header(names))
        for label, row in scores.items():
            if row:
                lines.append(f"{label:>{LABEL}} {_cells(names, row)}")
        for label, change in changes.items():
            if change:
                lines.append(f"{label:>{LABEL}} {_changes(names, change)}")
    return lines


def _independent_lines(suites: Mapping[str, IndependentShape], width: int | None) -> list[str]:
    """Independent suites, apart from those that decisions read."""
    if not suites:
        return []
    scores: dict[str, dict[str, Score]] = {"base": {}, "static": {}, "chosen": {}}
    changes: dict[str, dict[str, Difference]] = {"-static": {}, "-base": {}}
    for name, test in suites.items():
        models = {"base": test.base, "static": test.static, "chosen": test.chosen}
        for label, score in models.items():
            if score is not None:
                scores[label][name] = score
        sides = {"-static": test.against_static, "-base": test.against_base}
        for label, comparison in sides.items():
            if comparison is not None:
                changes[label][name] = comparison.change
    judged = []
    for name, test in suites.items():
        own = test.objective == name
        judged.append(
            f"{name} " + ("by an objective of its own" if own else f"as {test.objective}")
        )
    return [
        "",
        "independent suites, opened at the end; no decision read them",
        *_models_table(list(suites), scores, changes, width),
        f"judged: {', '.join(judged)}",
    ]


def _cells(names: Sequence[str], scores: Mapping[str, Score]) -> str:
    return "  ".join(f"{_cell(scores[o]):>{max(MIN_CELL, len(o))}}" for o in names)


def _changes(names: Sequence[str], changes: Mapping[str, Difference]) -> str:
    cells = []
    for name in names:
        change = changes.get(name)
        text = f"{change.mean:+z.2f} ({change.low:+z.2f}/{change.high:+z.2f})" if change else "-"
        cells.append(f"{text:>{max(MIN_CELL, len(name))}}")
    return "  ".join(cells)


def _cell(score: Score) -> str:
    if score.mean is None:
        return "not scored"
    return f"{score.mean:.2f} ({score.low:.2f}-{score.high:.2f})"


def _remarks(round_: ReportRound) -> list[str]:
    name = round_.name if round_.round else "0"
    lines = [stage_line(name, stage) for stage in round_.stages]
    for stage in round_.stages:
        for doubt in stage.levels.doubts if stage.levels else ():
            lines.append(f"round {name}, {stage.method}: {doubt}")
    lines += agreement_lines(name, round_.agreement)
    if round_.replaced and round_.counts:
        lines.append(f"round {round_.round}: planner replaced: {round_.replaced.reason}")
    if not round_.accepted:
        lines.append(f"round {name} not accepted: {round_.reason}")
    return lines


def stage_line(round_: str, stage: Stage) -> str:
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
    count = len(request.plans)
    waits = "a plan of {} waits" if count == 1 else f"{count} plans of {{}} wait, a trial each"
    lines = [
        f"{request.run}, round {request.round}: {waits.format(request.planner)} "
        f"(request {request.request[:12]})",
        f"cost {cost.tokens:,} training tokens; {cost.left_before:,} left before, "
        f"{cost.left_after:,} after",
    ]
    for number, shown in enumerate(request.plans, 1):
        if count > 1:
            lines += ["", f"== {number} of {count} =="]
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
    predicted = [
        f"{p.objective} {p.change:+z.2f} (at least {p.low:+z.2f})" for p in shown.predicted
    ]
    lines.append("predicted by the surrogate: " + (", ".join(predicted) or "nothing"))
    expected = [f"{o} {change:+z.2f}" for o, change in shown.expected.items()]
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
