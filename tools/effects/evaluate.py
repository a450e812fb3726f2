"""Evaluation as steps: responses in shards, judgments and scores per suite, all filed.

A shard holds at most 256 conversations of one suite, so that a kill costs little. Roles are evaluated as asked:
the audit suites are not touched before the end of a run because nobody asks for them earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.generators.base import Generator
from eval.judges.base import Judge
from eval.objectives.base import Objective
from eval.scoring import judge_and_score
from eval.statistics import summarise
from eval.suite import Suite
from mosaic.core.steps import Outcome, Steps
from mosaic.core.types.evaluation import Judgment, Response, Score, Scored

SHARD = 256
BOOTSTRAP_SEED = 20260101

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Evaluation:
    """Scored answers of one model: objective -> role -> items, and the digests they are filed under."""

    scored: Mapping[str, Mapping[str, list[Scored]]]
    digests: Mapping[str, Mapping[str, dict[str, str]]]

    def scores(self) -> dict[str, dict[str, Score]]:
        """Objective -> role -> mean with its interval."""
        return {
            objective: {role: summarise(items, BOOTSTRAP_SEED) for role, items in roles.items()}
            for objective, roles in self.scored.items()
        }

    def of_role(self, role: str) -> dict[str, list[Scored]]:
        return {objective: roles[role] for objective, roles in self.scored.items()}


class Evaluator:
    """Evaluates one base model with or without an adapter on the suites of a run."""

    def __init__(
        self,
        steps: Steps,
        generator: Generator,
        judge: Judge,
        objectives: Mapping[str, Objective],
        suites: Mapping[str, Mapping[str, Suite]],
        identity: dict[str, Any],
        progress: Progress | None = None,
    ) -> None:
        """`identity` names base model and generator settings by value or digest, for the journal."""
        self.steps = steps
        self.generator = generator
        self.judge = judge
        self.objectives = objectives
        self.suites = suites
        self.identity = identity
        self.progress = progress
        self._serving = False

    def evaluate(self, adapter: str | None, roles: Sequence[str]) -> Evaluation:
        """Generate, judge and score. `adapter` is a digest in the store; None is the base model."""
        try:
            return self._evaluate(adapter, roles)
        finally:
            if self._serving:  # what is read from the journal asks no generator
                self._serving = False
                self.generator.release()

    def _evaluate(self, adapter: str | None, roles: Sequence[str]) -> Evaluation:
        scored: dict[str, dict[str, list[Scored]]] = {}
        digests: dict[str, dict[str, dict[str, str]]] = {}
        for name, objective in self.objectives.items():
            scored[name], digests[name] = {}, {}
            for role in roles:
                suite = self.suites[name][role]
                responses = (
                    self._likelihoods(suite, adapter)
                    if objective.evidence == "likelihood"
                    else None
                )
                files = self._judged(objective, suite, responses or self._generated(suite, adapter))
                scored[name][role] = [
                    Scored.model_validate(s) for s in self.steps.store.get_json(files["scored"])
                ]
                digests[name][role] = files
        return Evaluation(scored, digests)

    def _generated(self, suite: Suite, adapter: str | None) -> list[str]:
        """Digests of the filed response shards of one suite."""
        store, shards = self.steps.store, []
        for start in range(0, len(suite.prompts), SHARD):
            prompts = suite.prompts[start : start + SHARD]

            def effect(prompts: Sequence[Any] = prompts) -> Outcome:
                self._serving = True
                responses = self.generator.generate(
                    prompts, store.path(adapter) if adapter else None
                )
                digest = store.put_json([r.json_data() for r in responses])
                tokens = sum(r.n_tokens for r in responses)
                return Outcome(
                    {"responses": digest, "tokens": tokens, "conversations": len(prompts)}
                )

            inputs = {
                **self.identity,
                "adapter": adapter,
                "suite": suite.digest,
                "shard": [start, start + len(prompts)],
            }
            step = self.steps.run("generate", inputs, effect)
            shards.append(str((step.result or {})["responses"]))
            if self.progress:
                self.progress(
                    f"{suite.objective} {suite.role}", start + len(prompts), len(suite.prompts)
                )
        return shards

    def _likelihoods(self, suite: Suite, adapter: str | None) -> list[str]:
        """For objectives that read likelihoods: the digest of one filed list of judgments, one per held-out text."""
        store = self.steps.store

        def effect() -> Outcome:
            path: Path | None = store.path(adapter) if adapter else None
            self._serving = True
            values = self.generator.log_likelihood(
                [prompt.turns[0] for prompt in suite.prompts], path
            )
            lines = [
                {"id": p.id, "status": "ok", "items": {"log_likelihood": v}, "judge": "likelihood"}
                for p, v in zip(suite.prompts, values, strict=True)
            ]
            return Outcome({"responses": store.put_json(lines)})

        step = self.steps.run(
            "likelihood", {**self.identity, "adapter": adapter, "suite": suite.digest}, effect
        )
        return [str((step.result or {})["responses"])]

    def _judged(self, objective: Objective, suite: Suite, shards: Sequence[str]) -> dict[str, str]:
        """Digests of the filed responses, judgments and scores of one suite."""
        store = self.steps.store

        def effect() -> Outcome:
            lines = [line for digest in shards for line in store.get_json(digest)]
            if objective.evidence == "likelihood":
                judgments = [Judgment.model_validate(line) for line in lines]
                scored = [objective.score({"id": j.id, **j.items}) for j in judgments]
            else:
                responses = [Response.model_validate(line) for line in lines]
                judgments, scored = judge_and_score(objective, suite, responses, self.judge)
            return Outcome(
                {
                    "responses": store.put_json(lines),
                    "judgments": store.put_json([j.json_data() for j in judgments]),
                    "scored": store.put_json([s.json_data() for s in scored]),
                }
            )

        inputs = {
            "responses": list(shards),
            "suite": suite.digest,
            "objective": objective.name,
            "judge": self.judge.digest,
        }
        step = self.steps.run("judge", inputs, effect)
        return {name: str(digest) for name, digest in (step.result or {}).items()}
