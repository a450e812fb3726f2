"""An observation under names that say nothing: what comes of it does not hang on what things are called.

Objectives, data sets and buckets are put in an order that follows from their figures alone, and
named by their places in it. Two things with equal figures keep the order in which they came. A
bucket and a slice of one name still share a name: that is how a config says what teaches what.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from agent.constraints import refused_plans
from agent.weights import Weights, bucket_weights
from mosaic.core.types.data import CurationReport
from mosaic.core.types.evaluation import FailureProfile
from mosaic.core.types.influence import Influence
from mosaic.core.types.plans import ActionPlan, Violation
from mosaic.core.types.runs import Observation, Round, Trial, each_trial

# What an unscored mean counts as in the order.
UNSCORED = -1.0
Key = tuple[Any, ...]
Value = TypeVar("Value")


class Names:
    """Real names and canonical ones, of objectives, data sets, and buckets or slices."""

    def __init__(self, observation: Observation) -> None:
        figures = _Figures(observation)
        self.objectives = _numbered("o", figures.objectives())
        self.datasets = _numbered("d", figures.datasets())
        self.buckets = _numbered("b", figures.names())
        self._real_datasets = {plain: real for real, plain in self.datasets.items()}
        self._real_buckets = {plain: real for real, plain in self.buckets.items()}
        self.real_objectives = {plain: real for real, plain in self.objectives.items()}

    def real_slice(self, name: str) -> str:
        """The real name of a bucket or slice."""
        return self._real_buckets[name]

    def real(self, weights: Weights) -> Weights:
        """The same weights under their real names."""
        ratios, buckets = {}, {}
        for dataset, ratio in weights.ratios.items():
            ratios[self._real_datasets[dataset]] = ratio
        for dataset, per_bucket in weights.buckets.items():
            named = {self._real_buckets[bucket]: weight for bucket, weight in per_bucket.items()}
            buckets[self._real_datasets[dataset]] = named
        return Weights(dict(sorted(ratios.items())), dict(sorted(buckets.items())))

    def plan(self, plan: ActionPlan) -> ActionPlan:
        """A plan's weights under canonical names, without its words and its focus."""
        buckets = {self.datasets[d]: self._of(w) for d, w in plan.bucket_weights.items()}
        changes = {
            "rationale": "",
            "ratios": _by_name({self.datasets[d]: r for d, r in plan.ratios.items()}),
            "bucket_weights": _by_name(buckets),
            "focus": {},
            "expected": {},
        }
        return plan.model_copy(update=changes)

    def _of(self, per_bucket: Mapping[str, float]) -> dict[str, float]:
        return _by_name({self.buckets[bucket]: weight for bucket, weight in per_bucket.items()})

    def observation(self, seen: Observation) -> Observation:
        """The observation under canonical names."""
        history = []
        for past in seen.history:
            history.append(self._round(past))
        calibration = seen.calibration
        if calibration is not None:
            noise = {self.objectives[o]: value for o, value in calibration.noise.items()}
            trials = [self._trial(trial) for trial in calibration.trials]
            calibration = calibration.model_copy(update={"trials": trials, "noise": noise})
        objectives = []
        for objective in seen.objectives:
            datasets = sorted(self.datasets[d] for d in objective.datasets if d in self.datasets)
            named: dict[str, object] = {
                "name": self.objectives[objective.name],
                "datasets": datasets,
            }
            objectives.append(objective.model_copy(update=named))
        stock = {}
        for dataset, held in seen.stock.items():
            stock[self.datasets[dataset]] = _by_name({self.buckets[b]: s for b, s in held.items()})
        feedback = []
        for plan in refused_plans(seen):
            value = self.plan(plan).json_data()
            feedback.append(Violation(path="plan", rule="rejected", value=value))
        proportions = {self.datasets[d]: self._of(w) for d, w in seen.bucket_proportions.items()}
        changes: dict[str, object] = {
            "objectives": sorted(objectives, key=lambda one: one.name),
            "profile": self._profile(seen.profile),
            "history": history,
            "calibration": calibration,
            "proportions": _by_name({self.datasets[d]: r for d, r in seen.proportions.items()}),
            "bucket_proportions": _by_name(proportions),
            "stock": _by_name(stock),
            "attributes": {},
            "last_plan": self.plan(seen.last_plan),
            "feedback": feedback,
            "influence": self._influence(seen.influence),
            "looks": [self._trial(look) for look in seen.looks],
            "below_floor": sorted(self.objectives[o] for o in seen.below_floor),
        }
        return seen.model_copy(update=changes)

    def _influence(self, influence: Influence | None) -> Influence | None:
        if influence is None:
            return None
        buckets = []
        for one in influence.buckets:
            if one.dataset not in self.datasets or one.bucket not in self.buckets:
                continue
            names = {
                "dataset": self.datasets[one.dataset],
                "bucket": self.buckets[one.bucket],
                "effects": self._known(one.effects),
            }
            buckets.append(one.model_copy(update=names))
        buckets.sort(key=lambda one: (one.dataset, one.bucket))
        prompts = self._known(influence.prompts)
        changes = {"buckets": buckets, "prompts": prompts, "without_rows": []}
        return influence.model_copy(update=changes)

    def _known(self, by_objective: Mapping[str, Value]) -> dict[str, Value]:
        """The same by the names inside, of objectives that the observation has."""
        found = {self.objectives[o]: one for o, one in by_objective.items() if o in self.objectives}
        return _by_name(found)

    def _round(self, past: Round) -> Round:
        return past.model_copy(update={"trials": [self._trial(trial) for trial in past.trials]})

    def _trial(self, trial: Trial) -> Trial:
        spec = trial.spec
        if spec.plan is not None:
            spec = spec.model_copy(update={"plan": self.plan(spec.plan)})
        changes = {
            "spec": spec,
            "scores": _by_name({self.objectives[o]: roles for o, roles in trial.scores.items()}),
            "profile": self._profile(trial.profile),
            "curation": self._curation(trial.curation),
        }
        return trial.model_copy(update=changes)

    def _profile(self, profile: FailureProfile) -> FailureProfile:
        slices = []
        for one in profile.slices:
            names = {"objective": self.objectives[one.objective], "slice": self.buckets[one.slice]}
            slices.append(one.model_copy(update=names))
        slices.sort(key=lambda one: (one.objective, one.slice))
        return profile.model_copy(update={"slices": slices})

    def _curation(self, report: CurationReport | None) -> CurationReport | None:
        if report is None:
            return None
        datasets = {}
        for dataset, one in report.datasets.items():
            buckets = _by_name({self.buckets[b]: given for b, given in one.buckets.items()})
            datasets[self.datasets[dataset]] = one.model_copy(update={"buckets": buckets})
        return report.model_copy(update={"datasets": _by_name(datasets)})


