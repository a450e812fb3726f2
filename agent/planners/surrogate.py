"""The default planner if no model is configured: deterministic, works through the tools, learns.

It looks at the slices that hold the result back, and asks for examples and for the pool's stock. It
fits how slices answered to tokens so far (`response_model`), and searches mixtures inside the
limits for what is expected to gain most (`acquisition`, `search`). What it predicts is written down
as the plan's expected effect, and the next round's fit starts from what happened instead.

A run tries too few mixtures to tell whose data made a score fall. The data of an objective that
fell below the base are therefore not starved on the fit's word alone (`fallen`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from agent.methods import with_methods_of
from agent.planners.base import Planner, PlannerSettings
from agent.planners.response_model import looks_read
from agent.planners.search import Candidate, Surrogate
from agent.weights import Weights, cell_shares, weights_of
from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import SliceProfile
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Observation
from tools.planning.toolbox import Toolbox

# The slices that are looked at, and the examples that are asked for of the worst one.
MAX_SLICES, MAX_EXAMPLES = 4, 3
NEAR_TOP = 4.9
# The trace is told of so many past trials and mixtures, which lie further apart than this (L1 over
# cells); of what sets the first apart from the next, what is worth at least so much.
SHOWN, APART, MENTIONED = 10, 0.05, 0.0005


class SurrogatePlanner:
    """Searches the mixtures that are expected to gain most given the failure profiles so far."""

    kind = "profile"

    def propose(self, observation: Observation, toolbox: Toolbox, n: int = 1) -> list[ActionPlan]:
        """The best plan, and further ones as if those before them were being tried.

        Raises UsageError if the limits leave fewer than `n` that differ.
        """
        toolbox.past_rounds(last=SHOWN)
        worst = _look(observation, toolbox)
        surrogate = Surrogate(observation)
        for note in observation.notes:
            toolbox.conclude(
                f"a note by {note.by} is not followed: this planner reads figures only"
            )
        _tell_fit(observation, surrogate, toolbox)
        _tell_search(surrogate, toolbox)
        found = surrogate.best(n)
        if len(found) < n:
            raise UsageError(
                f"planner {self.kind}: the limits leave {len(found)} plans that differ, not {n}; "
                "ask for fewer, or widen limits.max_ratio_step or limits.max_bucket_step"
            )
        plans = []
        for weights in found:
            plan = _plan(observation, surrogate, weights, worst)
            toolbox.check_plan(plan)
            plans.append(plan)
        return plans


class SurrogatePlannerConfig(PlannerSettings):
    """Deterministic: reads the failure profile and learns from the rounds of this run."""

    kind: Literal["profile"] = "profile"

    def build(self) -> Planner:
        return SurrogatePlanner()


def _look(observation: Observation, toolbox: Toolbox) -> list[SliceProfile]:
    """Ask about the slices that cost most: how they fail, and what the pool can give."""
    worst = []
    for slice_ in observation.profile.slices:
        if slice_.score.mean is not None and slice_.score.mean < NEAR_TOP:
            worst.append(slice_)
    worst = worst[:MAX_SLICES]
    for slice_ in worst:
        toolbox.diagnose_slice(slice_.objective, slice_.slice)
    for slice_ in worst[:1]:
        toolbox.show_examples(slice_.objective, slice_.slice, "failed", MAX_EXAMPLES)
    for objective in observation.objectives:
        for dataset in objective.datasets:
            toolbox.pool_stock(dataset)
    for slice_ in worst:
        toolbox.conclude(
            f"{slice_.objective} {slice_.slice}: mean {slice_.score.mean:.2f}, "
            f"{100 * (slice_.failure_rate or 0):.0f} % fail, reliability {slice_.reliability}"
        )
    return worst


def _plan(
    observation: Observation,
    surrogate: Surrogate,
    weights: Weights,
    worst: Sequence[SliceProfile],
) -> ActionPlan:
    """The plan of a mixture, with what it is expected to change."""
    plan = ActionPlan(rationale="", ratios=weights.ratios, bucket_weights=weights.buckets)
    changes = surrogate.changes(plan)
    expected = {objective: round(change.mean, 4) for objective, change in changes.items()}
    rationale = _rationale(observation, worst, surrogate, weights, expected)
    plan = plan.model_copy(update={"rationale": rationale, "expected": expected})
    return with_methods_of(plan, observation.last_plan)


# -- what the trace is told of it ------------------------------------------------------------------


def _tell_fit(observation: Observation, surrogate: Surrogate, toolbox: Toolbox) -> None:
    """What was fitted, and to how much."""
    slices: list[dict[str, object]] = []
    for (objective, name), effect in sorted(surrogate.slices.items()):
        slices.append({"objective": objective, "slice": name, "doubling": round(effect, 4)})
    fitted: dict[str, object] = {"mixtures": surrogate.model.mixtures, "slices": slices}
    if surrogate.looks:
        fitted["looks"] = _look_errors(surrogate)
        fitted["looks_left_out"] = len(observation.looks) - len(looks_read(observation))
    toolbox.record("fit_responses", {}, fitted)
    if observation.influence is not None:
        toolbox.conclude(_influence_words(observation, surrogate))


def _influence_words(observation: Observation, surrogate: Surrogate) -> str:
    """What is made of the influence of each objective."""
    told = []
    for objective in observation.traded:
        weight = surrogate.influence_weights.get(objective)
        told.append(f"{objective} {'not used' if weight is None else f'{weight:.2f}'}")
    words = "; ".join(told)
    return f"weight of influence against what the config declares, 0 to about 1: {words}"


def _look_errors(surrogate: Surrogate) -> list[dict[str, object]]:
    """By how much looks lie above full trainings, all alike, and how far each is off by itself."""
    found: list[dict[str, object]] = []
    for objective, kinds in sorted(surrogate.looks.items()):
        for kind, error in kinds.items():
            bias, deviation = round(error.bias, 3), round(error.deviation, 3)
            line: dict[str, object] = {
                "objective": objective,
                "kind": kind,
                "bias": bias,
                "deviation": deviation,
            }
            found.append(line)
    return found


def _tell_search(surrogate: Surrogate, toolbox: Toolbox) -> None:
    """The best mixtures that differ from each other, the one executed last, and why the first won."""
    valued, best, last = surrogate.shown(SHOWN, APART)
    told = [_told(candidate) for candidate in (*best, last)]
    toolbox.record(
        "search_mixtures",
        {},
        {"valued": valued, "apart": APART, "best": told[:-1], "last": told[-1]},
    )
    toolbox.conclude(_why_it_won(best, last))


def _told(candidate: Candidate) -> dict[str, object]:
    return {
        "ratios": candidate.weights.ratios,
        "bucket_weights": candidate.weights.buckets,
        "predicted": candidate.predicted,
        "value": candidate.value,
        "volume": candidate.volume,
        "targets": candidate.targets,
        "price": candidate.price,
    }


def _why_it_won(best: Sequence[Candidate], last: Candidate) -> str:
    """The winner beside the next that differs from it, and the plan executed last."""
    first = best[0]
    said = f"of the mixtures searched this one is expected to gain most (value {first.value:.3f}"
    said += f", the plan executed last {last.value:.3f})"
    if len(best) == 1:
        return said
    next_ = best[1]
    ahead = {
        "more expected volume": first.volume - next_.volume,
        "coming nearer to the targets": first.targets - next_.targets,
        "a lower price for what was tried or is starved": next_.price - first.price,
    }
    reasons = [f"{words} ({by:.3f})" for words, by in ahead.items() if by >= MENTIONED]
    why = f" by {', '.join(reasons)}" if reasons else ", by next to nothing"
    return f"{said}; it is ahead of the next that differs ({next_.value:.3f}){why}"


# -- what is said about the plan ------------------------------------------------------------------


def _rationale(
    observation: Observation,
    worst: Sequence[SliceProfile],
    surrogate: Surrogate,
    point: Weights,
    expected: Mapping[str, float],
) -> str:
    sentences = []
    if worst:
        named = ", ".join(f"{s.objective} {s.slice} ({s.score.mean:.2f})" for s in worst)
        sentences.append(f"The slices furthest from the top are {named}.")
    sentences += _largest_moves(observation, point)
    effects = surrogate.slices
    for slice_ in worst[:2]:
        effect = effects[slice_.objective, slice_.slice]
        sentences.append(
            f"Doubling {slice_.objective}'s tokens "
            f"is believed to add {effect:.2f} to {slice_.slice}."
        )
    changes = ", ".join(f"{objective} {change:+z.2f}" for objective, change in expected.items())
    sentences.append(f"Expected against what was measured last: {changes}.")
    return " ".join(sentences)


def _largest_moves(observation: Observation, point: Weights) -> list[str]:
    """The three cells that gain most and the two that lose most, as sentences."""
    last = weights_of(observation.last_plan, observation.bucket_proportions)
    last_shares = cell_shares(*last)
    moves = []
    for (dataset, bucket), share in cell_shares(*point).items():
        before = last_shares.get((dataset, bucket), 0.0)
        moves.append((share - before, dataset, bucket, before, share))
    moves.sort()
    sentences = []
    for change, dataset, bucket, before, share in [*moves[-3:][::-1], *moves[:2]]:
        word = "more" if change > 0 else "less"
        sentences.append(
            f"{dataset} {bucket} gets {word}: "
            f"{100 * before:.1f} % to {100 * share:.1f} % of the tokens."
        )
    return sentences
