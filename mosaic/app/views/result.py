"""What a run came to, said with its numbers: against the static mixture, the base and the targets.

The static mixture is the pools' own proportions. What it brings is not the agent's work, so that the
chosen round is held against it first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import fmean

from agent.noise import mean_noise
from agent.pareto import hypervolume
from agent.state import RunState
from eval.statistics import summarise
from mosaic.app.shapes import (
    AuditShape,
    Compared,
    Comparison,
    IndependentShape,
    Met,
    RankedShape,
    Report,
    StaticShape,
    TargetShape,
)
from mosaic.core.store import Store
from mosaic.core.types.evaluation import Difference, IndependentScores, Score, Scored
from mosaic.core.types.runs import Calibration
from tools.effects.evaluate import BOOTSTRAP_SEED

STATIC = "the pools' own proportions"
SELECTION = "selection"


# -- the static mixture ----------------------------------------------------------------------------


def static_of(folder: Path, state: RunState) -> StaticShape | None:
    """The static mixture on the selection suites: the mean of the calibration's trainings.

    Its intervals are over prompts, each with its mean over the trainings. None without calibration.
    """
    calibration = state.calibration
    if calibration is None:
        return None
    scores = {}
    for objective in calibration.trials[0].scores:
        scores[objective] = _mean_score(str(folder), _scored_files(calibration, objective))
    point = [scores[name].mean for name in state.objectives if name in scores]
    volume = None
    if point and None not in point:
        volume = hypervolume([[mean for mean in point if mean is not None]])
    return StaticShape(
        trainings=len(calibration.trials),
        plan=calibration.mixture,
        selection=scores,
        hypervolume=volume,
    )


def _scored_files(calibration: Calibration, objective: str) -> tuple[str, ...]:
    """Digests of what each training's answers to the selection suite were scored."""
    return tuple(trial.files[objective][SELECTION].scored for trial in calibration.trials)


@lru_cache(maxsize=256)
def _mean_score(folder: str, files: tuple[str, ...]) -> Score:
    """The score of prompts, each with its mean over several trainings' answers.

    What is filed under a digest never changes, so that a page need not read it again.
    """
    store = Store(Path(folder))
    answers: dict[str, list[Scored]] = {}
    for digest in files:
        for line in store.get_json(digest):
            item = Scored.model_validate(line)
            answers.setdefault(item.id, []).append(item)
    return summarise([_mean_item(items) for items in answers.values()], BOOTSTRAP_SEED)


def _mean_item(items: Sequence[Scored]) -> Scored:
    """One prompt with its mean score; unscored only if it never was scored."""
    scores = [item.score for item in items if item.status == "ok" and item.score is not None]
    if not scores:
        return items[0]
    first = next(item for item in items if item.status == "ok")
    return first.model_copy(update={"score": fmean(scores)})


# -- comparisons and targets -----------------------------------------------------------------------


def compared(changes: Mapping[str, Difference], noise: Mapping[str, float]) -> list[Comparison]:
    """Whether each objective is better, worse, or cannot be told apart.

    Better is an interval above 0 of enough independent prompts. Worse is what `Difference.fell`
    calls a fall: an interval below 0, or a mean that fell by more than the noise of a training.
    Runs of earlier releases did not count the prompts; there the interval alone decides.
    """
    found = []
    for objective, change in changes.items():
        word: Compared = "not told apart"
        if change.fell(noise[objective]):
            word = "worse"
        elif change.low > 0 and not (change.clusters and change.few):
            word = "better"
        found.append(Comparison(objective=objective, verdict=word, change=change))
    return found


def independent_of(
    found: Mapping[str, IndependentScores], calibration: Calibration | None
) -> dict[str, IndependentShape]:
    """Independent suites by name, each held against the static mixture and the base.

    The noise of a training is that of the objective which judges the suite, or what is usual if the
    run has no such objective.
    """
    shapes = {}
    for name, scores in found.items():
        measured = calibration is not None and scores.objective in calibration.noise
        noise = mean_noise(calibration if measured else None, scores.objective).deviation
        sides = [
            compared({name: change}, {name: noise})[0] if change is not None else None
            for change in (scores.gain, scores.against_base)
        ]
        shapes[name] = IndependentShape(
            objective=scores.objective,
            base=scores.base,
            static=scores.static,
            chosen=scores.chosen,
            against_static=sides[0],
            against_base=sides[1],
        )
    return shapes


