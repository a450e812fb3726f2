"""Nothing is trained for an objective that cannot be scored: the base's scores are looked at first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from agent.context import RunContext
from mosaic.core.errors import BoundaryError
from mosaic.core.types.evaluation import Scored
from mosaic.core.types.runs import Trial
from tools.effects.evaluate import read_scored

# Of the selection prompts of an objective with data, at least this fraction must have a score.
MIN_SCORED = 0.5


def require_scores(context: RunContext, base: Trial) -> None:
    """Raise BoundaryError if the base is hardly scored on an objective that has data.

    The message has each objective's commonest reason. Nothing is recorded of the round: with
    another judge, `resume` judges the same answers again.
    """
    lines = []
    for objective in context.settings.traded:
        files = base.files[objective.name]["selection"]
        items = read_scored(context.steps, files)
        scored = sum(item.score is not None and item.valid == 1 for item in items)
        if scored < MIN_SCORED * len(items):
            lines.append(f"  {objective.name}: {scored:,} of {len(items):,}: {_commonest(items)}")
    if not lines:
        return
    folder = context.steps.journal.folder
    raise BoundaryError(
        "round 0: too few selection prompts were scored, at least half must be; nothing was "
        "trained:\n" + "\n".join(lines) + "\n"
        "mend the judge (give a model that was mended another judge.revision) or the suites, then: "
        f"python -m mosaic resume {folder} [--set ...] --accept-changes; answers to the same "
        "prompts are not generated again"
    )


def _commonest(items: Sequence[Scored]) -> str:
    """The reason that most unscored items have, and how many have it."""
    reasons = Counter(item.reason or "no reason given" for item in items if item.score is None)
    if not reasons:
        return "the others are not valid"
    reason, count = reasons.most_common(1)[0]
    return f"{reason} ({count:,} of {reasons.total():,} that are not scored)"
