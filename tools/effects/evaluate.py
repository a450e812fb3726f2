"""Evaluation as steps: responses in shards, judgments and scores per suite, all filed.

An objective that reads likelihoods has no responses: each text is measured with the adapter and
with the base, whose likelihoods are one step of their own and measured once.

A shard holds at most 256 conversations of one suite, so that a kill costs little. Where workers
draw the answers, all shards of an evaluation are drawn side by side. Roles are
evaluated as asked: the audit suites are not touched before the end of a run because nobody asks for
them earlier.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from eval.generators.base import Generator, SharedGenerator
from eval.judges.base import Judge
from eval.objectives.base import Objective
from eval.scoring import judge_and_score, score_judgments
from eval.statistics import summarise
from eval.suite import IndependentSuite, Suite
from mosaic.core.errors import BoundaryError
from mosaic.core.steps import Outcome, Steps, Task
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


@dataclass(frozen=True)
class Asked:
    """A model that is to answer suites: of which trial, its adapter's digest, and what prompts wish.

    `adapter` None is the base. `names` are objectives, all if None.
    """

    trial: str
    adapter: str | None
    roles: Sequence[str]
    wish: Mapping[str, int] = field(default_factory=dict)
    names: Collection[str] | None = None


@dataclass(frozen=True)
class _ShardTask(Task[Any]):
    """A step in which a model answers so many prompts, or reads so many texts."""

    prompts: int = 0


class _Together:
    """The progress of shards that are drawn at once, as that of one."""

    def __init__(self, tell: Progress | None, total: int) -> None:
        self._tell = tell
        self._total = total
        self._done = 0
        self._turn = threading.Lock()

    def after(self, task: _ShardTask) -> _ShardTask:
        """The same task, counted when its effect is over."""

        def effect() -> Outcome[Any]:
            outcome = task.effect()
            with self._turn:
                self._done += task.prompts
                if self._tell:
                    self._tell("answers", self._done, self._total)
            return outcome

        return replace(task, effect=effect)


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

    def answer_ahead(self, steps: Steps, models: Sequence[Asked]) -> None:
        """Draw the answers of several models side by side if the generator can, else do nothing.

        `evaluate` finds them in the journal. Raises the first BoundaryError once all are over.
        """
        if not isinstance(self.generator, SharedGenerator):
            return
        tasks: list[_ShardTask] = []
        for model in models:
            for name, role in self._asked(model):
                suite = self.suites[name][role]
                tasks += self._tasks(steps, self.objectives[name], suite, model)
        self._draw(steps, self.generator, tasks)

    def _draw(self, steps: Steps, generator: SharedGenerator, tasks: Sequence[_ShardTask]) -> None:
        """Run the steps that are not finished side by side, each once."""
        wanted = {t.inputs.key: t for t in tasks if not steps.finished(t.inputs)}
        progress = _Together(self.progress, sum(task.prompts for task in wanted.values()))
        for outcome in steps.run_many([progress.after(task) for task in wanted.values()]):
            if isinstance(outcome, BoundaryError):
                raise outcome
        generator.filed()

    def _asked(self, model: Asked) -> Iterator[tuple[str, str]]:
        """Objective and role of the suites that a model is to answer, in order."""
        for name in self.objectives:
            if model.names is None or name in model.names:
                for role in model.roles:
                    yield name, role

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
            asked = Asked(steps.place.trial, adapter, [], wish)
            if isinstance(self.generator, SharedGenerator):
                tasks: list[_ShardTask] = []
                for test in self.independent.values():
                    tasks += self._tasks(steps, test.objective, test.suite, asked)
                self._draw(steps, self.generator, tasks)
            tested = {}
            for name, test in self.independent.items():
                shards = self._answered(steps, test.objective, test.suite, asked)
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
        asked = Asked(steps.place.trial, adapter, roles, wish, names)
        self.answer_ahead(steps, [asked])
        shards: dict[str, dict[str, list[str]]] = {}
        for name, role in self._asked(asked):
            suite = self.suites[name][role]
            answered = self._answered(steps, self.objectives[name], suite, asked)
            shards.setdefault(name, {})[role] = answered
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
        self, steps: Steps, objective: Objective, suite: Suite, asked: Asked
    ) -> list[str]:
        """Digests of what one model answered to a suite, in shards.

        Of an objective that reads texts: of their likelihoods under the base, then the adapter.
        """
        digests = []
        done = 0
        for task in self._tasks(steps, objective, suite, asked):
            digests.append(steps.run(task.inputs, task.effect).responses)
            if self.progress:
                done = min(done + task.prompts, len(suite.prompts))
                self.progress(f"{suite.objective} {suite.role}", done, len(suite.prompts))
        return digests

    def _tasks(
        self, steps: Steps, objective: Objective, suite: Suite, asked: Asked
    ) -> list[_ShardTask]:
        """The steps in which one model answers a suite."""
        if objective.evidence == "likelihood":
            models = [None] if asked.adapter is None else [None, asked.adapter]
            return [self._measuring(steps, suite, model, asked.trial) for model in models]
        tasks = []
        for start in range(0, len(suite.prompts), SHARD):
            prompts = suite.prompts[start : start + SHARD]
            inputs = Generate(
                base=self.identity.base,
                generator=self.identity.settings,
                sampling=GREEDY,
                adapter=asked.adapter,
                suite=suite.digest,
                shard=(start, start + len(prompts)),
                wish=dict(asked.wish),
            )
            tasks.append(self._generating(steps, inputs, wishing(prompts, asked.wish), asked.trial))
        return tasks

    def _generating(
        self, steps: Steps, inputs: Generate, prompts: Sequence[Prompt], trial: str
    ) -> _ShardTask:
        """The answers to some prompts of one suite, filed."""

        def effect() -> Outcome[Generated]:
            self._serving = True
            folder = steps.store.path(inputs.adapter) if inputs.adapter else None
            responses = self.generator.generate(prompts, folder)
            digest = steps.store.put_json([r.json_data() for r in responses])
            tokens = sum(r.n_tokens for r in responses)
            generated = Generated(responses=digest, tokens=tokens, conversations=len(prompts))
            return Outcome(generated, seconds=self._seconds())

        return _ShardTask(inputs, effect, trial=trial, prompts=len(prompts))

    def _measuring(self, steps: Steps, suite: Suite, adapter: str | None, trial: str) -> _ShardTask:
        """The filed list of `{"id", "log_likelihood", "tokens"}`, one per text.

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
            measured = LikelihoodMeasured(responses=steps.store.put_json(lines))
            return Outcome(measured, seconds=self._seconds())

        inputs = MeasureLikelihood(
            base=self.identity.base,
            generator=self.identity.settings,
            adapter=adapter,
            suite=suite.digest,
        )
        return _ShardTask(inputs, effect, trial=trial, prompts=len(suite.prompts))

    def _seconds(self) -> float | None:
        """What the answers took that were asked for last, if others may have been drawn before them."""
        return self.generator.seconds if isinstance(self.generator, SharedGenerator) else None

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
