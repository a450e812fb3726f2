"""The texts of the laboratory: uneven pools, suites in three disjoint roles, and a corpus."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from eval.judges.verifier import VerifierJudge
from eval.objectives.base import Objective
from eval.objectives.instruction_following import InstructionFollowing
from eval.objectives.over_refusal import OverRefusal
from eval.objectives.safety import Safety
from mosaic.core.types.base import Attribute
from mosaic.core.types.data import Example, Message
from mosaic.core.types.evaluation import Prompt, Response
from mosaic.lab import general, instructions, over_refusal, safety
from mosaic.lab.stories import story
from mosaic.lab.words import Words

DATASETS = {"guard": "safety", "benign": "over_refusal", "tasks": "instruction_following"}
RETENTION = "retention"
LEVELS = {"guard": 5, "benign": 4, "tasks": 5}
# Rows of the pool by data set, and the share of each level in them: easy buckets are full, hard
# ones scarce.
POOL_ROWS = {"guard": 1300, "benign": 1800, "tasks": 5200, "talk": 1800, "lessons": 900}
SKEW = {
    "guard": (0.50, 0.32, 0.09, 0.05, 0.04),
    "benign": (0.50, 0.27, 0.14, 0.09),
    "tasks": (0.52, 0.20, 0.16, 0.07, 0.05),
    "talk": (0.35, 0.30, 0.25, 0.10),
}
# Of the answers that could have the form a request asks for, how many in percent have it.
OBEYS = {"guard": 30, "benign": 70}
NEAR_DUPLICATES = 0.04
PER_SLICE = 32
STORIES = 40
PRACTICE = 60
PRACTISED = ("guard", "benign")
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
    obeys = rng.randrange(100) < OBEYS["guard"]
    right, wrong = safety.references(rng, made)
    prompt = Prompt(
        id="-",
        turns=made.turns,
        slice=made.slice,
        weight=made.weight,
        prompt_items=made.items,
        rules=safety.RULES,
        constraints=[constraint.data() for constraint in made.wanted],
        good=right,
        bad=wrong,
    )
    attributes: dict[str, Attribute] = {"cues": [*made.cues], "turns": len(made.turns)}
    return Row(prompt, safety.answers(rng, made, kinds, obeys), attributes)


def _benign(rng: random.Random, words: Words, level: int, part: str, good: bool) -> Row:
    made = over_refusal.request(rng, words, level, part)
    kind = "help" if good else rng.choices(*BENIGN_ANSWERS)[0]
    obeys = rng.randrange(100) < OBEYS["benign"]
    prompt = Prompt(
        id="-",
        turns=made.turns,
        slice=made.slice,
        weight=made.weight,
        prompt_items=made.items,
        rules=over_refusal.rules(made),
        constraints=[constraint.data() for constraint in made.wanted],
        good=over_refusal.answers(rng, made, "help", obeys=False),
        bad=over_refusal.answers(rng, made, "refuse", obeys=False),
    )
    attributes: dict[str, Attribute] = {
        "purpose": made.purpose,
        "cues": [*made.cues],
        "turns": len(made.turns),
    }
    return Row(prompt, over_refusal.answers(rng, made, kind, obeys), attributes)


def _tasks(rng: random.Random, words: Words, level: int, part: str, good: bool) -> Row:
    made = instructions.task(rng, words, level, part)
    kinds = made.kinds
    met = kinds if good or rng.random() < 0.6 else rng.sample(kinds, rng.randrange(len(kinds)))
    prompt = Prompt(
        id="-",
        turns=made.turns,
        slice=made.slice,
        weight=made.weight,
        constraints=[constraint.data() for constraint in made.constraints],
        good=instructions.chat(made, instructions.answer(rng, made, kinds)),
        bad=instructions.chat(made, instructions.bad(made)),
    )
    answers = instructions.chat(made, instructions.answer(rng, made, met))
    attributes: dict[str, Attribute] = {
        "constraints": [*sorted(kinds)],
        "subject": made.subject,
        "turns": len(made.turns),
    }
    return Row(prompt, answers, attributes)


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


def pool_rows(
    words: Words, seed: int, datasets: Sequence[str] = tuple(POOL_ROWS)
) -> Iterator[Example]:
    """The rows of these data sets of the pool. A few have a near-duplicate right behind them."""
    for dataset in datasets:
        rng = random.Random(f"pool-{dataset}-{seed}")
        number = 0
        for example in _examples(rng, words, dataset):
            chats = [example.messages]
            if rng.random() < NEAR_DUPLICATES:
                chats.append(_politely(chats[0]))
            for messages in chats:
                known = {"id": f"{dataset}-{seed}-{number:05d}", "messages": messages}
                yield example.model_copy(update=known)
                number += 1


def _examples(rng: random.Random, words: Words, dataset: str) -> Iterator[Example]:
    """The rows of one data set, which have no id yet and no near-duplicates."""
    total = POOL_ROWS[dataset]
    if dataset == "lessons":
        for _ in range(total):
            exchange, slice_, cues = general.lesson(rng, words)
            yield _general(dataset, slice_, [exchange], {"cues": [*cues], "turns": 1})
        return
    for level, share in enumerate(SKEW[dataset], start=1):
        for _ in range(round(total * share)):
            if dataset == "talk":
                kind = general.TALK[level - 1]
                exchanges = general.talk(rng, words, kind)
                yield _general(dataset, kind, exchanges, {"turns": len(exchanges)})
                continue
            row = make(rng, words, dataset, level, "seen", good=False)
            yield Example(
                id="-",
                dataset=dataset,
                bucket=row.prompt.slice,
                messages=_messages(row.prompt.turns, row.answers),
                quality=grade(VerifierJudge(), OBJECTIVES[dataset](), row.prompt, row.answers),
                attributes=row.attributes,
            )


def _general(
    dataset: str, bucket: str, exchanges: list[general.Exchange], attributes: dict[str, Attribute]
) -> Example:
    """A row that no objective's rules grade; all of them are good."""
    questions = [question for question, _ in exchanges]
    replies = [reply for _, reply in exchanges]
    return Example(
        id="-",
        dataset=dataset,
        bucket=bucket,
        messages=_messages(questions, replies),
        quality=5,
        attributes=attributes,
    )


