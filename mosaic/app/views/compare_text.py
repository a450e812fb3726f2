"""Runs side by side as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mosaic.app.stage import duration
from mosaic.app.terminal import safe
from mosaic.app.views.compare import RunColumn, RunComparison, RunPair
from mosaic.core.types.evaluation import Score

CONFIG_LINES, CONFIG_WIDTH = 12, 120  # of what two configs differ in


def compare_text(found: RunComparison) -> str:
    """A row a run, then each run against the first, then the plans."""
    lines = ["audit of the chosen rounds (mean, 95 % interval)"]
    lines += _table(found.objectives, [(run.run, run.scores) for run in found.runs])
    if found.independent:
        lines += ["", "the same on independent suites, which no decision read"]
        lines += _table(found.independent, [(run.run, run.independent) for run in found.runs])
    lines += ["", "how they came about"]
    head = ["run", "state", "planner", "seed", "rounds", "chosen", "hypervolume", "tokens", "time"]
    lines += aligned([head, *(_facts(run) for run in found.runs)])
    for pair in found.pairs:
        lines += ["", *_pair_lines(pair)]
    lines += ["", "shares of the chosen plans, in percent"]
    datasets: dict[str, None] = {}
    for run in found.runs:
        datasets |= dict.fromkeys(run.plan.ratios if run.plan else {})
    rows = [["run", *datasets]]
    for run in found.runs:
        shares = run.plan.ratios if run.plan else {}
        rows.append([run.run, *(_percent(shares.get(name)) for name in datasets)])
    lines += aligned(rows)
    return "\n".join(safe(line) for line in lines)


def _table(names: Sequence[str], scores: Sequence[tuple[str, Mapping[str, Score]]]) -> list[str]:
    """A row of scores for each run, in this order of columns."""
    rows = [["run", *names]]
    for run, own in scores:
        rows.append([run, *(_cell(own.get(name)) for name in names)])
    return aligned(rows)


def _cell(score: Score | None) -> str:
    if score is None or score.mean is None:
        return "-"
    return f"{score.mean:.2f} ({score.low:.2f}-{score.high:.2f})"


def _facts(run: RunColumn) -> list[str]:
    return [
        run.run,
        run.state,
        run.planner,
        str(run.seed),
        str(run.rounds),
        "-" if run.chosen is None else str(run.chosen),
        "-" if run.hypervolume is None else f"{run.hypervolume:.3f}",
        f"{run.tokens:,}",
        "-" if run.seconds is None else duration(run.seconds),
    ]


def _pair_lines(pair: RunPair) -> list[str]:
    lines = [f"{pair.other} less {pair.first}, on equal prompts"]
    for objective, change in pair.changes.items():
        lines.append(
            f"  {objective}: {change.mean:+z.2f} ({change.low:+z.2f} to {change.high:+z.2f})"
        )
    for objective, reason in pair.apart.items():
        lines.append(f"  {objective}: not compared, {reason}")
    if pair.config:
        lines.append("  their configs differ in")
        lines += [f"    {line[:CONFIG_WIDTH]}" for line in pair.config[:CONFIG_LINES]]
        if len(pair.config) > CONFIG_LINES:
            lines.append(f"    and {len(pair.config) - CONFIG_LINES} more (--json has all)")
    return lines


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, the first column to the left and the others to the right.

    >>> aligned([["run", "safety"], ["one", "4.2"]])
    ['run  safety', 'one     4.2']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *others = row
        cells = [f"{first:<{widths[0]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells))
    return lines
