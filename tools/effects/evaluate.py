"""Evaluation as steps: responses in shards, judgments and scores per suite, all filed.

An objective that reads likelihoods has no responses: each text is measured with the adapter and
with the base, whose likelihoods are one step of their own and measured once.

A shard holds at most 256 conversations of one suite, so that a kill costs little. Roles are
evaluated as asked: the audit suites are not touched before the end of a run because nobody asks for
them earlier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from eval.generators.base import Generator
from eval.judges.base import Judge
from eval.objectives.base import Objective
from eval.scoring import judge_and_score, score_judgments
from eval.statistics import summarise
from eval.suite import IndependentSuite, Suite
from mosaic.core.steps import Outcome, Steps
from mosaic.core.types.base import JsonObject
from mosaic.core.types.evaluation import (
    Judgment,
    Prompt,
    Response,
    Score,
    Scored,
    SuiteFiles,
)
from mosaic.core.types.records import Generate, JudgeSuite, LikelihoodMeasured, MeasureLikelihood
from mosaic.core.types.runs import GREEDY, Sampling
from mosaic.core.types.step_inputs import Generated
from prompts.levels import stated
from tools.effects.steering_judge import LevelJudge, SteeringJudge

SHARD = 256
BOOTSTRAP_SEED = 20260101
NO_WISH: Mapping[str, int] = {}
NO_SUITES: Mapping[str, IndependentSuite] = {}

Progress = Callable[[str, int, int], None]


class RunJudge(Protocol):
    """A judge that can be bound to a place of a run, where it files what it is told."""

    @property
    def digest(self) -> str: ...

    def at(self, steps: Steps) -> Judge: ...


@dataclass(frozen=True)
class PlainJudge:
    """A judge that files nothing, such as the verifier: the same everywhere."""

    judge: Judge

    @property
    def digest(self) -> str:
        return self.judge.digest

    def at(self, steps: Steps) -> Judge:
        return self.judge


@dataclass(frozen=True)
class Evaluation:
    """Scored answers of one model, and the digests they are filed under: objective -> role."""

    scored: Mapping[str, Mapping[str, list[Scored]]]
    files: dict[str, dict[str, SuiteFiles]]

    def scores(self) -> dict[str, dict[str, Score]]:
        """Objective -> role -> mean with its interval."""
        found = {}
        for objective, roles in self.scored.items():
            means = {}
            for role, items in roles.items():
                means[role] = summarise(items, BOOTSTRAP_SEED)
            found[objective] = means
        return found

    @property
    def roles(self) -> set[str]:
        """The suites' roles that were evaluated."""
        return {role for roles in self.files.values() for role in roles}

    def of_role(self, role: str) -> dict[str, list[Scored]]:
        return {objective: roles[role] for objective, roles in self.scored.items()}


@dataclass(frozen=True)
class AuditAnswers:
    """What one model scored at the end: on the audit suites by objective, on independent ones by name."""

    audit: Mapping[str, list[Scored]]
    independent: Mapping[str, list[Scored]]


@dataclass(frozen=True)
class GeneratorIdentity:
    """What the answers depend on beside prompts and adapter: base model, generator settings."""

    base: str
    settings: JsonObject


@dataclass(frozen=True)
class OpenModel:
    """A reward model, filed under `digest`, that judges the suites of one evaluation."""

    digest: str
    judge: LevelJudge


