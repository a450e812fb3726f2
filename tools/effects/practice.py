"""Practice: answers drawn from the model under training, and scored, as steps.

Practice prompts are drawn a batch at a time for as long as the next batch can be paid for, whatever
its answers turn out to be: each answer that is drawn, and what training on them may cost. What a
batch did not take is there for the next. All of it is filed, so that a restart asks and pays for
nothing twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from eval.rendering.probe import turn_shape
from eval.rendering.render import Chat, texts_of
from eval.rendering.turns import TokenisedChat, TurnEncoder
from eval.suite import Suite
from mosaic.core.steps import Outcome, Steps
from mosaic.core.types.base import digest_of
from mosaic.core.types.evaluation import Prompt, Response
from mosaic.core.types.practice_records import PracticeScored, SamplePractice, ScorePractice
from mosaic.core.types.runs import LoraRecipe, Sampling
from mosaic.core.types.spending import Usage
from mosaic.core.types.step_inputs import Generated
from tools.effects.evaluate import Evaluator
from training.data.practice_order import practice_order
from training.data.preferences import Answers
from training.methods.preference_rows import conversation
from training.models.chat_template import ChatError
from training.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 64


@dataclass(frozen=True)
class PracticePrompt:
    """A practice prompt, and the slice that a plan weighs it by (`objective/slice`)."""

    prompt: Prompt
    slice: str

    @property
    def objectives(self) -> tuple[str, ...]:
        """What its answers are judged under."""
        return tuple(self.prompt.objectives or ())


def practice_prompts(suites: Mapping[str, Suite]) -> list[PracticePrompt]:
    """The valid prompts of the practice suites, which are by objective."""
    found = []
    for name, suite in sorted(suites.items()):
        for prompt in suite.prompts:
            if prompt.valid:
                found.append(PracticePrompt(prompt, f"{name}/{prompt.slice}"))
    return found


@dataclass(frozen=True)
class Batch:
    """Prompts that were asked together, and where their answers and scores are filed."""

    prompts: list[PracticePrompt]
    responses: str
    scores: dict[str, str]


@dataclass(frozen=True)
class Answered:
    """What the answers to one prompt say.

    `usable` are numbers of the answers that can be trained on, `rewards` their scores in that order,
    `tokens` the length of each whole conversation by number.
    """

    practice: PracticePrompt
    responses: list[Response]
    usable: list[int]
    rewards: Answers
    tokens: dict[int, int]


@dataclass
class LeftOut:
    """Answers that nothing is learnt from, and why."""

    cut: int = 0
    unscored: int = 0
    unlearnable: Counter[str] = field(default_factory=Counter)


class Costs(Protocol):
    """What training on answers may cost, in tokens."""

    def dearest(self, practice: PracticePrompt) -> int:
        """The most that training on the answers to a prompt can take."""

    def owed(self, steps: Steps, batch: Batch) -> int:
        """The most that training on the answers of a batch can take, now that they are known."""


class PracticeTool:
    """Draws and scores answers of one base model with or without an adapter.

    `base_digest` covers the base's tokenizer and the chat template that replaces its own.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        suites: Mapping[str, Suite],
        base_model: Path,
        base_digest: str,
        template: Path | None = None,
    ) -> None:
        self.evaluator = evaluator
        self.base_model = base_model
        self.base_digest = base_digest
        self.template = template
        self.prompts = practice_prompts(suites)

    @property
    def slices(self) -> dict[str, int]:
        """`objective/slice` -> practice prompts."""
        counts = Counter(practice.slice for practice in self.prompts)
        return dict(sorted(counts.items()))

    @property
    def digest(self) -> str:
        """The identity of all practice prompts, with what they are judged under."""
        return digest_of([[one.slice, one.prompt.json_data()] for one in self.prompts])

    def draw(
        self,
        steps: Steps,
        adapter: str | None,
        sampling: Sampling,
        tokens: int,
        weights: Mapping[str, float],
        costs: Costs,
    ) -> list[Batch]:
        """Answers to as many practice prompts as `tokens` pay for, with their scores.

        `adapter` is the digest of the model that answers, None the base. `weights` are those of a
        plan's practice slices. `tokens` pay for the answers and for what `costs` says of them.
        """
        names = [practice.slice for practice in self.prompts]
        order = practice_order(names, weights, sampling.seed)
        waiting = [self.prompts[number] for number in order]
        batches: list[Batch] = []
        left = tokens
        try:
            while batch := self._affordable(waiting, sampling, costs, left):
                waiting = [practice for practice in waiting if practice not in batch]
                sampled = self._sample(steps, batch, adapter, sampling)
                scores = self._score(steps, batch, sampled, sampling.n)
                batches.append(Batch(batch, sampled.responses, scores))
                left -= sampled.tokens + costs.owed(steps, batches[-1])
        finally:
            self.evaluator.release()
        return batches

    def _affordable(
        self, waiting: Sequence[PracticePrompt], sampling: Sampling, costs: Costs, left: int
    ) -> list[PracticePrompt]:
        """The next prompts, as many as `left` tokens surely pay for, at most `BATCH`.

        One that is too dear for what is left is passed over.
        """
        batch: list[PracticePrompt] = []
        for practice in waiting:
            answers = sampling.n * len(practice.prompt.turns) * self.evaluator.most_tokens
            dearest = answers + costs.dearest(practice)
            if dearest <= left and len(batch) < BATCH:
                left -= dearest
                batch.append(practice)
        return batch

    def longest(self, practice: PracticePrompt) -> int:
        """Tokens of a conversation whose answers are as long as they may get."""
        turns = practice.prompt.turns
        asked, rest = conversation(practice.prompt, ["."] * len(turns))
        (chat,) = self.encode([[*asked, *rest]])
        return len(chat.ids) + len(turns) * self.evaluator.most_tokens

    def _sample(
        self,
        steps: Steps,
        batch: Sequence[PracticePrompt],
        adapter: str | None,
        sampling: Sampling,
    ) -> Generated:
        identity = self.evaluator.identity
        prompts = [practice.prompt for practice in batch]
        inputs = SamplePractice(
            base=identity.base,
            generator=identity.settings,
            sampling=sampling,
            adapter=adapter,
            prompts=digests(batch),
        )

        def effect() -> Outcome[Generated]:
            folder = steps.store.path(adapter) if adapter else None
            responses = self.evaluator.sample(prompts, folder, sampling)
            digest = steps.store.put_json([r.json_data() for r in responses])
            tokens = sum(r.n_tokens for r in responses)
            result = Generated(responses=digest, tokens=tokens, conversations=len(responses))
            return Outcome(result, usage=Usage(sampled=tokens))

        turns = sum(len(prompt.turns) for prompt in prompts)
        most = Usage(sampled=sampling.n * turns * self.evaluator.most_tokens)
        return steps.run(inputs, effect, reserve=most)

    def _score(
        self,
        steps: Steps,
        batch: Sequence[PracticePrompt],
        sampled: Generated,
        n: int,
    ) -> dict[str, str]:
        """Objective -> digest of the scores of all answers; null where it does not apply."""
        named = sorted({name for practice in batch for name in practice.objectives})
        return {name: self._scored(steps, batch, sampled, name, n) for name in named}

    def _scored(
        self, steps: Steps, batch: Sequence[PracticePrompt], sampled: Generated, name: str, n: int
    ) -> str:
        objective, judge = self.evaluator.objectives[name], self.evaluator.judge
        inputs = ScorePractice(
            responses=sampled.responses,
            prompts=digests(batch),
            objective=name,
            judge=judge.digest,
            rules=objective.rules,
        )

        def effect() -> Outcome[PracticeScored]:
            lines = steps.store.get_json(sampled.responses)
            asked = [practice for practice in batch for _ in range(n)]
            where = [place for place, one in enumerate(asked) if name in one.objectives]
            prompts = [asked[place].prompt for place in where]
            responses = [Response.model_validate(lines[place]) for place in where]
            scores: list[float | None] = [None] * len(asked)
            judgments = judge.at(steps).judge(objective, prompts, responses)
            for place, judgment in zip(where, judgments, strict=True):
                if judgment.status == "ok":
                    item = objective.score({"id": judgment.id, **judgment.items})
                    scores[place] = item.score if item.valid else None
            return Outcome(PracticeScored(scores=steps.store.put_json(scores)))

        return steps.run(inputs, effect).scores

    def read(
        self, steps: Steps, batch: Batch, recipe: LoraRecipe, left_out: LeftOut
    ) -> list[Answered]:
        """What is known of each prompt of a batch. What cannot be used is counted."""
        lines = steps.store.get_json(batch.responses)
        scores = {name: steps.store.get_json(digest) for name, digest in batch.scores.items()}
        n = len(lines) // len(batch.prompts)
        found = []
        for number, practice in enumerate(batch.prompts):
            places = range(number * n, (number + 1) * n)
            responses = [Response.model_validate(lines[place]) for place in places]
            usable, rewards, tokens = [], [], {}
            for answer, place in enumerate(places):
                values = [scores[name][place] for name in practice.objectives]
                if "length" in responses[answer].finish_reasons:
                    left_out.cut += 1
                elif None in values:
                    left_out.unscored += 1
                else:
                    length = self._length(practice.prompt, responses[answer], recipe, left_out)
                    if length is not None:
                        usable.append(answer)
                        rewards.append(values)
                        tokens[answer] = length
            table = np.array(rewards, dtype=float).reshape(len(usable), len(practice.objectives))
            answers = Answers(practice.objectives, table)
            found.append(Answered(practice, responses, usable, answers, tokens))
        return found

    def _length(
        self, prompt: Prompt, response: Response, recipe: LoraRecipe, left_out: LeftOut
    ) -> int | None:
        """Tokens of the whole conversation, or None if it cannot be learnt from."""
        asked, rest = conversation(prompt, response.answers)
        try:
            (chat,) = self.encode([[*asked, *rest]])
        except ChatError as error:
            left_out.unlearnable[error.reason] += 1
            return None
        if len(chat.ids) > recipe.max_length:
            left_out.unlearnable[
                f"longer than methods.{recipe.kind}.max_length, {recipe.max_length}"
            ] += 1
            return None
        return len(chat.ids)

    # -- counting ----------------------------------------------------------------------------------

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.base_model, self.template)

    @cached_property
    def _encoder(self) -> TurnEncoder:
        return TurnEncoder(self._tokenizer, turn_shape(self._tokenizer))

    def encode(self, chats: Sequence[Chat]) -> list[TokenisedChat]:
        return self._encoder.encode(chats)

    def length(self, chat: Chat) -> int | None:
        """Tokens of a whole chat; None if the chat template refuses it."""
        try:
            (encoded,) = self.encode([chat])
        except ChatError:
            return None
        return len(encoded.ids)

    def asked_length(self, chat: Chat) -> int:
        """Tokens of a chat up to where its next answer begins."""
        (text,) = texts_of(self._tokenizer, [chat], answer_next=True)
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def digests(batch: Sequence[PracticePrompt]) -> list[str]:
    return [practice.prompt.content_digest for practice in batch]
