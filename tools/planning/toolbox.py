"""What a planner may ask while it plans. Every call is kept, with its arguments and its answer, for the trace.

The tools read what was measured (never the selection or audit suites' items), the pool's stock and the past, and
check a draft. None of them has an effect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from mosaic.core.errors import UsageError
from mosaic.core.types.base import canonical_json
from mosaic.core.types.plans import ActionPlan, Violation
from mosaic.core.types.runs import Observation, Round

Filter = Literal["failed", "passed", "borderline", "all"]
Examples = Callable[[str, str, Filter, int], list[dict[str, Any]]]
Check = Callable[[ActionPlan], list[Violation]]


class Toolbox:
    """The tools of one planning call. `examples` reads steering items; `check` holds a plan against all constraints."""

    def __init__(self, observation: Observation, examples: Examples, check: Check) -> None:
        self._observation = observation
        self._examples = examples
        self._check = check
        self.calls: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def call(self, tool: str, arguments: dict[str, Any]) -> Any:
        """Answer one tool call by name. UsageError for a tool that does not exist."""
        tools: dict[str, Callable[..., Any]] = {
            "diagnose_slice": self.diagnose_slice,
            "show_examples": self.show_examples,
            "pool_stock": self.pool_stock,
            "past_rounds": self.past_rounds,
            "check_plan": self.check_plan,
        }
        if tool not in tools:
            raise UsageError(f"no tool {tool!r}; there are {', '.join(tools)}")
        return tools[tool](**arguments)

    def conclude(self, text: str) -> None:
        """Keep a conclusion of the planner for the trace."""
        self.notes.append(text)
        self.calls.append({"conclusion": text})

    def _keep(self, tool: str, arguments: dict[str, Any], answer: Any) -> Any:
        self.calls.append({"tool": tool, "arguments": arguments, "result": answer})
        return answer

    def diagnose_slice(self, objective: str, slice: str) -> dict[str, Any]:
        """Mean, 95 % interval, failure rate, gap to target, reliability, breakdown and history of one slice."""
        found = self._observation.profile.find(objective, slice)
        if found is None:
            known = sorted({s.slice for s in self._observation.profile.of(objective)})
            raise UsageError(f"no slice {slice!r} of objective {objective!r}; known: {known}")
        target = next((o.target for o in self._observation.objectives if o.name == objective), None)
        past = [
            (r.round, s.score.mean)
            for r in self._observation.history
            if (s := r.profile.find(objective, slice))
        ]
        mean = found.score.mean
        answer = {
            **found.json_data(),
            "gap_to_target": None if target is None or mean is None else round(target - mean, 4),
            "past_means": [[number, value] for number, value in past],
            "warning": None
            if found.reliability == "high"
            else f"reliability is {found.reliability}: change little",
        }
        return self._keep("diagnose_slice", {"objective": objective, "slice": slice}, answer)

    def show_examples(
        self, objective: str, slice: str, filter: Filter = "failed", n: int = 5, text: bool = False
    ) -> list[dict[str, Any]]:
        """Up to `n` (at most 20) steering items of a slice with their labels: failed, passed, borderline or all.

        `text` adds the end of each answer, which the model under training wrote: whoever shows it to a model wraps it.
        """
        if self._observation.profile.find(objective, slice) is None:
            known = sorted({s.slice for s in self._observation.profile.of(objective)})
            raise UsageError(f"no slice {slice!r} of objective {objective!r}; known: {known}")
        arguments = {"objective": objective, "slice": slice, "filter": filter, "n": n}
        found = self._examples(objective, slice, filter, min(n, 20))
        shown = (
            found if text else [{k: v for k, v in item.items() if k != "answer"} for item in found]
        )
        return self._keep("show_examples", arguments, shown)

    def record(self, tool: str, arguments: dict[str, Any], result: Any) -> None:
        """Keep something a planner did beside the tools, such as a question to a model."""
        self._keep(tool, arguments, result)

    def pool_stock(self, dataset: str) -> dict[str, Any]:
        """Rows and tokens per bucket after the quality filter, and the bucket's share of the last executed plan."""
        stock = self._observation.stock
        if dataset not in stock:
            raise UsageError(f"no data set {dataset!r}; known: {sorted(stock)}")
        answer = {bucket: s.json_data() for bucket, s in stock[dataset].items()}
        return self._keep("pool_stock", {"dataset": dataset}, answer)

    def past_rounds(self) -> list[dict[str, Any]]:
        """Each past round: plan, selection means, acceptance, forecast against outcome."""
        names = [o.name for o in self._observation.objectives]

        def line(past: Round) -> dict[str, Any]:
            point: list[float] | list[None] = past.point(names) or [None for _ in names]
            return {
                "round": past.round,
                "ratios": past.plan.ratios if past.plan else None,
                "bucket_weights": past.plan.bucket_weights if past.plan else None,
                "selection": dict(zip(names, point, strict=True)),
                "accepted": past.accepted,
                "forecast": [f.json_data() for f in past.forecast],
            }

        return self._keep("past_rounds", {}, [line(r) for r in self._observation.history])

    def check_plan(self, plan: ActionPlan | dict[str, Any]) -> dict[str, Any]:
        """Cost in tokens and violations of a draft plan."""
        draft = plan if isinstance(plan, ActionPlan) else ActionPlan.model_validate(plan)
        violations = self.violations(draft)
        answer = {
            "tokens": self._observation.cost_per_round,
            "violations": [v.json_data() for v in violations],
        }
        self._keep("check_plan", {"plan": draft.json_data()}, answer)
        return answer

    def violations(self, plan: ActionPlan) -> list[Violation]:
        """What the limits say about a plan; nothing is kept."""
        return self._check(plan)

    def trace(self) -> list[dict[str, Any]]:
        """All calls and conclusions in order, as plain JSON."""
        canonical_json(self.calls)
        return list(self.calls)
