"""Answers to practice prompts, told: pairs that were formed of them, levels that they were given."""

from __future__ import annotations

from collections.abc import Sequence

from mosaic.app.views.levels import levels_line
from mosaic.app.views.parts import count
from mosaic.app.views.story import Table, Words
from mosaic.core.types.events import JudgedAnswersEvent, PairedEvent
from mosaic.core.types.preferences import JudgedReport, PairReport
from mosaic.core.types.runs import Stage
from prompts.levels import HIGHEST

Told = tuple[str, list[str], Table]
"""A title, facts, and a table."""


def paired(record: PairedEvent) -> Told:
    """Preference pairs: where objectives agreed, and what was left out."""
    report = record.report
    rows = [
        [" and ".join(found.objectives), str(found.prompts), str(found.consistent)]
        for found in report.yields
    ]
    agreed = Table(
        title="prompts where two objectives agree on some two answers",
        header=["objectives", "prompts of both", "with a pair that agrees"],
        rows=rows,
        folded=False,
    )
    facts = [f"{report.sampled:,} tokens drawn", f"{count(report.answers, 'answer')}"]
    facts += _left_out(report)
    title = f"paired answers of {report.pairs} of {count(report.prompts, 'practice prompt')}"
    return title, facts, agreed


def judged_answers(record: JudgedAnswersEvent) -> Told:
    """Judged answers: which levels they have under each objective, and what was left out."""
    report = record.report
    rows = []
    for objective, levels in report.levels.items():
        rows.append([objective, *(str(levels.get(level, 0)) for level in range(1, HIGHEST + 1))])
    given = Table(
        title="answers by level",
        header=["objective", *(f"level {level}" for level in range(1, HIGHEST + 1))],
        rows=rows,
        folded=False,
    )
    facts = [f"{report.sampled:,} tokens drawn", f"{count(report.pool_rows, 'row')} of the pool"]
    facts += _left_out(report)
    asked = count(report.prompts, "practice prompt")
    title = f"judged {count(report.answers, 'answer')} to {asked} for a reward model"
    return title, facts, given


def _left_out(report: PairReport | JudgedReport) -> list[str]:
    """How many answers nothing was learnt from, and why."""
    facts = []
    if report.cut:
        facts.append(f"{count(report.cut, 'answer')} cut at the greatest length")
    if report.unscored:
        facts.append(f"{count(report.unscored, 'answer')} without a score")
    return facts


def learnt(stages: Sequence[Stage]) -> list[Words]:
    """What stages that train for stated wishes learnt from, and what their levels may not be."""
    found = []
    for stage in stages:
        if stage.levels is not None:
            text = "\n".join([levels_line(stage.levels), *stage.levels.doubts])
            label = f"what {stage.method} learnt from"
            found.append(Words(by="MOSAIC", label=label, text=text))
    return found