def targets_of(targets: Mapping[str, float | None], audit: AuditShape | None) -> list[TargetShape]:
    """Each target held against the chosen round's audit; none without a chosen round.

    Met if the whole interval lies at or above it, missed if it lies below.
    """
    found = []
    for objective, target in targets.items():
        score = audit.chosen.get(objective) if audit else None
        if target is None or score is None:
            continue
        found.append(
            TargetShape(
                objective=objective, target=target, verdict=_met(score, target), score=score
            )
        )
    return found


def _met(score: Score, target: float) -> Met:
    """
    >>> score = Score(mean=4.4, low=4.2, high=4.6, n_scored=40)
    >>> _met(score, 4.2), _met(score, 4.3), _met(score, 4.7)
    ('met', 'not shown to be met', 'missed')
    """
    if score.low is None or score.high is None:
        return "not shown to be met"
    if score.high < target:
        return "missed"
    return "met" if score.low >= target and not score.few else "not shown to be met"


# -- sentences -------------------------------------------------------------------------------------


def headline(report: Report) -> list[str]:
    """The result in sentences: against the static mixture first, then against the base."""
    if report.audit is None:
        return []
    if report.chosen is None:
        return [f"No round was chosen: {_none_chosen(report)}."]
    chosen = f"Round {report.chosen}"
    lines = []
    if report.audit.against_static:
        told = comparison_text(report.audit.against_static)
        lines.append(f"{chosen} against {STATIC}, on the audit suites: {told}.")
    else:
        lines.append(f"{chosen} cannot be held against {STATIC}: they were not audited.")
    if report.audit.compared_to_base:
        told = comparison_text(report.audit.compared_to_base)
        lines.append(f"{chosen} against the base: {told}.")
    return lines


def comparison_text(found: Sequence[Comparison]) -> str:
    """Comparisons in words, what is better first."""
    parts = []
    for word in ("better", "worse", "not told apart"):
        names = [difference_text(one) for one in found if one.verdict == word]
        if names:
            lead = "cannot be told apart in" if word == "not told apart" else f"{word} in"
            parts.append(f"{lead} {', '.join(names)}")
    return "; ".join(parts)


def difference_text(one: Comparison) -> str:
    change = one.change
    name = one.objective.replace("_", " ")
    return f"{name} {change.mean:+z.2f} ({change.low:+z.2f} to {change.high:+z.2f})"


def worse_sentences(report: Report) -> list[str]:
    """Where a result is worse than the static mixture or the base: what its first line says."""
    if report.audit is None:
        return []
    found = []
    tests = report.audit.independent.values()
    sides = (
        (report.audit.against_static, STATIC),
        (report.audit.compared_to_base, "the base"),
        ([test.against_static for test in tests], f"{STATIC} on independent suites"),
        ([test.against_base for test in tests], "the base on independent suites"),
    )
    for comparisons, than in sides:
        worse = [one for one in comparisons if one is not None and one.verdict == "worse"]
        parts = [difference_text(one) for one in worse]
        if parts:
            found.append(f"worse than {than}: {', '.join(parts)}")
    return found


def target_text(target: TargetShape) -> str:
    """A target and whether it was met.

    >>> score = Score(mean=4.4, low=4.2, high=4.6, n_scored=40)
    >>> target_text(TargetShape(objective="safety", target=4.7, verdict="missed", score=score))
    'safety 4.7 missed: 4.40 (4.20 to 4.60)'
    """
    name, score = target.objective.replace("_", " "), target.score
    lead = f"{name} {target.target:g} {target.verdict}"
    if score.mean is None or score.low is None or score.high is None:
        return f"{lead}: not scored"
    return f"{lead}: {score.mean:.2f} ({score.low:.2f} to {score.high:.2f})"


