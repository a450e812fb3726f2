"""Prompt-side labels for a suite made from recorded requests: a judge labels them once, and they are fixed from then on.

A prompt whose attribute `unlabelled` names channels or items gets those from the judge; what it had otherwise stays. The
judge sees the request alone. Slice, weight and validity follow by the objective's rules.

Nothing checks the judge here: known answers are answers, and no suite has requests whose labels are known.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.judges.llm import REQUEST, LlmJudge, Made, Question
from eval.objectives.base import Objective
from eval.suite import load_suite
from mosaic.core.errors import UsageError
from mosaic.core.types.base import canonical_json
from mosaic.core.types.data import Message
from mosaic.core.types.evaluation import ROLES, Prompt, Verdict
from tools.effects.judge import ask_in_batches
from tools.effects.verdict_cache import VerdictCache
from training.data.provenance import SUITE_CARD

MARK = "unlabelled"
UNCHECKED = (
    "these labels are given without known answers: suites know the verdict of answers, not of requests. Nothing checks the "
    "judge here, and the labels are fixed from then on: read a sample of them"
)


def label_suite(
    judge: LlmJudge,
    cache: VerdictCache,
    objective: Objective,
    folder: Path,
    out: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write the labelled suite into the new folder `out`, its card with it; prompts without a verdict are left out and
    counted.

    UsageError where the objective has no prompt side to judge, or the suite is broken.
    """
    name = objective.name + REQUEST
    if not judge.asks(name):
        raise UsageError(
            f"--suite {objective.name}: its prompts are labelled by code; there is nothing to ask"
        )
    existing = [out / f"{role}.jsonl" for role in ROLES if (out / f"{role}.jsonl").exists()]
    if existing:
        raise UsageError(f"--out {existing[0]} exists; name a new folder")
    suites = {role: load_suite(folder, objective, role) for role in ROLES}
    questions = {
        (role, p.id): _question(judge, name, p)
        for role, s in suites.items()
        for p in s.prompts
        if MARK in p.attributes
    }
    found: dict[str, Verdict] = {q.key: hit for q in questions.values() if (hit := cache.get(q))}
    missing = list({q.key: q for q in questions.values() if q.key not in found}.values())
    say(
        f"{len(questions):,} prompts to label: {len(missing):,} verdicts to ask {judge.config.chat.model} for"
    )

    def keep(made: Sequence[Made]) -> None:
        cache.put([(q, v) for q, v, _ in made])
        say(f"kept {len(made):,} verdicts")

    if questions:
        say(UNCHECKED)
    found |= ask_in_batches(judge, missing, lambda batch: None, keep)
    reasons: Counter[str] = Counter()
    lines: dict[str, list[str]] = {role: [] for role in ROLES}
    for role, suite in suites.items():
        for prompt in suite.prompts:
            question = questions.get((role, prompt.id))
            verdict = found[question.key] if question else None
            if verdict and verdict.status != "ok":
                reasons[verdict.reason] += 1
                continue
            fixed = _fixed(objective, prompt, verdict) if verdict else prompt
            lines[role].append(canonical_json(fixed.json_data()) + "\n")
    out.mkdir(parents=True, exist_ok=True)
    for role in ROLES:
        (out / f"{role}.jsonl").write_text("".join(lines[role]), encoding="utf-8")
    if (folder / SUITE_CARD).is_file():
        shutil.copyfile(folder / SUITE_CARD, out / SUITE_CARD)
    kept = {role: len(part) for role, part in lines.items()}
    return {"prompts": kept, "left_out": dict(sorted(reasons.items())), "asked": len(missing)}


def _question(judge: LlmJudge, name: str, prompt: Prompt) -> Question:
    system = [Message(role="system", content=prompt.system)] if prompt.system else []
    return judge.ask_about(
        name, [*system, *(Message(role="user", content=t) for t in prompt.turns)]
    )


def _fixed(objective: Objective, prompt: Prompt, verdict: Verdict) -> Prompt:
    """The prompt with the items that its mark names, and what follows from them."""
    named = prompt.attributes[MARK]
    wanted = set(named) if isinstance(named, list) else {str(named)}
    items = {
        channel: {
            item: value
            if channel in wanted or item in wanted
            else prompt.prompt_items.get(channel, {}).get(item, value)
            for item, value in values.items()
        }
        for channel, values in verdict.items.items()
    }
    slice_, weight, valid = objective.prompt_side(items, len(prompt.turns), prompt.constraints)
    attributes = {k: v for k, v in prompt.attributes.items() if k != MARK}
    changes = {
        "prompt_items": items,
        "slice": slice_,
        "weight": weight,
        "valid": valid,
        "attributes": attributes,
    }
    return prompt.model_copy(update=changes)
