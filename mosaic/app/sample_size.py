"""What the suites of a run are large enough for: floors, and the differences that can be shown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from agent.noise import slice_noise
from eval.statistics import smallest_difference
from eval.suite import Suite
from mosaic.app.shapes import Finding
from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import MIN_CLUSTERS, Prompt
from mosaic.core.types.plans import ObjectiveSpec

Suites = Mapping[str, Mapping[str, Suite]]

# How far the differences of a prompt's two scores scatter, in points, before anything is measured:
# as much as where one prompt in seven goes from the one end of the scale to the other.
PROMPT_SPREAD = 1.5


def independent(prompts: Sequence[Prompt]) -> int:
    """How many clusters the valid prompts form; one without a group is a cluster of its own."""
    clusters = set()
    for prompt in prompts:
        if prompt.valid:
            alone = prompt.group is None
            clusters.add((alone, prompt.id if alone else prompt.group))
    return len(clusters)


def check_floors(objectives: Sequence[ObjectiveSpec], suites: Suites) -> None:
    """UsageError if a floor could never hold, since too few independent prompts decide over it."""
    faults = []
    for objective in objectives:
        count = independent(suites[objective.name]["selection"].prompts)
        if objective.floor is not None and count < MIN_CLUSTERS:
            faults.append(f"  objectives.{objective.name}.floor: {count} in selection.jsonl")
    if faults:
        raise UsageError(
            f"suites: a floor needs {MIN_CLUSTERS} independent valid prompts, or no round could be "
            "accepted:\n" + "\n".join(faults) + "\nadd prompts, or take the floor out"
        )


def sample_size(objectives: Sequence[ObjectiveSpec], suites: Suites) -> Finding:
    """The smallest differences between two rounds that these suites can show."""
    noise = slice_noise([], [objective.name for objective in objectives])
    parts = []
    for objective in objectives:
        between = noise[objective.name].of_difference(trainings=2)
        roles = suites[objective.name]
        whole = independent(roles["selection"].prompts)
        slice_ = _smallest_slice(roles["steering"].prompts)
        shown = []
        for count in (whole, slice_):
            difference = smallest_difference(count, PROMPT_SPREAD, between)
            shown.append(f"{difference:.2f} over {count}")
        parts.append(
            f"{objective.name} {shown[0]} selection prompts, {shown[1]} prompts of a slice"
        )
    result = (
        f"differences between two rounds that show in four of five cases: {'; '.join(parts)} "
        f"(points; prompts scatter by {PROMPT_SPREAD:g}, trainings as is usual)"
    )
    return Finding(check="sample size", result=result)


def _smallest_slice(prompts: Sequence[Prompt]) -> int:
    """The independent prompts of the slice that has fewest."""
    slices: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        if prompt.valid:
            slices[prompt.slice].append(prompt)
    return min((independent(inside) for inside in slices.values()), default=0)