class _Figures:
    """The figures of everything that has a name, as keys that can be sorted."""

    def __init__(self, seen: Observation) -> None:
        self._seen = seen
        self._trials = [past.trial for past in each_trial(seen.history)]
        if seen.calibration:
            self._trials += seen.calibration.trials
        self._slices: dict[tuple[str, str], Key] = {}
        profiles = [seen.profile, *[trial.profile for trial in self._trials]]
        for number, profile in enumerate(profiles):
            for one in profile.slices:
                mean = UNSCORED if one.score.mean is None else one.score.mean
                figures = (number, mean, one.weight, one.score.n_scored)
                key = one.objective, one.slice
                self._slices[key] = (*self._slices.get(key, ()), figures)
        self._objectives = {o.name: self._objective(o.name) for o in seen.objectives}
        self._cells = {d: self._cells_of(d) for d in seen.stock}
        self._datasets = {d: self._dataset(d) for d in seen.stock}

    def objectives(self) -> dict[str, Key]:
        """Objective -> its figures, and those of its data sets."""
        keys = {}
        for objective in self._seen.objectives:
            mine = sorted(self._datasets[d] for d in objective.datasets if d in self._datasets)
            keys[objective.name] = (self._objectives[objective.name], tuple(mine))
        return keys

    def datasets(self) -> dict[str, Key]:
        """Data set -> its figures, and those of the objectives that name it."""
        keys = {}
        for dataset, figures in self._datasets.items():
            named = []
            for objective in self._seen.objectives:
                if dataset in objective.datasets:
                    named.append(self._objectives[objective.name])
            keys[dataset] = (figures, tuple(sorted(named)))
        return keys

    def names(self) -> dict[str, Key]:
        """Bucket or slice -> the figures of all buckets and slices of that name."""
        found: dict[str, list[Key]] = {}
        of_datasets, of_objectives = self.datasets(), self.objectives()
        for dataset, cells in self._cells.items():
            for bucket, figures in cells.items():
                found.setdefault(bucket, []).append((0, of_datasets[dataset], figures))
        for (objective, slice_), figures in self._slices.items():
            found.setdefault(slice_, []).append((1, of_objectives[objective], figures))
        return {name: tuple(sorted(keys)) for name, keys in found.items()}

    def _objective(self, name: str) -> Key:
        (spec,) = (o for o in self._seen.objectives if o.name == name)
        means = []
        for trial in self._trials:
            score = trial.scores.get(name, {}).get("selection")
            mean = None if score is None else score.mean
            means.append(UNSCORED if mean is None else mean)
        slices = sorted(key for (of, _), key in self._slices.items() if of == name)
        return (spec.target or 0.0, str(spec.floor), tuple(means), tuple(slices))

    def _dataset(self, dataset: str) -> Key:
        return (
            self._seen.proportions.get(dataset, 0.0),
            tuple(plan.ratios.get(dataset, 0.0) for plan in self._plans()),
            tuple(sorted(self._cells[dataset].values())),
        )

    def _cells_of(self, dataset: str) -> dict[str, Key]:
        """Bucket -> what it holds, and the weights that it has had."""
        seen = self._seen
        proportions = seen.bucket_proportions
        weights = [proportions.get(dataset, {})]
        for plan in self._plans():
            weights.append(bucket_weights(plan, dataset, proportions))
        keys: dict[str, Key] = {}
        for bucket, stock in seen.stock[dataset].items():
            key: Key = (stock.tokens, tuple(each.get(bucket, 0.0) for each in weights))
            if seen.influence is not None:
                key += (self._influence_of(dataset, bucket),)
            keys[bucket] = key
        return keys

    def _influence_of(self, dataset: str, bucket: str) -> Key:
        """What was estimated of a bucket; empty if nothing was."""
        assert self._seen.influence is not None
        for one in self._seen.influence.buckets:
            if (one.dataset, one.bucket) == (dataset, bucket):
                return (one.mean.value, *sorted(e.value for e in one.effects.values()))
        return ()

    def _plans(self) -> Sequence[ActionPlan]:
        plans = [self._seen.last_plan]
        plans += [trial.plan for trial in self._trials if trial.plan is not None]
        return plans


def _numbered(letter: str, keys: Mapping[str, Key]) -> dict[str, str]:
    """Name -> letter and place in the order of the keys; equal keys keep their order."""
    ordered = sorted(keys, key=lambda name: keys[name])
    return {name: f"{letter}{place:04d}" for place, name in enumerate(ordered)}


def _by_name(values: dict[str, Value]) -> dict[str, Value]:
    return dict(sorted(values.items()))
