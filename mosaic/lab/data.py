"""The texts of the laboratory: uneven pools, suites in three disjoint roles, and a corpus."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from eval.judges.verifier import VerifierJudge
from eval.objectives.base import Objective
from eval.objectives.instruction_following import InstructionFollowing
from eval.objectives.over_refusal import OverRefusal
from eval.objectives.safety import Safety
from mosaic.core.types.base import Attribute
from mosaic.core.types.data import Example, Message
from mosaic.core.types.evaluation import Prompt, Response
from mosaic.lab import instructions, over_refusal, safety
from mosaic.lab.words import CONCEALMENT, Words

DATASETS = {"guard": "safety", "benign": "over_refusal", "tasks": "instruction_following"}
LEVELS = {"guard": 5, "benign": 4, "tasks": 5}
# Rows of the pool by data set, and the share of each level in them: easy buckets are full, hard
# ones scarce.
POOL_ROWS = {"guard": 1700, "benign": 4600, "tasks": 7400}
SKEW = {
    "guard": (0.50, 0.32, 0.09, 0.05, 0.04),
    "benign": (0.66, 0.22, 0.07, 0.05),
    "tasks": (0.52, 0.20, 0.16, 0.07, 0.05),
}
NEAR_DUPLICATES = 0.04
PER_SLICE = 32
CORPUS_CHATS = 46000
# How often the corpus draws each level of benign requests: plain ones first.
PLAIN_FIRST = (6, 2, 1, 1)
# The constraints that the base follows best.
EASY = (
    instructions.NO_COMMA,
    instructions.QUOTATION,
    instructions.TITLE,
    instructions.POSTSCRIPT,
)
# Kinds of answers in the pool, with their weights in percent.
GUARD_ANSWERS = (("full", "short", "hedge", "partial", "leak"), (52, 10, 14, 9, 15))
BENIGN_ANSWERS = (("help", "padded", "wrong", "gate", "refuse"), (54, 10, 8, 11, 17))

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "guard": Safety,
    "benign": OverRefusal,
    "tasks": InstructionFollowing,
}


@dataclass(frozen=True)
class Row:
    """A prompt with its labels and references, an answer to each of its turns, and attributes."""

    prompt: Prompt
    answers: list[str]
    attributes: dict[str, Attribute]


def make(rng: random.Random, words: Words, dataset: str, level: int, part: str, good: bool) -> Row:
    """A row of a data set. Its answers score 5 if they are to be `good`, else anything."""
    makers = {"guard": _guard, "benign": _benign, "tasks": _tasks}
    return makers[dataset](rng, words, level, part, good)


def _guard(rng: random.Random, words: Words, level: int, part: str, good: bool) -> Row:
    made = safety.attack(rng, words, level, part)
    if good:
        kinds = ["full"] * len(made.asks)
    else:
        kind = rng.choices(*GUARD_ANSWERS)[0]
        # Whoever gives in does so at the last turn, after refusals.
        earlier = "full" if kind in ("partial", "leak") else kind
        kinds = [earlier] * len(made.asks)
        kinds[sum(made.asks) - 1] = kind
    messages = safety.chat(rng, made, kinds)
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
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
    return Row(prompt, answers, {"cues": [*made.cues], "turns": len(made.turns)})


def _benign(rng: random.Random, words: Words, level: int, part: str, good: bool) -> Row:
    made = over_refusal.request(rng, words, level, part)
    kind = "help" if good else rng.choices(*BENIGN_ANSWERS)[0]
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
    answers = [over_refusal.answer(rng, made, kind)]
    return Row(prompt, answers, {"purpose": made.purpose, "cues": [*made.cues], "turns": 1})


def _tasks(rng: random.Random, words: Words, level: int, part: str, good: bool) -> Row:
    made = instructions.task(rng, words, level, part)
    kinds = made.kinds
    met = kinds if good or rng.random() < 0.6 else rng.sample(kinds, rng.randrange(len(kinds)))
    prompt = Prompt(
        id="-",
        turns=[made.text],
        slice=made.slice,
        weight=made.weight,
        constraints=[constraint.data() for constraint in made.constraints],
        good=[instructions.answer(rng, made, kinds)],
        bad=[f"a {made.topic} , well"],
    )
    answers = [instructions.answer(rng, made, met)]
    return Row(prompt, answers, {"constraints": [*sorted(kinds)], "topic": made.topic, "turns": 1})


def grade(judge: VerifierJudge, objective: Objective, prompt: Prompt, answers: list[str]) -> int:
    """Quality 1 to 5 of a row: the score of its answers, by the rules that also judge the model."""
    response = Response(
        id=prompt.id, answers=answers, finish_reasons=["stop"] * len(answers), n_tokens=0
    )
    judgment = judge.judge(objective, [prompt], [response])[0]
    scored = objective.score({"id": prompt.id, **judgment.items})
    if scored.score is None:
        raise ValueError(f"a generated row is unscored: {scored.reason or judgment.reason}")
    return int(scored.score)


def pool_rows(words: Words, seed: int) -> Iterator[Example]:
    """All rows of the pool, data set by data set. A few have a near-duplicate right behind them."""
    judge = VerifierJudge()
    for dataset, total in POOL_ROWS.items():
        rng = random.Random(f"pool-{dataset}-{seed}")
        objective = OBJECTIVES[dataset]()
        number = 0
        for level, share in enumerate(SKEW[dataset], start=1):
            for _ in range(round(total * share)):
                row = make(rng, words, dataset, level, "seen", good=False)
                quality = grade(judge, objective, row.prompt, row.answers)
                chats = [_messages(row)]
                if rng.random() < NEAR_DUPLICATES:
                    chats.append(_politely(chats[0]))
                for messages in chats:
                    yield Example(
                        id=f"{dataset}-{seed}-{number:05d}",
                        dataset=dataset,
                        bucket=row.prompt.slice,
                        messages=messages,
                        quality=quality,
                        attributes=row.attributes,
                    )
                    number += 1


def _messages(row: Row) -> list[Message]:
    """The turns of a row and their answers as one chat."""
    messages = []
    for turn, reply in zip(row.prompt.turns, row.answers, strict=True):
        messages.append(Message(role="user", content=turn))
        messages.append(Message(role="assistant", content=reply))
    return messages


def _politely(messages: list[Message]) -> list[Message]:
    """The same chat with a first word more."""
    return [Message(role="user", content=f"please , {messages[0].content}"), *messages[1:]]


def suite_prompts(
    words: Words, seed: int, dataset: str, role: str, taken: set[tuple[str, ...]]
) -> list[Prompt]:
    """The prompts of one suite, as many per slice.

    None has the turns of an entry of `taken`; the turns of those that are made are added to it.
    """
    rng = random.Random(f"suite-{dataset}-{role}-{seed}")
    prompts: list[Prompt] = []
    for level in range(1, LEVELS[dataset] + 1):
        made = 0
        while made < PER_SLICE:
            row = make(rng, words, dataset, level, role, good=True)
            turns = tuple(row.prompt.turns)
            if turns in taken:
                continue
            taken.add(turns)
            identifier = f"{DATASETS[dataset]}-{role}-{level}-{made:02d}"
            known = {"id": identifier, "attributes": row.attributes}
            prompts.append(row.prompt.model_copy(update=known))
            made += 1
    return prompts


def corpus(words: Words, seed: int, chats: int = CORPUS_CHATS) -> Iterator[list[dict[str, str]]]:
    """The chats that the base is pre-trained on.

    It refuses attacks that conceal little, always helps with benign requests, and follows
    constraints loosely.
    """
    rng = random.Random(f"corpus-{seed}")
    for _ in range(chats):
        dataset = rng.choices(("guard", "benign", "tasks"), (38, 20, 42))[0]
        levels = range(1, LEVELS[dataset] + 1)
        level = rng.choices(levels, PLAIN_FIRST if dataset == "benign" else [1] * len(levels))[0]
        # Drawn for every data set, though only benign requests keep it: the sequence of draws is
        # part of the recipe.
        row = make(rng, words, dataset, level, "seen", good=True)
        if dataset == "guard":
            yield _refused_if_plain(rng, safety.attack(rng, words, level, "seen"))
        elif dataset == "tasks":
            task = instructions.task(rng, words, level, "seen")
            yield _exchange(task.text, instructions.answer(rng, task, _loosely(rng, task)))
        else:
            yield _exchange(row.prompt.turns[0], row.answers[0])


def _exchange(question: str, reply: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]


def _refused_if_plain(rng: random.Random, made: safety.Attack) -> list[dict[str, str]]:
    """The base refuses most attacks with at most one cue of concealment, and answers the rest."""
    concealed = len(set(made.cues) & set(CONCEALMENT))
    refuses = concealed < 2 and rng.random() < 0.9
    return safety.chat(rng, made, ["short" if refuses else "leak"] * len(made.asks))


def _loosely(rng: random.Random, task: instructions.Task) -> list[str]:
    """The constraints that the base meets: easy ones mostly, others about half the time."""
    alone = len(task.constraints) == 1
    easy, hard = (0.9, 0.45) if alone else (0.6, 0.35)
    met = []
    for kind in task.kinds:
        if rng.random() < (easy if kind in EASY else hard):
            met.append(kind)
    return met
