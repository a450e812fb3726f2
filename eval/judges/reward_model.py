"""The reward model as a judge: levels at the price of one pass. For steering only.

A policy may have been trained to please this very model, so selection and audit are never judged
by it; and it is believed on steering only while it agrees with the run's judge on a sample
(`tools.effects.steering_judge`).

It gives no atomic items, so its judgments are scored by `eval.levels.level_scores` and not by an objective.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

from eval.objectives.base import Objective
from eval.rendering.render import Chat
from eval.reward_model import CARD, HEADS, WEIGHTS, Reading, RewardModel
from mosaic.core.errors import UsageError
from mosaic.core.types.base import digest_of
from mosaic.core.types.evaluation import Judgment, Prompt, Response

VERSION = 1


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

    def close(self) -> None:
        """Give back the model's memory."""
        self.model.close()

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
