"""The reward model as a judge: levels at the price of one pass. For steering only.

A policy may have been trained to please this very model, so selection and audit are never judged
by it; and it is believed on steering only while it agrees with the run's judge on a sample:

    sampled = drawn_sample(prompts, 40, seed)
    found = agreement(objective, level_scores(sampled, by_model), scored_by_the_judge)
    found.equal >= limit

It gives no atomic items, so its judgments are scored by `level_scores` and not by an objective.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from functools import cached_property

from eval.agreement import kappa
from eval.objectives.base import Objective, need
from eval.rendering.render import Chat
from eval.reward_model import CARD, HEADS, WEIGHTS, Reading, RewardModel
from mosaic.core.errors import UsageError
from mosaic.core.types.base import FrozenModel, digest_of
from mosaic.core.types.evaluation import Judgment, Prompt, Response, Scored

VERSION = 1
# As the objectives have it: a score below is a failure.
FAILED_BELOW = 3


class RewardModelJudge:
    """Judges by the likeliest level of an answer. `digest` covers weights, heads and card."""

    def __init__(self, model: RewardModel) -> None:
        self.model = model

    @cached_property
    def digest(self) -> str:
        files = {}
        for name in (WEIGHTS, HEADS, CARD):
            files[name] = hashlib.sha256((self.model.folder / name).read_bytes()).hexdigest()
        return digest_of({"judge": "reward_model", "version": VERSION, "files": files})

    def judge(
        self, objective: Objective, prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> list[Judgment]:
        """See `Judge`. `items` are the level and its probability.

        An answer that cannot be read is `failed`; ValueError if a response does not answer its
        prompt, UsageError if the model has no head for the objective.
        """
        self.model.card.head(objective.name)
        chats = []
        for prompt, response in zip(prompts, responses, strict=True):
            if prompt.id != response.id:
                raise ValueError(f"response {response.id} does not answer prompt {prompt.id}")
            chats.append(chat_of(prompt, response))
        readings = self.model.read(chats)
        return [
            self._judgment(objective.name, prompt, reading)
            for prompt, reading in zip(prompts, readings, strict=True)
        ]

    def _judgment(self, objective: str, prompt: Prompt, reading: Reading) -> Judgment:
        if reading.reason:
            return Judgment(id=prompt.id, status="failed", reason=reading.reason, judge=self.digest)
        own = reading.probabilities[objective]
        level = max(own, key=lambda one: own[one])
        items = {"level": level, "probability": own[level]}
        return Judgment(id=prompt.id, status="ok", items=items, judge=self.digest)

    def unscorable(self, objective: Objective, prompt: Prompt) -> str | None:
        """See `SuiteJudge`."""
        try:
            self.model.card.head(objective.name)
        except UsageError as error:
            return str(error)
        return None


def chat_of(prompt: Prompt, response: Response) -> Chat:
    """A prompt with the answers to its turns, as the model was trained."""
    chat: Chat = []
    if prompt.system is not None:
        chat.append({"role": "system", "content": prompt.system})
    for turn, answer in zip(prompt.turns, response.answers, strict=True):
        chat.append({"role": "user", "content": turn})
        chat.append({"role": "assistant", "content": answer})
    return chat


def level_scores(prompts: Sequence[Prompt], judgments: Sequence[Judgment]) -> list[Scored]:
    """The level of each judgment as its score. Slice, weight and validity are the prompt's.

    A judgment that is not `ok` becomes an unscored item with its reason.
    """
    scored = []
    for prompt, judgment in zip(prompts, judgments, strict=True):
        item = Scored(
            id=prompt.id,
            status="unscored",
            reason=judgment.reason or judgment.status,
            slice=prompt.slice,
            weight=prompt.weight,
            valid=prompt.valid,
        )
        if judgment.status == "ok":
            level = int(judgment.items["level"])
            found = {
                "status": "ok",
                "reason": None,
                "label": {"level": level},
                "score": float(level),
                "need": need(level, prompt.weight, prompt.valid),
                "failed": level < FAILED_BELOW,
            }
            item = item.model_copy(update=found)
        scored.append(item)
    return scored


class LevelAgreement(FrozenModel):
    """How far the reward model's levels agree with a judge's scores, over `n` answers.

    `equal` is the share of equal levels, `near` of those at most one apart; `difference` the mean
    of the model's level less the judge's; `kappa` Cohen's, None where it is not defined. `unread`
    answers were scored by one of the two only. Without any answer the shares are 0.
    """

    objective: str
    n: int
    equal: float
    near: float
    difference: float
    kappa: float | None
    unread: int


def drawn_sample(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """So many prompts, or all, in their order; the same for the same seed."""
    chosen = random.Random(seed).sample(range(len(prompts)), min(count, len(prompts)))
    return [prompts[number] for number in sorted(chosen)]


def agreement(objective: str, model: Sequence[Scored], judge: Sequence[Scored]) -> LevelAgreement:
    """Compare scores of the same answers.

    >>> levels = [Scored(id=str(n), status="ok", score=n) for n in (1, 2, 5)]
    >>> scores = [Scored(id=str(n), status="ok", score=s) for n, s in ((1, 1), (2, 3), (5, 1))]
    >>> found = agreement("safety", levels, scores)
    >>> round(found.equal, 2), round(found.near, 2), found.difference
    (0.33, 0.67, 1.0)
    """
    pairs = []
    for one, other in zip(model, judge, strict=True):
        if one.id != other.id:
            raise ValueError(f"the scores of {one.id} and {other.id} are not of one answer")
        if one.score is not None and other.score is not None:
            pairs.append((one.score, other.score))
    count = max(1, len(pairs))
    return LevelAgreement(
        objective=objective,
        n=len(pairs),
        equal=sum(a == b for a, b in pairs) / count,
        near=sum(abs(a - b) <= 1 for a, b in pairs) / count,
        difference=sum(a - b for a, b in pairs) / count,
        kappa=kappa([a for a, _ in pairs], [b for _, b in pairs]),
        unread=len(model) - len(pairs),
    )
