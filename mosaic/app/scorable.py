"""Whether the configured judge can score every prompt of every suite, asked without a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from agent.nodes.scored import MIN_SCORED
from eval.judges.base import SuiteJudge
from eval.objectives.base import Objective
from eval.suite import Suite
from mosaic.app.shapes import Finding
from mosaic.core.errors import UsageError

# How many prompts an error names for each reason, and how many reasons it lists.
MAX_NAMED, MAX_REASONS = 5, 40

# (objective, role, reason) -> ids of prompts
Faults = Mapping[tuple[str, str, str], list[str]]


def check_scorable(
    kind: str,
    judge: SuiteJudge,
    objectives: Mapping[str, Objective],
    suites: Mapping[str, Mapping[str, Suite]],
) -> Finding:
    """UsageError that lists, by suite and reason, every prompt that the judge could never score.

    `kind` is the judge's, for the message. No model is asked.
    """
    faults: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    total = 0
    for name, roles in suites.items():
        for role, suite in roles.items():
            total += len(suite.prompts)
            for prompt in suite.prompts:
                try:
                    reason = judge.unscorable(objectives[name], prompt)
                except UsageError as error:  # code of somebody's own fails on this prompt
                    reason = str(error)
                if reason is not None:
                    faults[name, role, reason].append(prompt.id)
    if faults:
        raise UsageError(_message(kind, total, faults, suites))
    return Finding(check="scorable", result=f"all {total:,} prompts can be scored by judge {kind}")


def check_valid(traded: Sequence[str], suites: Mapping[str, Mapping[str, Suite]]) -> Finding:
    """UsageError if most prompts that decide over an objective with data do not count.

    An invalid prompt is answered and scored, but stands in no mean.
    """
    faults, counted = [], 0
    for name in traded:
        prompts = suites[name]["selection"].prompts
        valid = sum(prompt.valid for prompt in prompts)
        counted += valid
        if valid < MIN_SCORED * len(prompts):
            faults.append(f"  {name} selection: {valid:,} of {len(prompts):,} prompts are valid")
    if faults:
        raise UsageError(
            "suites: prompts that are not valid stand in no mean, and too few are left:\n"
            + "\n".join(faults)
            + "\nat least half must be valid; put others in their place"
        )
    return Finding(check="valid", result=f"{counted:,} prompts decide over objectives with data")


def _message(
    kind: str, total: int, faults: Faults, suites: Mapping[str, Mapping[str, Suite]]
) -> str:
    count = sum(len(ids) for ids in faults.values())
    lines = [f"suites: {count:,} of {total:,} prompts could never be scored by judge {kind}:"]
    for (name, role, reason), ids in list(faults.items())[:MAX_REASONS]:
        of = len(suites[name][role].prompts)
        named = ", ".join(ids[:MAX_NAMED]) + (", ..." if len(ids) > MAX_NAMED else "")
        lines.append(f"  {name} {role}: {len(ids):,} of {of:,}: {reason} ({named})")
    left = len(faults) - MAX_REASONS
    if left > 0:
        lines.append(f"  and {left:,} reasons more")
    needs = "their answers would be paid for and not scored; mend the prompts (docs/judges.md says "
    needs += "what each judge needs) or take them out of the suites"
    lines.append(needs)
    return "\n".join(lines)