class Evaluator:
    """Evaluates one base model with or without an adapter on the suites of a run."""

    def __init__(
        self,
        generator: Generator,
        judge: RunJudge,
        objectives: Mapping[str, Objective],
        suites: Mapping[str, Mapping[str, Suite]],
        identity: GeneratorIdentity,
        progress: Progress | None = None,
        steering: SteeringJudge | None = None,
        independent: Mapping[str, IndependentSuite] = NO_SUITES,
    ) -> None:
        self.generator = generator
        self.judge = judge
        self.objectives = objectives
        self.suites = suites
        self.identity = identity
        self.progress = progress
        self.steering = steering
        self.independent = independent
        self._serving = False

    @property
    def most_tokens(self) -> int:
        """The most tokens that one answer may have."""
        most = self.identity.settings["max_new_tokens"]
        assert isinstance(most, int)
        return most

    def sample(
        self, prompts: Sequence[Prompt], adapter: Path | None, sampling: Sampling
    ) -> list[Response]:
        """`sampling.n` answers to each prompt. Call `release` when no more are drawn."""
        self._serving = True
        return self.generator.generate(prompts, adapter, sampling)

    def release(self) -> None:
        """The generator gives its memory back; what was read from the journal asked none."""
        if self._serving:
            self._serving = False
            self.generator.release()

    def evaluate(
        self,
        steps: Steps,
        adapter: str | None,
        roles: Sequence[str],
        wish: Mapping[str, int] = NO_WISH,
        names: Collection[str] | None = None,
        reward_model: str | None = None,
    ) -> Evaluation:
        """Generate, judge and score. `adapter` is a digest in the store; None is the base model.

        Every prompt states `wish` (objective -> level); judges read it without. `names` are the
        objectives to evaluate, all if None. `reward_model` is the digest of one that may judge
        steering suites.
        """
        try:
            return self._evaluate(steps, adapter, roles, wish, names, reward_model)
        finally:
            self.release()

    def audit(self, steps: Steps, adapter: str | None, wish: Mapping[str, int]) -> AuditAnswers:
        """Open the audit suites and the independent ones for one model."""
        try:
            evaluation = self._evaluate(steps, adapter, ["audit"], wish, None, None)
            tested = {}
            for name, test in self.independent.items():
                shards = self._answered(steps, test.objective, test.suite, adapter, wish)
                filed = self._judged(steps, test.objective, test.suite, shards, None)
                tested[name] = read_scored(steps, filed)
            return AuditAnswers(evaluation.of_role("audit"), tested)
        finally:
            self.release()

    def _evaluate(
        self,
        steps: Steps,
        adapter: str | None,
        roles: Sequence[str],
        wish: Mapping[str, int],
        names: Collection[str] | None,
        reward_model: str | None,
    ) -> Evaluation:
        shards: dict[str, dict[str, list[str]]] = {}
        for name, objective in self.objectives.items():
            if names is not None and name not in names:
                continue
            shards[name] = {}
            for role in roles:
                suite = self.suites[name][role]
                shards[name][role] = self._answered(steps, objective, suite, adapter, wish)
        model = None
        if reward_model is not None and self.steering is not None and "steering" in roles:
            # The reward model is loaded beside no server that still holds the device.
            self.release()
            model = OpenModel(
                reward_model, self.steering.open_model(steps.store.path(reward_model))
            )
        try:
            return self._scored(steps, shards, model)
        finally:
            if model is not None:
                model.judge.close()

    def _scored(
        self,
        steps: Steps,
        shards: Mapping[str, Mapping[str, list[str]]],
        model: OpenModel | None,
    ) -> Evaluation:
        """Judge and score what was answered: objective -> role -> filed shards."""
        scored: dict[str, dict[str, list[Scored]]] = {}
        files: dict[str, dict[str, SuiteFiles]] = {}
        for name, roles in shards.items():
            objective = self.objectives[name]
            scored[name], files[name] = {}, {}
            for role, filed in roles.items():
                # A policy may have been trained to please the reward model: steering alone is its.
                able = role == "steering" and objective.evidence != "likelihood"
                suite = self.suites[name][role]
                judged = self._judged(steps, objective, suite, filed, model if able else None)
                files[name][role] = judged
                scored[name][role] = read_scored(steps, judged)
        return Evaluation(scored, files)

    def _answered(
        self,
        steps: Steps,
        objective: Objective,
        suite: Suite,
        adapter: str | None,
        wish: Mapping[str, int],
    ) -> list[str]:
        """Digests of what one model answered to a suite, or of the likelihoods of its texts."""
        if objective.evidence == "likelihood":
            return self._likelihoods(steps, suite, adapter)
        return self._generated(steps, suite, adapter, wish)

    def _generated(
        self, steps: Steps, suite: Suite, adapter: str | None, wish: Mapping[str, int]
    ) -> list[str]:
        """Digests of the filed response shards of one suite."""
        shards = []
        total = len(suite.prompts)
        for start in range(0, total, SHARD):
            prompts = suite.prompts[start : start + SHARD]
            end = start + len(prompts)
            inputs = Generate(
                base=self.identity.base,
                generator=self.identity.settings,
                sampling=GREEDY,
                adapter=adapter,
                suite=suite.digest,
                shard=(start, end),
                wish=dict(wish),
            )
            shards.append(self._shard(steps, inputs, wishing(prompts, wish)).responses)
            if self.progress:
                self.progress(f"{suite.objective} {suite.role}", end, total)
        return shards

    def _shard(self, steps: Steps, inputs: Generate, prompts: Sequence[Prompt]) -> Generated:
        """The answers to some prompts of one suite, filed."""

        def effect() -> Outcome[Generated]:
            self._serving = True
            folder = steps.store.path(inputs.adapter) if inputs.adapter else None
            responses = self.generator.generate(prompts, folder)
            digest = steps.store.put_json([r.json_data() for r in responses])
            tokens = sum(r.n_tokens for r in responses)
            return Outcome(Generated(responses=digest, tokens=tokens, conversations=len(prompts)))

        return steps.run(inputs, effect)

    def _likelihoods(self, steps: Steps, suite: Suite, adapter: str | None) -> list[str]:
        """Digests of the filed likelihoods of a suite's texts: the base's, then the adapter's."""
        digests = [self._measured(steps, suite, None)]
        if adapter is not None:
            digests.append(self._measured(steps, suite, adapter))
        return digests

    def _measured(self, steps: Steps, suite: Suite, adapter: str | None) -> str:
        """Digest of the filed list of `{"id", "log_likelihood", "tokens"}`, one per text.

        A likelihood that is not finite is filed as null.
        """

        def effect() -> Outcome[LikelihoodMeasured]:
            path: Path | None = steps.store.path(adapter) if adapter else None
            self._serving = True
            texts = [prompt.turns[0] for prompt in suite.prompts]
            values = self.generator.log_likelihood(texts, path)
            lines = []
            for prompt, value in zip(suite.prompts, values, strict=True):
                mean = value.mean if math.isfinite(value.mean) else None
                line = {"id": prompt.id, "log_likelihood": mean, "tokens": value.tokens}
                lines.append(line)
            if self.progress:
                self.progress(f"{suite.objective} {suite.role}", len(lines), len(lines))
            return Outcome(LikelihoodMeasured(responses=steps.store.put_json(lines)))

        inputs = MeasureLikelihood(
            base=self.identity.base,
            generator=self.identity.settings,
            adapter=adapter,
            suite=suite.digest,
        )
        return steps.run(inputs, effect).responses

    def _judged(
        self,
        steps: Steps,
        objective: Objective,
        suite: Suite,
        shards: list[str],
        model: OpenModel | None,
    ) -> SuiteFiles:
        """Digests of the filed responses, judgments and scores of one suite."""
        store, cheap = steps.store, self.steering if model else None

        def effect() -> Outcome[SuiteFiles]:
            agreement = None
            if objective.evidence == "likelihood":
                base, own = store.get_json(shards[0]), store.get_json(shards[-1])
                lines = [_no_answer(prompt).json_data() for prompt in suite.prompts]
                judgments = likelihood_judgments(objective, suite, own, base)
                scored = score_judgments(objective, suite, judgments)
            else:
                lines = []
                for digest in shards:
                    lines += store.get_json(digest)
                responses = [Response.model_validate(line) for line in lines]
                judge = self.judge.at(steps)
                if cheap is None or model is None:
                    judgments, scored = judge_and_score(objective, suite, responses, judge)
                else:
                    found = cheap.judge(model.judge, objective, suite, responses, judge)
                    judgments, scored, agreement = found.judgments, found.scored, found.agreement
            files = SuiteFiles(
                responses=store.put_json(lines),
                judgments=store.put_json([j.json_data() for j in judgments]),
                scored=store.put_json([s.json_data() for s in scored]),
                agreement=agreement,
            )
            return Outcome(files)

        by = self.judge.digest
        if cheap is not None and model is not None:
            by = cheap.identity(model.digest, by)
        inputs = JudgeSuite(
            responses=shards,
            suite=suite.digest,
            objective=objective.name,
            judge=by,
            rules=objective.rules,
        )
        return steps.run(inputs, effect)


