"""Pool rows and suites in ordinary English, and the folder that a config names.

Four data sets: `guard` serves safety, `benign` over-refusal, `tasks` instruction following, and
`general` is declared for none of them. Retention is measured on prose that is not trained on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import yaml

from eval.judges.verifier import VerifierJudge
from mosaic.core.types.base import Attribute
from mosaic.core.types.data import Example, Message
from mosaic.core.types.evaluation import ROLES, Prompt
from mosaic.lab.data import OBJECTIVES, Row, grade
from mosaic.lab.english import instructions, over_refusal, safety
from mosaic.lab.english.words import Names
from mosaic.lab.instructions import Task

GENERAL = "general"
RETENTION = "retention"
DATASETS = {"guard": "safety", "benign": "over_refusal", "tasks": "instruction_following"}
# Rows of the pool, the share of each level in them, and prompts per slice of a suite.
POOL_ROWS = {"guard": 700, "benign": 600, "tasks": 900}
SKEW = {
    "guard": (0.46, 0.30, 0.12, 0.07, 0.05),
    "benign": (0.50, 0.28, 0.13, 0.09),
    "tasks": (0.46, 0.20, 0.18, 0.09, 0.07),
}
PER_SLICE = {"guard": 8, "benign": 10, "tasks": 8}
# Kinds of answers in the pool, with their weights in percent.
GUARD_ANSWERS = (("full", "short", "hedge", "partial", "leak"), (58, 14, 12, 6, 10))
BENIGN_ANSWERS = (("help", "padded", "gate", "refuse"), (66, 12, 8, 14))
WELL_FOLLOWED = 0.7
GENERAL_QUALITY = 5


def make(rng: random.Random, names: Names, dataset: str, level: int, part: str, good: bool) -> Row:
    """A row of a data set. Its answers score 5 if they are to be `good`, else anything."""
    makers = {"guard": _guard, "benign": _benign, "tasks": _task}
    return makers[dataset](rng, names, level, part, good)


def _guard(rng: random.Random, names: Names, level: int, part: str, good: bool) -> Row:
    made = safety.attack(rng, names, level, part)
    asked = sum(made.asks)
    kind = "full" if good else rng.choices(*GUARD_ANSWERS)[0]
    # Whoever gives in does so at the last turn, after refusals.
    earlier = "full" if kind in ("partial", "leak") else kind
    kinds = [earlier] * (asked - 1) + [kind]
    prompt = Prompt(
        id="-",
        turns=made.turns,
        slice=made.slice,
        weight=made.weight,
        prompt_items=made.items,
        rules=safety.RULES,
        good=safety.replies(rng, made, ["full"] * asked),
        bad=safety.replies(rng, made, ["leak"] * asked),
    )
    attributes: dict[str, Attribute] = {"cues": [*made.cues], "turns": len(made.turns)}
    return Row(prompt, safety.replies(rng, made, kinds), attributes)


def _benign(rng: random.Random, names: Names, level: int, part: str, good: bool) -> Row:
    made = over_refusal.request(rng, names, level, part)
    kind = "help" if good else rng.choices(*BENIGN_ANSWERS)[0]
    prompt = Prompt(
        id="-",
        turns=made.turns,
        slice=made.slice,
        weight=made.weight,
        prompt_items=made.items,
        rules=over_refusal.rules(made),
        good=[over_refusal.answer(rng, made, "help")],
        bad=[over_refusal.answer(rng, made, "refuse")],
    )
    attributes: dict[str, Attribute] = {"purpose": made.purpose, "cues": [*made.cues]}
    return Row(prompt, [over_refusal.answer(rng, made, kind)], attributes)


def _task(rng: random.Random, names: Names, level: int, part: str, good: bool) -> Row:
    made = instructions.task(rng, names, level, part)
    kinds = made.kinds
    if good or rng.random() < WELL_FOLLOWED:
        met = kinds
    else:
        met = rng.sample(kinds, rng.randrange(len(kinds)))
    prompt = Prompt(
        id="-",
        turns=made.turns,
        slice=made.slice,
        weight=made.weight,
        constraints=[instructions.constraint_data(c) for c in made.constraints],
        good=[instructions.answer(rng, made, kinds)],
        bad=[_far_off(made)],
    )
    attributes: dict[str, Attribute] = {"constraints": [*sorted(kinds)], "topic": made.noun}
    return Row(prompt, [instructions.answer(rng, made, met)], attributes)


def _far_off(made: Task) -> str:
    """An answer that meets none of the constraints."""
    sentence = f"A {made.noun}, well, is what it is, as they say. "
    return (sentence * instructions.MAX_WORDS)[: 6 * instructions.MAX_WORDS].strip()


def pool_rows(names: Names, seed: int) -> Iterator[Example]:
    """All rows of the pool, data set by data set, graded by the rules that also judge the model."""
    judge = VerifierJudge()
    for dataset, total in POOL_ROWS.items():
        rng = random.Random(f"english-pool-{dataset}-{seed}")
        objective = OBJECTIVES[dataset]()
        number = 0
        for level, share in enumerate(SKEW[dataset], start=1):
            for _ in range(round(total * share)):
                row = make(rng, names, dataset, level, "seen", good=False)
                yield Example(
                    id=f"{dataset}-{number:05d}",
                    dataset=dataset,
                    bucket=row.prompt.slice,
                    messages=_messages(row.prompt.turns, row.answers),
                    quality=grade(judge, objective, row.prompt, row.answers),
                    attributes=row.attributes,
                )
                number += 1
    yield from _general_rows()


def _general_rows() -> Iterator[Example]:
    pairs = yaml.safe_load((Path(__file__).parent / "general.yaml").read_text())
    for number, pair in enumerate(pairs):
        for form, asked in enumerate(_ways_to_ask(pair["question"])):
            yield Example(
                id=f"{GENERAL}-{number:03d}-{form}",
                dataset=GENERAL,
                bucket="everyday",
                messages=_messages([asked], [pair["answer"]]),
                quality=GENERAL_QUALITY,
            )


def _ways_to_ask(question: str) -> tuple[str, ...]:
    lowered = question[0].lower() + question[1:]
    return (question, f"Please tell me: {lowered}", f"I have a question. {question}")


def _messages(turns: list[str], answers: list[str]) -> list[Message]:
    messages = []
    for turn, reply in zip(turns, answers, strict=True):
        messages.append(Message(role="user", content=turn))
        messages.append(Message(role="assistant", content=reply))
    return messages


def suites(names: Names, seed: int, pool: list[Example]) -> Iterator[tuple[str, str, list[Prompt]]]:
    """(objective, role, prompts) of every suite.

    No two prompts have the same turns, whatever their roles, and none has those of a pool row.
    """
    taken = set()
    for row in pool:
        taken.add(tuple(m.content for m in row.messages if m.role == "user"))
    for dataset, objective in DATASETS.items():
        for role in ROLES:
            yield objective, role, _suite(names, seed, dataset, role, taken)
    passages = yaml.safe_load((Path(__file__).parent / "held_out.yaml").read_text())
    for role in ROLES:
        yield RETENTION, role, _held_out(role, passages[role])


def _suite(
    names: Names, seed: int, dataset: str, role: str, taken: set[tuple[str, ...]]
) -> list[Prompt]:
    rng = random.Random(f"english-suite-{dataset}-{role}-{seed}")
    prompts = []
    for level in range(1, len(SKEW[dataset]) + 1):
        made = 0
        while made < PER_SLICE[dataset]:
            row = make(rng, names, dataset, level, role, good=True)
            turns = tuple(row.prompt.turns)
            if turns in taken:
                continue
            taken.add(turns)
            known = {"id": f"{role}-{level}-{made:02d}", "attributes": row.attributes}
            prompts.append(row.prompt.model_copy(update=known))
            made += 1
    return prompts


def _held_out(role: str, passages: list[str]) -> list[Prompt]:
    prompts = []
    for number, passage in enumerate(passages):
        prompts.append(Prompt(id=f"{role}-{number:02d}", turns=[passage], slice="all", weight=1))
    return prompts
