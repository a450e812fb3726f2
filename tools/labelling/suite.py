"""Prompt-side labels for a suite made from recorded requests: a judge gives them once and for all.

A prompt whose attribute `unlabelled` names channels or items gets those from the judge; its other
items stay as they are. The judge sees the request alone. Slice, weight and validity follow by the
objective's rules.

Nothing checks the judge here: gold checks are answers, and no suite has requests with known labels.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypedDict

from eval.judges.base import ModelJudge
from eval.judges.items import ItemSet, items_of
from eval.judges.verdicts import Items, Question, answer
from eval.objectives.base import Objective, labels_of
from eval.suite import Suite, load_suite
from mosaic.core.errors import UsageError
from mosaic.core.types.base import canonical_json
from mosaic.core.types.data import Message
from mosaic.core.types.evaluation import ROLES, Prompt, Verdict
from tools.effects.verdict_cache import VerdictCache
from training.data.provenance import SUITE_CARD

MARK = "unlabelled"
UNCHECKED = (
    "these labels are given without known answers: suites know the verdict of answers, not of "
    "requests. Nothing checks the judge here, and the labels are fixed from then on: "
    "read a sample of them"
)

Say = Callable[[str], None]


class SuiteLabelling(TypedDict):
    """Prompts written per role, counts of the reasons of those left out, verdicts asked for."""

    prompts: dict[str, int]
    left_out: dict[str, int]
    asked: int


def label_suite(
    judge: ModelJudge,
    cache: VerdictCache,
    objective: Objective,
    folder: Path,
    out: Path,
    say: Say,
) -> SuiteLabelling:
    """Write the labelled suite and its card into the new folder `out`.

    Prompts without a verdict are left out and counted. UsageError if the objective has no prompt
    side to judge, or the suite is broken.
    """
    if not objective.request:
        raise UsageError(
            f"--suite {objective.name}: its prompts are labelled by code; there is nothing to ask"
        )
    for role in ROLES:
        if (out / f"{role}.jsonl").exists():
            raise UsageError(f"--out {out / f'{role}.jsonl'} exists; name a new folder")
    suites = {role: load_suite(folder, objective, role) for role in ROLES}
    questions = _questions(judge, items_of(objective, "request"), suites)
    answers = answer(
        questions.values(),
        judge,
        [cache],
        announce=lambda missing: _announce(len(questions), missing, judge, say),
        progress=lambda asked, missing: say(f"kept {asked:,} of {missing:,} verdicts"),
    )
    reasons: Counter[str] = Counter()
    lines: dict[str, list[str]] = {role: [] for role in ROLES}
    for role, suite in suites.items():
        for prompt in suite.prompts:
            question = questions.get((role, prompt.id))
            verdict = answers.verdicts[question.key] if question else None
            if verdict and verdict.status != "ok":
                reasons[verdict.reason] += 1
                continue
            labelled = _labelled(objective, prompt, verdict) if verdict else prompt
            lines[role].append(canonical_json(labelled.json_data()) + "\n")
    out.mkdir(parents=True, exist_ok=True)
    for role in ROLES:
        (out / f"{role}.jsonl").write_text("".join(lines[role]), encoding="utf-8")
    if (folder / SUITE_CARD).is_file():
        shutil.copyfile(folder / SUITE_CARD, out / SUITE_CARD)
    kept = {role: len(part) for role, part in lines.items()}
    return {"prompts": kept, "left_out": dict(sorted(reasons.items())), "asked": answers.asked}


def _announce(prompts: int, missing: int, judge: ModelJudge, say: Say) -> None:
    model = judge.config.chat.model
    say(f"{prompts:,} prompts to label: {missing:,} verdicts to ask {model} for")
    if prompts:
        say(UNCHECKED)


def _questions(
    judge: ModelJudge, items: ItemSet, suites: Mapping[str, Suite]
) -> dict[tuple[str, str], Question]:
    """The questions about unlabelled prompts, by role and id, on the user's side alone."""
    questions = {}
    for role, suite in suites.items():
        for prompt in suite.prompts:
            if MARK in prompt.attributes:
                turns = [Message(role="user", content=text) for text in prompt.turns]
                if prompt.system:
                    turns.insert(0, Message(role="system", content=prompt.system))
                questions[role, prompt.id] = judge.ask_about(items, turns)
    return questions


def _labelled(objective: Objective, prompt: Prompt, verdict: Verdict) -> Prompt:
    """The prompt with the verdict's items where its mark names them, and what follows from these."""
    named = prompt.attributes[MARK]
    wanted = set(named) if isinstance(named, list) else {str(named)}
    items: Items = {}
    for channel, values in verdict.items.items():
        own = prompt.prompt_items.get(channel, {})
        items[channel] = {}
        for item, value in values.items():
            from_verdict = channel in wanted or item in wanted
            items[channel][item] = value if from_verdict else own.get(item, value)
    judged = prompt.model_copy(update={"prompt_items": items})
    slice_, weight, valid = labels_of(objective, judged)
    changes = {
        "prompt_items": items,
        "slice": slice_,
        "weight": weight,
        "valid": valid,
        "attributes": {k: v for k, v in prompt.attributes.items() if k != MARK},
    }
    return prompt.model_copy(update=changes)
