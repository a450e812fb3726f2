"""What a planner may ask while it plans. Every call is kept for the trace, with its answer.

The tools read what was measured (never the items of the selection or audit suites), the pool's
stock and the past, and check a draft. None of them has an effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from mosaic.core.errors import UsageError
from mosaic.core.types.base import JsonObject, canonical_json
from mosaic.core.types.evaluation import SliceProfile
from mosaic.core.types.influence import BucketInfluence
from mosaic.core.types.plans import ActionPlan, Violation
from mosaic.core.types.runs import Observation, Round, Stage, each_trial

Filter = Literal["failed", "passed", "borderline", "all"]
# (objective, slice, filter, n) -> steering items: `label`, `score`, `failed` and maybe `answer`.
Examples = Callable[[str, str, Filter, int], list[JsonObject]]
# A plan, and the plans of its round that it must differ from if there are any -> what it breaks.
Check = Callable[..., list[Violation]]
# A plan -> what is expected of it; how many, bounds -> mixtures that are expected to gain most.
Predict = Callable[[ActionPlan], JsonObject]
Bounds = Mapping[str, tuple[float, float]]
Suggest = Callable[[int, Bounds], list[JsonObject]]
# What a tool says, and one line of the trace: `tool`, `arguments` and `result`, or a `conclusion`.
Answer = dict[str, object]
TraceLine = dict[str, object]

MAX_EXAMPLES = 20


class Toolbox:
    """The tools of one planning call.

    `examples` reads steering items; `check` holds a plan against all constraints; `predict` and
    `suggest` ask the surrogate.
    """

    def __init__(
        self,
        observation: Observation,
        examples: Examples,
        check: Check,
        predict: Predict | None = None,
        suggest: Suggest | None = None,
    ) -> None:
        self._observation = observation
        self._examples = examples
        self._check = check
        self._predict = predict
        self._suggest = suggest
        self.calls: list[TraceLine] = []

    @property
    def has_surrogate(self) -> bool:
        """Whether `predict` and `suggest` have somebody to ask."""
        return self._predict is not None

    # -- the tools --------------------------------------------------------------------------------

    def call(self, tool: str, arguments: JsonObject) -> object:
        """Answer one tool call by name. Raises UsageError for a tool that does not exist."""
        tools: dict[str, Callable[..., object]] = {
            "diagnose_slice": self.diagnose_slice,
            "show_examples": self.show_examples,
            "pool_stock": self.pool_stock,
            "past_rounds": self.past_rounds,
            "estimate_influence": self.estimate_influence,
            "predict": self.predict,
            "suggest": self.suggest,
            "check_plan": self.check_plan,
        }
        if tool not in tools:
            raise UsageError(f"no tool {tool!r}; there are {', '.join(tools)}")
        return tools[tool](**arguments)

    def diagnose_slice(self, objective: str, slice: str) -> Answer:
        """Mean, 95 % interval, failure rate, gap to target, reliability, breakdown and past means.

        Raises UsageError for a slice that was not measured.
        """
        found = self._slice(objective, slice)
        warning = None
        if found.reliability != "high":
            warning = f"reliability is {found.reliability}: change little"
        answer: Answer = {
            **found.json_data(),
            "gap_to_target": self._gap_to_target(objective, found.score.mean),
            "past_means": self._past_means(objective, slice),
            "warning": warning,
        }
        self.record("diagnose_slice", {"objective": objective, "slice": slice}, answer)
        return answer

    def show_examples(
        self, objective: str, slice: str, filter: Filter = "failed", n: int = 5, text: bool = False
    ) -> list[JsonObject]:
        """Up to `n` (at most 20) steering items of a slice with their labels, of one kind or all.

        `text` adds the end of each answer, which the model under training wrote: whoever shows it
        to a model wraps it. Raises UsageError for a slice that was not measured.
        """
        self._slice(objective, slice)
        shown = self._examples(objective, slice, filter, min(n, MAX_EXAMPLES))
        if not text:
            shown = [_without_answer(item) for item in shown]
        arguments = {"objective": objective, "slice": slice, "filter": filter, "n": n}
        self.record("show_examples", arguments, shown)
        return shown

    def pool_stock(self, dataset: str) -> Answer:
        """Rows and tokens per bucket after the quality filter.

        Raises UsageError for a data set that the pool does not have.
        """
        stock = self._observation.stock
        if dataset not in stock:
            raise UsageError(f"no data set {dataset!r}; known: {sorted(stock)}")
        answer: Answer = {bucket: held.json_data() for bucket, held in stock[dataset].items()}
        self.record("pool_stock", {"dataset": dataset}, answer)
        return answer

    def past_rounds(self, last: int | None = None) -> list[Answer]:
        """Each past round: plan, selection means, acceptance, forecast against outcome.

        With `last` the base and so many of the latest.
        """
        past = each_trial(self._observation.history)
        if last is not None and len(past) > last:
            past = [*past[:1], *past[-last:]]
        lines = [self._past_round(one) for one in past]
        self.record("past_rounds", {}, lines)
        return lines

    def estimate_influence(self, dataset: str) -> Answer:
        """Effect of a little more of each bucket of a data set, with standard errors.

        It was estimated before the round is planned; nothing is computed here. Raises UsageError for
        a data set without an estimate, and if the run estimates no influence.
        """
        influence = self._observation.influence
        if influence is None:
            raise UsageError(
                "this run estimates no influence; add `influence: {}` to the config of a new run"
            )
        buckets = [found for found in influence.buckets if found.dataset == dataset]
        if not buckets:
            known = sorted({found.dataset for found in influence.buckets})
            raise UsageError(f"no influence of data set {dataset!r}; known: {known}")
        answer: Answer = {found.bucket: _influence_of(found) for found in buckets}
        self.record("estimate_influence", {"dataset": dataset}, answer)
        return answer

    def predict(self, plan: ActionPlan | JsonObject) -> JsonObject:
        """What a draft plan is expected to bring, by the rounds of this run.

        Raises UsageError if nothing is fitted to these.
        """
        draft = plan if isinstance(plan, ActionPlan) else ActionPlan.model_validate(plan)
        if self._predict is None:
            raise UsageError("nothing is fitted to the rounds of this run")
        answer = self._predict(draft)
        self.record("predict", {"plan": draft.json_data()}, answer)
        return answer

    def suggest(self, n: int, bounds: Sequence[JsonObject] = ()) -> list[JsonObject]:
        """Up to `n` mixtures that are expected to gain most, within bounds on data sets' shares.

        A bound names `dataset`, `at_least` and `at_most`. Raises UsageError for a data set that the
        pool does not have, and if nothing is fitted to the rounds.
        """
        if self._suggest is None:
            raise UsageError("nothing is fitted to the rounds of this run")
        limits = {}
        for bound in bounds:
            dataset = str(bound["dataset"])
            if dataset not in self._observation.bucket_proportions:
                known = sorted(self._observation.bucket_proportions)
                raise UsageError(f"no data set {dataset!r}; known: {known}")
            limits[dataset] = (float(str(bound["at_least"])), float(str(bound["at_most"])))
        answer = self._suggest(n, limits)
        self.record("suggest", {"n": n, "bounds": list(bounds)}, answer)
        return answer

    def check_plan(
        self, plan: ActionPlan | JsonObject, siblings: Sequence[ActionPlan] = ()
    ) -> Answer:
        """Cost in tokens and violations of a draft plan.

        `siblings` are plans of the round that it must differ from.
        """
        draft = plan if isinstance(plan, ActionPlan) else ActionPlan.model_validate(plan)
        answer: Answer = {
            "tokens": self._observation.cost_per_round,
            "violations": [violation.json_data() for violation in self.violations(draft, siblings)],
        }
        self.record("check_plan", {"plan": draft.json_data()}, answer)
        return answer

    def violations(self, plan: ActionPlan, siblings: Sequence[ActionPlan] = ()) -> list[Violation]:
        """What the limits say about a plan. Nothing is kept."""
        return self._check(plan, siblings) if siblings else self._check(plan)

    # -- the trace --------------------------------------------------------------------------------

    def conclude(self, text: str) -> None:
        """Keep a conclusion of the planner for the trace."""
        self.calls.append({"conclusion": text})

    def record(self, tool: str, arguments: Mapping[str, object], result: object) -> None:
        """Keep a tool call, or something else a planner did, such as a question to a model."""
        self.calls.append({"tool": tool, "arguments": arguments, "result": result})

    def trace(self) -> list[TraceLine]:
        """All calls and conclusions in order, as plain JSON.

        Raises ValueError or TypeError for what JSON cannot hold.
        """
        canonical_json(self.calls)
        return list(self.calls)

    # -- what the answers are made of -------------------------------------------------------------

    def _slice(self, objective: str, slice_: str) -> SliceProfile:
        found = self._observation.profile.find(objective, slice_)
        if found is None:
            known = sorted({s.slice for s in self._observation.profile.of(objective)})
            raise UsageError(f"no slice {slice_!r} of objective {objective!r}; known: {known}")
        return found

    def _gap_to_target(self, objective: str, mean: float | None) -> float | None:
        for spec in self._observation.objectives:
            if spec.name == objective and spec.target is not None and mean is not None:
                return round(spec.target - mean, 4)
        return None

    def _past_means(self, objective: str, slice_: str) -> list[list[float | None]]:
        """[round, mean] of a slice for every round that measured it."""
        means: list[list[float | None]] = []
        for past in self._observation.history:
            found = past.profile.find(objective, slice_)
            if found:
                means.append([past.round, found.score.mean])
        return means

    def _past_round(self, past: Round) -> Answer:
        names = self._observation.names
        point = past.point(names)
        means = dict(zip(names, point, strict=True)) if point else dict.fromkeys(names)
        told: Answer = {
            "round": past.round,
            "ratios": past.plan.ratios if past.plan else None,
            "bucket_weights": past.plan.bucket_weights if past.plan else None,
            "delivered": delivered_told(past),
            "selection": means,
            "accepted": past.accepted,
            "forecast": [forecast.json_data() for forecast in past.forecast],
        }
        if past.trial.stages:
            told["method_shares"] = past.plan.method_shares if past.plan else None
            told["stages"] = stages_told(past.trial.stages)
        return told


def delivered_told(past: Round) -> dict[str, dict[str, int]] | None:
    """Data set -> bucket -> tokens that the round was trained on; None if nothing was curated."""
    if past.curation is None:
        return None
    told = {}
    for dataset, report in past.curation.datasets.items():
        told[dataset] = {bucket: given.selected for bucket, given in report.buckets.items()}
    return told


def stages_told(stages: Sequence[Stage]) -> list[JsonObject]:
    """What each method of a round cost and brought, for a planner: numbers and names only."""
    lines: list[JsonObject] = []
    for stage in stages:
        line: JsonObject = {
            "method": stage.method,
            "tokens": stage.usage.cost,
            "steering": {o: score.mean for o, score in stage.steering.items()},
        }
        if stage.pairs is not None:
            line |= {
                "pairs": stage.pairs.pairs,
                "practice_prompts": stage.pairs.prompts,
                "pairs_by_slice": dict(stage.pairs.slices),
            }
        lines.append(line)
    return lines


def _influence_of(found: BucketInfluence) -> JsonObject:
    """Objective -> fall of its steering loss per percent of the tokens, and whether it is clear."""
    effects: JsonObject = {"share": round(found.share, 4)}
    for objective, effect in {**found.effects, "all": found.mean}.items():
        effects[objective] = {
            "effect": effect.value,
            "standard_error": effect.standard_error,
            "clear": effect.is_clear,
        }
    return effects


def _without_answer(item: JsonObject) -> JsonObject:
    kept = dict(item)
    kept.pop("answer", None)
    return kept