def wishing(prompts: Sequence[Prompt], wish: Mapping[str, int]) -> Sequence[Prompt]:
    """The prompts with a wish in the first line of their system message; as they are without one."""
    if not wish:
        return prompts
    return [p.model_copy(update={"system": stated(p.system, wish)}) for p in prompts]


def likelihood_judgments(
    objective: Objective, suite: Suite, own: Sequence[JsonObject], base: Sequence[JsonObject]
) -> list[Judgment]:
    """What is stored of measured texts (L3), one per prompt of the suite.

    `own` and `base` are the filed likelihoods of the model that is evaluated and of the base. A
    stored line is `{"slice", "log_likelihood", "base", "tokens"}`: mean natural log-likelihoods per
    token, and the number of tokens that they are over. A text without a finite likelihood is not
    scored.
    """
    judgments = []
    for prompt, mine, before in zip(suite.prompts, own, base, strict=True):
        items = {
            "slice": prompt.slice,
            "log_likelihood": mine["log_likelihood"],
            "base": before["log_likelihood"],
            "tokens": mine["tokens"],
        }
        if None in items.values():
            reason = "the likelihood of the text is not a finite number"
            judgment = Judgment(id=prompt.id, status="failed", reason=reason, judge=objective.rules)
        else:
            judgment = Judgment(id=prompt.id, status="ok", items=items, judge=objective.rules)
        judgments.append(judgment)
    return judgments


def _no_answer(prompt: Prompt) -> Response:
    """The response to a text that is only read: whoever shows responses finds nothing to show."""
    return Response(id=prompt.id, answers=[], finish_reasons=[], n_tokens=0)


def read_scored(steps: Steps, files: SuiteFiles) -> list[Scored]:
    """The scores that an evaluation of one suite filed."""
    return [Scored.model_validate(line) for line in steps.store.get_json(files.scored)]
