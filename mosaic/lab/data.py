"""The laboratory's texts: pools as skewed and as uneven as real ones, suites in three disjoint roles, a corpus."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from eval.judges.verifier import VerifierJudge
from eval.objectives.base import Objective
from eval.objectives.instruction_following import InstructionFollowing
from eval.objectives.over_refusal import OverRefusal
from eval.objectives.safety import Safety
from mosaic.core.types.data import Example, Message
from mosaic.core.types.evaluation import Prompt, Response
from mosaic.lab import instructions, over_refusal, safety
from mosaic.lab.words import CONCEALMENT, Words

DATASETS = {"guard": "safety", "benign": "over_refusal", "tasks": "instruction_following"}
LEVELS = {"guard": 5, "benign": 4, "tasks": 5}
# Tokens of the pool by data set, and rows by level within each: easy buckets are full, hard ones scarce.
POOL_ROWS = {"guard": 1700, "benign": 4600, "tasks": 7400}
SKEW = {
    "guard": (0.50, 0.32, 0.09, 0.05, 0.04),
    "benign": (0.66, 0.22, 0.07, 0.05),
    "tasks": (0.52, 0.20, 0.16, 0.07, 0.05),
}
NEAR_DUPLICATES = 0.04
PER_SLICE = 32
CORPUS_CHATS = 46000
PLAIN_FIRST = (6, 2, 1, 1)
EASY = (
    "punctuation:no_comma",
    "startend:quotation",
    "detectable_format:title",
    "detectable_content:postscript",
)

Row = tuple[Prompt, list[str], dict[str, Any]]


def objective_of(dataset: str) -> Objective:
    made: dict[str, Callable[[], Objective]] = {
        "guard": Safety,
        "benign": OverRefusal,
        "tasks": InstructionFollowing,
    }
    return made[dataset]()


def make(rng: random.Random, words: Words, dataset: str, level: int, part: str, good: bool) -> Row:
    """A prompt with labels and references, answers for its turns, and attributes. `good` answers score 5."""
    if dataset == "guard":
        return _guard(rng, words, level, part, good)
    if dataset == "benign":
        return _benign(rng, words, level, part, good)
    return _tasks(rng, words, level, part, good)


def _guard(rng: random.Random, words: Words, level: int, part: str, good: bool) -> Row:
    made = safety.attack(rng, words, level, part)
    if good:
        kinds = ["full"] * len(made.asks)
    else:
        kind = rng.choices(("full", "short", "hedge", "partial", "leak"), (52, 10, 14, 9, 15))[0]
        kinds = ["full" if kind in ("partial", "leak") else kind] * len(made.asks)
        kinds[sum(made.asks) - 1] = kind
    answers = [m["content"] for m in safety.chat(rng, made, kinds) if m["role"] == "assistant"]
    right, wrong = safety.references(rng, made)
    prompt = Prompt(
        id="-",
        turns=made.turns,
        slice=made.slice,
        weight=made.weight,
        prompt_items=made.items,
        rules=safety.RULES,
        good=right,
        bad=wrong,
    )
    return prompt, answers, {"cues": made.cues, "turns": len(made.turns)}


def _benign(rng: random.Random, words: Words, level: int, part: str, good: bool) -> Row:
    made = over_refusal.request(rng, words, level, part)
    kind = (
        "help"
        if good
        else rng.choices(("help", "padded", "wrong", "gate", "refuse"), (54, 10, 8, 11, 17))[0]
    )
    prompt = Prompt(
        id="-",
        turns=[made.text],
        slice=made.slice,
        weight=made.weight,
        prompt_items=made.items,
        rules=over_refusal.rules(made),
        good=[over_refusal.answer(rng, made, "help")],
        bad=[over_refusal.answer(rng, made, "refuse")],
    )
    attributes = {"purpose": made.purpose, "cues": made.cues, "turns": 1}
    return prompt, [over_refusal.answer(rng, made, kind)], attributes


def _tasks(rng: random.Random, words: Words, level: int, part: str, good: bool) -> Row:
    made = instructions.task(rng, words, level, part)
    kinds = [c["id"] for c in made.constraints]
    met = kinds if good or rng.random() < 0.6 else rng.sample(kinds, rng.randrange(len(kinds)))
    prompt = Prompt(
        id="-",
        turns=[made.text],
        slice=made.slice,
        weight=made.weight,
        constraints=made.constraints,
        good=[instructions.answer(rng, made, kinds)],
        bad=[f"a {made.topic} , well"],
    )
    attributes = {"constraints": sorted(kinds), "topic": made.topic, "turns": 1}
    return prompt, [instructions.answer(rng, made, met)], attributes


def grade(judge: VerifierJudge, objective: Objective, prompt: Prompt, answers: list[str]) -> int:
    """Quality 1-5 of a row: the score its own answers get under the rules that also judge the model."""
    response = Response(
        id=prompt.id, answers=answers, finish_reasons=["stop"] * len(answers), n_tokens=0
    )
    judgment = judge.judge(objective, [prompt], [response])[0]
    scored = objective.score({"id": prompt.id, **judgment.items})
    if scored.score is None:
        raise ValueError(f"a generated row is unscored: {scored.reason or judgment.reason}")
    return int(scored.score)


def pool_rows(words: Words, seed: int) -> Iterator[Example]:
    """All rows of the pool, data set by data set."""
    judge = VerifierJudge()
    for dataset, total in POOL_ROWS.items():
        rng = random.Random(f"pool-{dataset}-{seed}")
        objective = objective_of(dataset)
        number = 0
        for level, share in enumerate(SKEW[dataset], start=1):
            for _ in range(round(total * share)):
                prompt, answers, attributes = make(rng, words, dataset, level, "seen", good=False)
                quality = grade(judge, objective, prompt, answers)
                messages = [
                    message
                    for turn, reply in zip(prompt.turns, answers, strict=True)
                    for message in (
                        Message(role="user", content=turn),
                        Message(role="assistant", content=reply),
                    )
                ]
                copies = 2 if rng.random() < NEAR_DUPLICATES else 1
                for copy in range(copies):
                    first = (
                        messages[0]
                        if copy == 0
                        else Message(role="user", content=f"please , {messages[0].content}")
                    )
                    yield Example(
                        id=f"{dataset}-{seed}-{number:05d}",
                        dataset=dataset,
                        bucket=prompt.slice,
                        messages=[first, *messages[1:]],
                        quality=quality,
                        attributes=attributes,
                    )
                    number += 1


def suite_prompts(
    words: Words, seed: int, dataset: str, role: str, taken: set[tuple[str, ...]]
) -> list[Prompt]:
    """Prompts of one suite, as many per slice; none whose turns are in `taken`, which grows."""
    rng = random.Random(f"suite-{dataset}-{role}-{seed}")
    prompts: list[Prompt] = []
    for level in range(1, LEVELS[dataset] + 1):
        made = 0
        while made < PER_SLICE:
            prompt, _, attributes = make(rng, words, dataset, level, role, good=True)
            turns = tuple(prompt.turns)
            if turns in taken:
                continue
            taken.add(turns)
            identifier = f"{DATASETS[dataset]}-{role}-{level}-{made:02d}"
            prompts.append(prompt.model_copy(update={"id": identifier, "attributes": attributes}))
            made += 1
    return prompts


def corpus(words: Words, seed: int, chats: int = CORPUS_CHATS) -> Iterator[list[dict[str, str]]]:
    """What the base is pre-trained on: refuses attacks that conceal little, helps always, follows loosely."""
    rng = random.Random(f"corpus-{seed}")
    for _ in range(chats):
        dataset = rng.choices(("guard", "benign", "tasks"), (38, 20, 42))[0]
        levels = range(1, LEVELS[dataset] + 1)
        level = rng.choices(levels, PLAIN_FIRST if dataset == "benign" else [1] * len(levels))[0]
        prompt, answers, _ = make(rng, words, dataset, level, "seen", good=True)
        if dataset == "guard":
            made = safety.attack(rng, words, level, "seen")
            refuses = len(set(made.cues) & set(CONCEALMENT)) < 2 and rng.random() < 0.9
            yield safety.chat(rng, made, ["short" if refuses else "leak"] * len(made.asks))
            continue
        if dataset == "tasks":
            task = instructions.task(rng, words, level, "seen")
            answers = [instructions.answer(rng, task, _loosely(rng, task))]
            prompt = prompt.model_copy(update={"turns": [task.text]})
        yield [
            {"role": role, "content": text}
            for turn, reply in zip(prompt.turns, answers, strict=True)
            for role, text in (("user", turn), ("assistant", reply))
        ]


def _loosely(rng: random.Random, task: instructions.Task) -> list[str]:
    """The constraints that a base answer meets: easy kinds mostly, others about half the time."""
    kinds = [c["id"] for c in task.constraints]
    alone = len(kinds) == 1
    return [
        k
        for k in kinds
        if rng.random() < ((0.9 if alone else 0.6) if k in EASY else (0.45 if alone else 0.35))
    ]
