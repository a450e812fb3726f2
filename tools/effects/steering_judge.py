"""Steering suites judged by a reward model, for as long as it agrees with the run's judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from eval.judges.base import Judge, SteeringJudgeConfig
from eval.levels import agreement, drawn_sample, level_scores
from eval.objectives.base import Objective
from eval.scoring import judge_and_score
from eval.suite import Suite
from mosaic.core.types.base import digest_of
from mosaic.core.types.evaluation import Judgment, LevelAgreement, Prompt, Response, Scored


class LevelJudge(Judge, Protocol):
    """A judge that gives levels, and says which objectives it knows."""

    def unscorable(self, objective: Objective, prompt: Prompt) -> str | None: ...

    def close(self) -> None:
        """Give back the model's memory."""
        ...


@dataclass(frozen=True)
class Judged:
    """Judgments and scores of a suite; `agreement` is None if no reward model could be asked."""

    judgments: list[Judgment]
    scored: list[Scored]
    agreement: LevelAgreement | None = None


@dataclass(frozen=True)
class SteeringJudge:
    """`open_model` makes a judge of a reward model's folder."""

    config: SteeringJudgeConfig
    open_model: Callable[[Path], LevelJudge]

    def identity(self, reward_model: str, judge: str) -> str:
        """The digest of who judges: a reward model and the run's judge, given by their digests."""
        return digest_of([reward_model, judge, self.config.json_data()])

    def judge(
        self,
        model: LevelJudge,
        objective: Objective,
        suite: Suite,
        responses: Sequence[Response],
        judge: Judge,
    ) -> Judged:
        """Score a suite's answers by a reward model, or by the judge.

        The sample keeps the judge's scores. An objective without a head is the judge's.
        """
        if not suite.prompts or model.unscorable(objective, suite.prompts[0]) is not None:
            return Judged(*judge_and_score(objective, suite, responses, judge))
        answers = {response.id: response for response in responses}
        sample = drawn_sample(suite.prompts, self.config.sample, len(suite.prompts))
        part = _Part(suite.objective, sample)
        asked = [answers[prompt.id] for prompt in sample]
        judgments, scored = judge_and_score(objective, part, asked, judge)
        levels = model.judge(objective, suite.prompts, responses)
        by_model = {one.id: one for one in level_scores(suite.prompts, levels)}
        found = agreement(objective.name, [by_model[p.id] for p in sample], scored)
        if not _agrees(found, self.config.agreement):
            whole = judge_and_score(objective, suite, responses, judge)
            return Judged(*whole, agreement=found)
        by_judge = {one.id: one for one in scored}
        known = {one.id: one for one in judgments}
        return Judged(
            [known.get(one.id, one) for one in levels],
            [by_judge.get(prompt.id, by_model[prompt.id]) for prompt in suite.prompts],
            found.model_copy(update={"used": True}),
        )


@dataclass(frozen=True)
class _Part:
    """Some prompts of a suite."""

    objective: str
    prompts: list[Prompt]


def _agrees(found: LevelAgreement, least: float) -> bool:
    """Kappa is not defined where both always say the same level: then they must say it together."""
    return found.equal == 1 if found.kappa is None else found.kappa >= least