def _messages(turns: list[str], answers: list[str]) -> list[Message]:
    """The turns and their answers as one chat."""
    messages = []
    for turn, reply in zip(turns, answers, strict=True):
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


def retention_prompts(words: Words, seed: int, role: str) -> list[Prompt]:
    """Held-out stories. Those of the audit are of topics and goods that stand nowhere else."""
    rng = random.Random(f"suite-retention-{role}-{seed}")
    prompts = []
    for number in range(STORIES):
        text = story(rng, words, role)
        prompts.append(
            Prompt(id=f"retention-{role}-{number:02d}", turns=[text], slice="all", weight=1)
        )
    return prompts


def practice_prompts(
    words: Words, seed: int, dataset: str, taken: set[tuple[str, ...]]
) -> list[Prompt]:
    """Attacks or benign requests that also ask for a form, to be judged under two objectives."""
    rng = random.Random(f"suite-{dataset}-practice-{seed}")
    prompts: list[Prompt] = []
    while len(prompts) < PRACTICE:
        level = rng.randint(1, LEVELS[dataset])
        prompt = make(rng, words, dataset, level, "steering", good=True).prompt
        turns = tuple(prompt.turns)
        if turns in taken or not prompt.constraints:
            continue
        taken.add(turns)
        known = {
            "id": f"{DATASETS[dataset]}-practice-{len(prompts):02d}",
            "objectives": [DATASETS[dataset], DATASETS["tasks"]],
        }
        prompts.append(prompt.model_copy(update=known))
    return prompts