def why_chosen(report: Report) -> str:
    """Why the chosen round and no other, in one sentence with its numbers; empty if none is."""
    first = next((one for one in report.ranking if one.round == report.chosen), None)
    if first is None:
        return ""
    others = [one for one in report.ranking if one is not first]
    lead = f"Round {first.name} was chosen"
    if not others:
        return f"{lead} because it is the only planned round of the archive."
    second = others[0]
    # Targets of constraints count for `stop.at_targets` only.
    if all(report.targets.get(name) is None for name in report.traded):
        if first.volume == second.volume:
            return f"{lead} as the earliest of equal volume, {_volumes(first, second)}."
        return f"{lead} for its volume, {_volumes(first, second)}."
    short = (
        f"{lead} because it is expected to fall short of the targets by {first.shortfall:.2f} "
        f"points in all, noise counted, the next best, round {second.name}, by "
        f"{second.shortfall:.2f}"
    )
    if first.shortfall != second.shortfall:
        return f"{short}."
    if first.volume == second.volume:
        return f"{short}; their volumes are equal too, and it is the earlier one."
    return f"{short}; of the two its volume is greater, {_volumes(first, second)}."


def _volumes(first: RankedShape, second: RankedShape) -> str:
    return f"{first.volume:.3f} against {second.volume:.3f} of round {second.name}"


def _none_chosen(report: Report) -> str:
    planned = [one for one in report.trials if one.plan]
    if not planned:
        return "no planned round ran"
    refused = [f"round {r.name}: {r.reason}" for r in planned if not r.accepted]
    if len(refused) == len(planned):
        return f"none may enter the archive ({'; '.join(refused)})"
    return "every planned round is dominated, by the base or another"


def unknowns(report: Report) -> list[str]:
    """What the run could not know, so that nobody reads more into its numbers; a sentence each."""
    lines = []
    calibration = report.calibration
    if calibration is not None and calibration.believed:
        lows = [noise.low for noise in calibration.believed.values()]
        highs = [noise.high for noise in calibration.believed.values()]
        count = len(calibration.trials)
        known = f"from {count} trainings" if count > 1 else "from one training"
        lines.append(
            f"How far a mean moves from one training to the next is known {known} of one mixture: "
            f"it may be {min(lows):.2f} to {max(highs):.2f} points."
        )
    if report.chosen is not None:
        lines.append(
            f"Round {report.chosen_name} was trained once. The intervals are over prompts; another "
            "training of the same plan may lie outside of them."
        )
        lines += _chances(report)
    audit = report.audit
    for objective, score in (audit.chosen if audit else {}).items():
        lines += _thin(score, "audit prompts of " + objective.replace("_", " "))
    for name, test in (audit.independent if audit else {}).items():
        lines += _thin(test.chosen or test.base, f"prompts of the independent suite {name}")
    return lines


def _thin(score: Score, prompts: str) -> list[str]:
    """What is not known since too little was scored; `prompts` says of what."""
    lines = []
    if score.n_unscored:
        total = score.n_scored + score.n_unscored
        lines.append(f"{score.n_unscored:,} of {total:,} {prompts} have no score.")
    if score.few:
        lines.append(
            f"Only {score.clusters} {prompts} that do not depend on each other were scored, too few "
            "to rely on the interval."
        )
    return lines


def _chances(report: Report) -> list[str]:
    """How sure the choice is, if there was one to make."""
    chosen = next((one for one in report.ranking if one.round == report.chosen), None)
    others = [one for one in report.ranking if one is not chosen]
    if chosen is None or not others:
        return []
    rival = max(others, key=lambda one: one.best)
    lines = [
        f"Round {chosen.name} is the best of its archive with a probability of "
        f"{100 * chosen.best:.0f} %, round {rival.name} with {100 * rival.best:.0f} %."
    ]
    if rival.best <= chosen.best:
        return lines
    if rival.shortfall > chosen.shortfall:
        lines.append(
            f"Round {chosen.name} is chosen because it is expected to miss its targets by less: "
            f"{chosen.shortfall:.3f} points in all, round {rival.name} {rival.shortfall:.3f}."
        )
    elif rival.volume == chosen.volume:
        lines.append(
            f"Round {chosen.name} is chosen because it is the earlier one: what the two came to is equal."
        )
    else:
        lines.append(
            f"Round {chosen.name} is chosen because its means dominate more of the volume: "
            f"{chosen.volume:.3f}, those of round {rival.name} {rival.volume:.3f}."
        )
    return lines
