"""Preference pairs as steps: answers drawn from the model under training, judged, and paired.

Practice prompts are drawn a batch at a time for as long as the next batch can be paid for, whatever
its answers turn out to be: each answer that is drawn, and both answers of the pair that a prompt may
give, for every epoch. What a batch did not take is there for the next. All of it is filed, so that
a restart asks and pays for nothing twice.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eval.rendering.probe import turn_shape
from eval.rendering.render import Chat
from eval.rendering.turns import TokenisedChat, TurnEncoder
from eval.suite import Suite
from mosaic.core.steps import Outcome, Steps
from mosaic.core.types.base import JsonObject, digest_of
from mosaic.core.types.evaluation import Prompt, Response
from mosaic.core.types.events import PairedEvent
from mosaic.core.types.preferences import PairReport
from mosaic.core.types.records import (
    FormPairs,
    Generated,
    PairsFiled,
    PracticeScored,
    SamplePractice,
    ScorePractice,
)
from mosaic.core.types.runs import DpoRecipe, Sampling, Usage
from tools.effects.evaluate import Evaluator
from training.data.practice_order import practice_order
from training.data.preferences import (
    Answers,
    candidates,
    choose_pair,
    opposed,
    spreads,
    yields,
)
from training.methods.preference_rows import PreferenceRow, conversation, write_pairs
from training.models.chat_template import ChatError
from training.models.tokenizer import load_tokenizer

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
class _Known:
    """What the answers of a batch say. `answers` are numbers of those that can make a pair."""

    practice: PracticePrompt
    responses: list[Response]
    answers: list[int]
    rewards: Answers
    tokens: dict[int, int]


@dataclass
class _Left:
    """What is left out of pairs, and why."""

    cut: int = 0
    unscored: int = 0
    unlearnable: Counter[str] = field(default_factory=Counter)


class PracticeTool:
    """Draws, judges and pairs answers of one base model with or without an adapter.

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
        self._encoder: TurnEncoder | None = None

    @property
    def slices(self) -> dict[str, int]:
        """`objective/slice` -> practice prompts."""
        counts = Counter(practice.slice for practice in self.prompts)
        return dict(sorted(counts.items()))

    @property
    def digest(self) -> str:
        """The identity of all practice prompts, with what they are judged under."""
        return digest_of([[one.slice, one.prompt.json_data()] for one in self.prompts])

    def gather(
        self,
        steps: Steps,
        adapter: str | None,
        recipe: DpoRecipe,
        tokens: int,
        weights: Mapping[str, float],
        seed: int,
    ) -> PairsFiled:
        """Pairs that cost at most `tokens` to sample and to train on. See `draw`."""
        batches = self.draw(steps, adapter, recipe, tokens, weights, seed)
        return self.form(steps, batches, recipe, tokens)

    def draw(
        self,
        steps: Steps,
        adapter: str | None,
        recipe: DpoRecipe,
        tokens: int,
        weights: Mapping[str, float],
        seed: int,
    ) -> list[Batch]:
        """Answers to as many practice prompts as `tokens` pay for, with their scores.

        `adapter` is the digest of the model that answers, None the base. `weights` are those of a
        plan's practice slices.
        """
        names = [practice.slice for practice in self.prompts]
        waiting = [self.prompts[number] for number in practice_order(names, weights, seed)]
        sampling = Sampling(
            n=recipe.n, temperature=recipe.temperature, top_p=recipe.top_p, seed=seed
        )
        batches: list[Batch] = []
        left = tokens
        try:
            while batch := self._affordable(waiting, recipe, left):
                waiting = [practice for practice in waiting if practice not in batch]
                sampled = self._sample(steps, batch, adapter, sampling)
                scores = self._score(steps, batch, sampled, recipe)
                batches.append(Batch(batch, sampled.responses, scores))
                left -= sampled.tokens + self._most_trained(steps, batches[-1], recipe)
        finally:
            self.evaluator.release()
        return batches

    # -- what a batch may cost ---------------------------------------------------------------------

    def _affordable(
        self, waiting: Sequence[PracticePrompt], recipe: DpoRecipe, left: int
    ) -> list[PracticePrompt]:
        """The next prompts, as many as `left` tokens surely pay for, at most `BATCH`.

        One that is too dear for what is left is passed over.
        """
        batch: list[PracticePrompt] = []
        for practice in waiting:
            dearest = self._most_sampled(practice, recipe) + self._longest_pair(practice, recipe)
            if dearest <= left and len(batch) < BATCH:
                left -= dearest
                batch.append(practice)
        return batch

    def _most_sampled(self, practice: PracticePrompt, recipe: DpoRecipe) -> int:
        return recipe.n * len(practice.prompt.turns) * self.evaluator.most_tokens

    def _longest_pair(self, practice: PracticePrompt, recipe: DpoRecipe) -> int:
        """Tokens of a pair of answers as long as they may get, for all epochs."""
        turns = practice.prompt.turns
        asked, rest = conversation(practice.prompt, ["."] * len(turns))
        (chat,) = self._encode([[*asked, *rest]])
        longest = len(chat.ids) + len(turns) * self.evaluator.most_tokens
        return 2 * longest * recipe.epochs

    def _most_trained(self, steps: Steps, batch: Batch, recipe: DpoRecipe) -> int:
        """Tokens of the longest pair that each prompt of a batch can still give, for all epochs."""
        total = 0
        for known in self._read(steps, batch, recipe, _Left()):
            lengths = [0]
            for chosen, rejected in candidates(known.rewards, recipe):
                pair = (known.answers[chosen], known.answers[rejected])
                lengths.append(sum(known.tokens[number] for number in pair))
            total += max(lengths)
        return total * recipe.epochs

    # -- drawing and judging -----------------------------------------------------------------------

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
            prompts=_digests(batch),
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
        recipe: DpoRecipe,
    ) -> dict[str, str]:
        """Objective -> digest of the scores of all answers; null where it does not apply."""
        named = sorted({name for practice in batch for name in practice.objectives})
        return {name: self._scored(steps, batch, sampled, name, recipe.n) for name in named}

    def _scored(
        self, steps: Steps, batch: Sequence[PracticePrompt], sampled: Generated, name: str, n: int
    ) -> str:
        objective, judge = self.evaluator.objectives[name], self.evaluator.judge
        inputs = ScorePractice(
            responses=sampled.responses,
            prompts=_digests(batch),
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

    # -- pairing -----------------------------------------------------------------------------------

    def form(
        self, steps: Steps, batches: Sequence[Batch], recipe: DpoRecipe, tokens: int
    ) -> PairsFiled:
        """The pairs of answers that a recipe's rule chooses, at most what `tokens` pay for."""
        inputs = FormPairs(
            base=self.base_digest,
            responses=[batch.responses for batch in batches],
            scores=[batch.scores for batch in batches],
            prompts=[digest for batch in batches for digest in _digests(batch.prompts)],
            rule=_rule_of(recipe),
            tokens=tokens,
        )

        def effect() -> Outcome[PairsFiled]:
            left_out = _Left()
            known: list[_Known] = []
            for batch in batches:
                known += self._read(steps, batch, recipe, left_out)
            spread = spreads(one.rewards for one in known)
            rows = []
            for one in known:
                row = _paired(one, spread, recipe)
                if row is not None:
                    rows.append(row)
            asked = [practice for batch in batches for practice in batch.prompts]
            sampled = sum(r.n_tokens for one in known for r in one.responses)
            # An answer read back as text may have more tokens than it was drawn with.
            formed = len(rows)
            while rows and sampled + recipe.epochs * sum(row.tokens for row in rows) > tokens:
                rows.pop()
            report = PairReport(
                prompts=len(asked),
                answers=len(asked) * recipe.n,
                pairs=len(rows),
                unpaid=formed - len(rows),
                cut=left_out.cut,
                unscored=left_out.unscored,
                unlearnable=dict(sorted(left_out.unlearnable.items())),
                yields=yields([one.rewards for one in known], recipe.margin),
                opposed=opposed(practice.objectives for practice in self.prompts),
                slices=dict(sorted(Counter(row.slice for row in rows).items())),
                sampled=sampled,
                trained=recipe.epochs * sum(row.tokens for row in rows),
            )
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "pairs.parquet"
                write_pairs(rows, path)
                digest = steps.store.put_file(path)
            event = PairedEvent(pairs=digest, report=report)
            return Outcome(PairsFiled(pairs=digest, report=report), [event])

        return steps.run(inputs, effect)

    def _read(self, steps: Steps, batch: Batch, recipe: DpoRecipe, left_out: _Left) -> list[_Known]:
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
            found.append(_Known(practice, responses, usable, answers, tokens))
        return found

    def _length(
        self, prompt: Prompt, response: Response, recipe: DpoRecipe, left_out: _Left
    ) -> int | None:
        """Tokens of the whole conversation, or None if it cannot be learnt from."""
        asked, rest = conversation(prompt, response.answers)
        try:
            (chat,) = self._encode([[*asked, *rest]])
        except ChatError as error:
            left_out.unlearnable[error.reason] += 1
            return None
        if len(chat.ids) > recipe.max_length:
            left_out.unlearnable[f"longer than methods.dpo.max_length, {recipe.max_length}"] += 1
            return None
        return len(chat.ids)

    def _encode(self, chats: Sequence[Chat]) -> list[TokenisedChat]:
        if self._encoder is None:
            tokenizer = load_tokenizer(self.base_model, self.template)
            self._encoder = TurnEncoder(tokenizer, turn_shape(tokenizer))
        return self._encoder.encode(chats)


def _paired(known: _Known, spread: Mapping[str, float], recipe: DpoRecipe) -> PreferenceRow | None:
    """The pair of a prompt, if two of its answers make one."""
    allowed = candidates(known.rewards, recipe)
    pair = choose_pair(known.rewards, allowed, spread, recipe)
    if pair is None:
        return None
    prompt = known.practice.prompt
    chosen, rejected = known.answers[pair.chosen], known.answers[pair.rejected]
    asked, better = conversation(prompt, known.responses[chosen].answers)
    _, worse = conversation(prompt, known.responses[rejected].answers)
    return PreferenceRow(
        id=prompt.id,
        slice=known.practice.slice,
        prompt=asked,
        chosen=better,
        rejected=worse,
        chosen_tokens=known.tokens[chosen],
        rejected_tokens=known.tokens[rejected],
        gap=pair.gap,
    )


def _digests(batch: Sequence[PracticePrompt]) -> list[str]:
    return [practice.prompt.content_digest for practice in batch]


def _rule_of(recipe: DpoRecipe) -> JsonObject:
    """What of a recipe decides which answers make a pair, and what they cost."""
    fields = {"n", "rule", "objective", "gap", "margin", "sufficient", "epochs", "max_length"}
    return recipe.model_dump(mode="json", include=fields)
