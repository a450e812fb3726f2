"""What a reward model and a policy learn from, as steps: judged answers, then chats that state wishes.

Judged answers are those that the model under training gave to practice prompts, with the levels
that the run's judge gave them, and rows of the pool with their qualities. Below a wish for the
levels that they have, they are what a policy first learns from; practice prompts below drawn wishes
are what it is rewarded on.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.rendering.render import plain_chat
from mosaic.core.steps import Outcome, Steps
from mosaic.core.types.base import FrozenModel, JsonObject
from mosaic.core.types.data import JudgedAnswer, Message, WishedChat
from mosaic.core.types.evaluation import Response
from mosaic.core.types.events import JudgedAnswersEvent
from mosaic.core.types.practice_records import FormJudged, FormWishes, JudgedFiled, WishesFiled
from mosaic.core.types.preferences import JudgedReport
from mosaic.core.types.recipes import RlRecipe, worst_case
from mosaic.core.types.runs import Sampling
from prompts.levels import HIGHEST, stated
from tools.effects.practice import (
    Answered,
    Batch,
    LeftOut,
    PracticePrompt,
    PracticeTool,
    digests,
)
from training.data.judged_rows import by_cell, evenly, pool_answers
from training.data.pool import Pool
from training.methods.preference_rows import conversation

# Of what judged answers may cost, the share of those that are drawn; the rest are rows of the pool.
DRAWN = 0.5
# As often as a prompt is asked at most, each time for something else.
MOST_WISHES = 1_000


@dataclass(frozen=True)
class JudgedCosts:
    """What judged answers may cost a reward model: each whole conversation, once per epoch."""

    practice: PracticeTool
    recipe: RlRecipe

    def dearest(self, practice: PracticePrompt) -> int:
        epochs = self.recipe.reward_model.epochs
        return epochs * self.recipe.n * self.practice.longest(practice)

    def owed(self, steps: Steps, batch: Batch) -> int:
        """See `Costs`."""
        total = 0
        for known in self.practice.read(steps, batch, self.recipe, LeftOut()):
            total += sum(known.tokens.values())
        return self.recipe.reward_model.epochs * total


@dataclass(frozen=True)
class WishTool:
    """Forms judged answers and wishes. `graded` is data set -> the objective of its qualities."""

    practice: PracticeTool
    pool: Pool
    graded: Mapping[str, str]

    def draw(
        self,
        steps: Steps,
        adapter: str | None,
        recipe: RlRecipe,
        tokens: int,
        weights: Mapping[str, float],
        seed: int,
    ) -> list[Batch]:
        """Answers to judge, of a model given by its digest. See `PracticeTool.draw`."""
        sampling = Sampling(n=recipe.n, temperature=recipe.temperature, seed=seed)
        share = DRAWN if self.graded else 1.0
        costs = JudgedCosts(self.practice, recipe)
        return self.practice.draw(steps, adapter, sampling, int(share * tokens), weights, costs)

    def judged(
        self, steps: Steps, batches: Sequence[Batch], recipe: RlRecipe, tokens: int, seed: int
    ) -> JudgedFiled:
        """The judged answers of some batches and of the pool.

        `tokens` pay for the answers that were drawn, and for training a reward model on all.
        """
        costs = JudgedCosts(self.practice, recipe)
        left = tokens
        for batch in batches:
            left -= _sampled(steps, batch) + costs.owed(steps, batch)
        inputs = FormJudged(
            base=self.practice.base_digest,
            pool=self.pool.digest,
            graded=dict(self.graded),
            responses=[batch.responses for batch in batches],
            scores=[batch.scores for batch in batches],
            prompts=[digest for batch in batches for digest in digests(batch.prompts)],
            max_length=recipe.max_length,
            rows=max(0, left) // recipe.reward_model.epochs,
            seed=seed,
        )

        def effect() -> Outcome[JudgedFiled]:
            left_out = LeftOut()
            known: list[Answered] = []
            for batch in batches:
                known += self.practice.read(steps, batch, recipe, left_out)
            answers: list[JudgedAnswer] = []
            for one in known:
                answers += _judged(one)
            length = recipe.max_length
            rows = pool_answers(self.pool, self.graded, inputs.rows, length, seed)
            levels: dict[str, Counter[int]] = {}
            for answer in [*answers, *rows]:
                for objective, level in answer.levels.items():
                    levels.setdefault(objective, Counter())[level] += 1
            report = JudgedReport(
                prompts=len(known),
                answers=len(known) * recipe.n,
                cut=left_out.cut,
                unscored=left_out.unscored,
                unlearnable=dict(sorted(left_out.unlearnable.items())),
                pool_rows=len(rows),
                levels={name: dict(sorted(count.items())) for name, count in levels.items()},
                sampled=sum(_sampled(steps, batch) for batch in batches),
            )
            digest = steps.store.put_bytes(_lines([*answers, *rows]))
            event = JudgedAnswersEvent(answers=digest, report=report)
            return Outcome(JudgedFiled(answers=digest, report=report), [event])

        return steps.run(inputs, effect)

    def wishes(
        self,
        steps: Steps,
        batches: Sequence[Batch],
        answers: str,
        recipe: RlRecipe,
        classes: Mapping[str, Sequence[int]],
        warm: int,
        tokens: int,
        seed: int,
    ) -> WishesFiled:
        """Chats that state a wish for each objective of `classes`.

        `answers` is the digest of judged answers; `tokens` pay for all, of which `warm` for learning
        from judged answers and from graded rows of the pool.
        """
        inputs = FormWishes(
            base=self.practice.base_digest,
            pool=self.pool.digest,
            graded=dict(self.graded),
            answers=answers,
            responses=[batch.responses for batch in batches],
            prompts=[digest for batch in batches for digest in digests(batch.prompts)],
            classes={name: list(levels) for name, levels in classes.items()},
            rule=_rule_of(recipe),
            warm=warm,
            tokens=tokens,
            seed=seed,
        )

        def effect() -> Outcome[WishesFiled]:
            generator = random.Random(seed)
            judged = self._with_rows(_read(steps.store.path(answers)), recipe, warm, seed)
            rows, row_tokens = self._warm_rows(judged, recipe, inputs, generator)
            left = tokens - recipe.warm.epochs * sum(row_tokens)
            chats, prompts = self._chats(steps, batches, recipe, inputs, left, generator)
            filed = None
            if rows:
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / "warm.parquet"
                    _write_rows(rows, row_tokens, path)
                    filed = steps.store.put_file(path)
            result = WishesFiled(
                warm=filed,
                rows=len(rows),
                tokens=sum(row_tokens),
                chats=steps.store.put_bytes(_lines(chats)) if chats else None,
                prompts=prompts,
            )
            return Outcome(result)

        return steps.run(inputs, effect)

    def _with_rows(
        self, judged: Sequence[JudgedAnswer], recipe: RlRecipe, warm: int, seed: int
    ) -> list[JudgedAnswer]:
        """Judged answers, with as many graded rows of the pool as `warm` tokens could pay for."""
        tokens = warm // recipe.warm.epochs
        rows = pool_answers(self.pool, self.graded, tokens, recipe.max_length, seed)
        known = {row.id for row in rows}
        return [*(one for one in judged if one.id not in known), *rows]

    def _warm_rows(
        self,
        judged: Sequence[JudgedAnswer],
        recipe: RlRecipe,
        inputs: FormWishes,
        generator: random.Random,
    ) -> tuple[list[JudgedAnswer], list[int]]:
        """Judged answers below a wish for their levels, each level as often, and their tokens."""
        wished: list[JudgedAnswer] = []
        lengths: dict[int, int] = {}
        budget = inputs.warm // recipe.warm.epochs
        if not budget:
            return [], []
        for answer in judged:
            known = {name: level for name, level in answer.levels.items() if name in inputs.classes}
            if not known:
                continue
            wish = {**drawn_wish(inputs.classes, generator), **known}
            row = answer.model_copy(
                update={"messages": _wishing(answer.messages, wish), "levels": known}
            )
            length = self.practice.length(plain_chat(row.messages))
            if length is not None and length <= recipe.max_length:
                lengths[len(wished)] = length
                wished.append(row)
        chosen = evenly(by_cell(wished, inputs.seed), lengths, budget)
        return [wished[number] for number in chosen], [lengths[number] for number in chosen]

    def _chats(
        self,
        steps: Steps,
        batches: Sequence[Batch],
        recipe: RlRecipe,
        inputs: FormWishes,
        tokens: int,
        generator: random.Random,
    ) -> tuple[list[WishedChat], list[int]]:
        """Practice prompts with drawn wishes, as many as the tokens surely pay for.

        All prompts have their turn, with a new wish each time.
        """
        asked: list[tuple[PracticePrompt, list[str]]] = []
        for batch in batches:
            lines = steps.store.get_json(batch.responses)
            n = len(lines) // len(batch.prompts)
            for number, practice in enumerate(batch.prompts):
                rewarded = [name for name in practice.objectives if name in inputs.classes]
                if rewarded:
                    earlier = Response.model_validate(lines[number * n]).answers[:-1]
                    asked.append((practice, earlier))
        chats: list[WishedChat] = []
        lengths: list[int] = []
        turns = [shuffled_wishes(inputs.classes, generator) for _ in asked]
        for each in zip(*turns, strict=True):
            before = len(chats)
            for (practice, earlier), wish in zip(asked, each, strict=True):
                chat = wished_chat(practice, earlier, wish, len(chats))
                length = self.practice.asked_length(plain_chat(chat.messages))
                room = length + recipe.max_new_tokens <= recipe.max_length
                cost = worst_case(recipe, [length]).cost
                if room and cost <= tokens:
                    chats.append(chat)
                    lengths.append(length)
                    tokens -= cost
            if len(chats) == before:
                break
        return chats, lengths


def drawn_wish(classes: Mapping[str, Sequence[int]], generator: random.Random) -> dict[str, int]:
    """A level of each objective, any of those that can be asked for.

    >>> drawn_wish({"safety": [1, 5]}, random.Random(1))
    {'safety': 1}
    """
    return {name: generator.choice(list(levels)) for name, levels in classes.items()}


def shuffled_wishes(
    classes: Mapping[str, Sequence[int]], generator: random.Random
) -> list[dict[str, int]]:
    """Different wishes in a drawn order: all that there can be, at most `MOST_WISHES`.

    >>> shuffled_wishes({"safety": [1, 5]}, random.Random(3))
    [{'safety': 1}, {'safety': 5}]
    """
    possible = math.prod(len(levels) for levels in classes.values())
    wishes = []
    for number in generator.sample(range(possible), min(possible, MOST_WISHES)):
        wish = {}
        for name, levels in classes.items():
            number, place = divmod(number, len(levels))
            wish[name] = levels[place]
        wishes.append(wish)
    return wishes


def wished_chat(
    practice: PracticePrompt, earlier: Sequence[str], wish: Mapping[str, int], number: int
) -> WishedChat:
    """A practice prompt up to its last question, `earlier` answers included, below a wish."""
    prompt = practice.prompt
    asked, rest = conversation(prompt, [*earlier, ""])
    messages = [Message.model_validate(message) for message in [*asked, *rest][:-1]]
    rewarded = [name for name in practice.objectives if name in wish]
    return WishedChat(
        id=f"{prompt.id}/{number}", messages=_wishing(messages, wish), objectives=rewarded
    )


def _wishing(messages: Sequence[Message], wish: Mapping[str, int]) -> list[Message]:
    """A chat whose system message begins with a wish."""
    rest, system = list(messages), None
    if rest[0].role == "system":
        system = rest.pop(0).content
    return [Message(role="system", content=stated(system, wish)), *rest]


def _judged(known: Answered) -> list[JudgedAnswer]:
    """The usable answers to a prompt, scores rounded to levels."""
    found = []
    prompt = known.practice.prompt
    for place, number in enumerate(known.usable):
        asked, rest = conversation(prompt, known.responses[number].answers)
        levels = {}
        for name, score in zip(known.rewards.objectives, known.rewards.rewards[place], strict=True):
            levels[name] = min(HIGHEST, max(1, round(float(score))))
        messages = [Message.model_validate(message) for message in [*asked, *rest]]
        found.append(JudgedAnswer(id=f"{prompt.id}/{number}", messages=messages, levels=levels))
    return found


def _sampled(steps: Steps, batch: Batch) -> int:
    """Tokens that the answers of a batch have."""
    return sum(int(line["n_tokens"]) for line in steps.store.get_json(batch.responses))


def _lines(models: Sequence[FrozenModel]) -> bytes:
    """A file with one of them a line."""
    return "".join(json.dumps(one.json_data()) + "\n" for one in models).encode()


def _read(path: Path) -> list[JudgedAnswer]:
    lines = path.read_text().splitlines()
    return [JudgedAnswer.model_validate_json(line) for line in lines]


def _write_rows(rows: Sequence[JudgedAnswer], tokens: Sequence[int], path: Path) -> None:
    """A training set of these chats."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    message = pa.struct([("role", pa.string()), ("content", pa.string()), ("learn", pa.bool_())])
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("messages", pa.list_(message)),
            ("n_tokens", pa.int64()),
            ("weight", pa.float64()),
        ]
    )
    table = []
    for row, length in zip(rows, tokens, strict=True):
        messages = [{"role": m.role, "content": m.content, "learn": m.learn} for m in row.messages]
        table.append({"id": row.id, "messages": messages, "n_tokens": length, "weight": 1.0})
    pq.write_table(pa.Table.from_pylist(table, schema=schema), path)


def _rule_of(recipe: RlRecipe) -> JsonObject:
    """What of a recipe decides how many wishes there are."""
    own = recipe.model_dump(include={"n", "epochs", "max_new_tokens", "max_length"})
    return {**own, "warm_epochs": recipe.warm.epochs}
