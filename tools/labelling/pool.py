"""Labels for pool rows: a judge scores each row once, and the objective's own rules make quality, bucket and attributes.

The assistant turns of a row are the answers, its user turns the request; both sides are judged under the items that
evaluation uses, so that a bucket of the pool and a slice of a suite mean the same. Verdicts come from the cache where
they are there; an interrupted labelling asks only for the rest. Rows are left out, with a reason, where a verdict could
not be made, and where the rules call the request invalid (harmful, or without a way to answer).

Instruction following is checked by code. Its constraints stand in two attributes of equal length: `constraints`
(checker ids) and `constraint_params` (the text of a JSON object each). A constraint that lacks its parameters cannot be
verified: it counts for the bucket, not for the quality, and a row of none but such is left out. Both attributes stay as
they are, so that labelled rows can be labelled again; the label of that name becomes `constraint_count`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.ifeval import verifiable
from eval.judges.llm import CODE, REQUEST, LlmJudge, Made, Question
from eval.judges.verifier import VerifierJudge
from eval.objectives.base import Malformed, Objective
from mosaic.core.errors import UsageError
from mosaic.core.types.base import Attribute, Scalar
from mosaic.core.types.data import Example
from mosaic.core.types.evaluation import Judgment, Prompt, Response, Scored, Verdict
from tools.effects.judge import BATCH, GoldChecks, Spent, ask_in_batches
from tools.effects.verdict_cache import VerdictCache
from training.data.build import parse

CHUNK = 512
UNLABELLED = "unlabelled"
# L2 labels whose names are those of attributes that labelling reads.
RENAMED = {"constraints": "constraint_count"}
ANSWER_TOKENS = 120
CHARACTERS_PER_TOKEN = 4

Say = Callable[[str], None]


@dataclass(frozen=True)
class Labelling:
    """What a labelling did. `left_out` counts reasons; `asked` and `cached` are verdicts, `known_answers` those that the
    judge was asked about beside them, `tokens` what both were charged."""

    rows: int
    labelled: int
    left_out: dict[str, int]
    asked: int
    cached: int
    tokens: int
    known_answers: int

    def json_data(self) -> dict[str, Any]:
        return dict(vars(self))


class Labeller:
    """Labels rows under the objectives that their data sets serve."""

    def __init__(
        self,
        judge: LlmJudge,
        cache: VerdictCache,
        canaries: GoldChecks,
        objectives: Mapping[str, Objective],
        datasets: Mapping[str, str],
        say: Say,
    ) -> None:
        """`datasets` is data set -> name of its objective."""
        self.judge = judge
        self.cache = cache
        self.canaries = canaries
        self.objectives = objectives
        self.datasets = datasets
        self.say = say

    def label(self, sources: Sequence[Path], out: Path) -> Labelling:
        """Write the labelled rows to `out` (JSONL) and those left out, with their reasons, beside it as
        `<out>.left-out.jsonl`. UsageError with file:line for a row that is none; nothing is asked before all are read."""
        if out.exists():
            raise UsageError(f"--out {out} exists; name a new file")
        total = self._estimate(sources)
        if not total:
            raise UsageError(f"{', '.join(map(str, sources))}: no row in them")
        rows = labelled = asked = tokens = questions = 0
        reasons: Counter[str] = Counter()
        known = Spent()
        out.parent.mkdir(parents=True, exist_ok=True)
        part, aside = (
            out.with_name(f".{out.name}.part"),
            out.with_name(f"{out.name}.left-out.jsonl"),
        )
        with part.open("w", encoding="utf-8") as kept, aside.open("w", encoding="utf-8") as dropped:
            for chunk in _chunks(self._rows(sources)):
                wanted = {q.key: q for row in chunk for q in self._questions(row)}
                found, made = self._verdicts(list(wanted.values()), known)
                questions += len(wanted)
                asked += len(made)
                tokens += sum(v.charged for _, v, _ in made)
                for row in chunk:
                    done = self._labelled(row, found)
                    if isinstance(done, Example):
                        labelled += 1
                        kept.write(
                            json.dumps(done.model_dump(mode="json", exclude_none=True)) + "\n"
                        )
                    else:
                        reasons[done] += 1
                        dropped.write(
                            json.dumps({"id": row.id, "dataset": row.dataset, "reason": done})
                            + "\n"
                        )
                rows += len(chunk)
                self.say(f"labelled {rows:,} of {total:,} rows, {asked:,} verdicts asked for")
            kept.flush()
            os.fsync(kept.fileno())
        os.replace(part, out)
        if not reasons:
            aside.unlink()
        cached, tokens = questions - asked, tokens + known.tokens
        return Labelling(
            rows, labelled, dict(sorted(reasons.items())), asked, cached, tokens, known.requests
        )

    def _estimate(self, sources: Sequence[Path]) -> int:
        """Read every row once, say what the rest will cost, and return their number."""
        rows = missing = characters = known = checks = 0
        for chunk in _chunks(self._rows(sources)):
            rows += len(chunk)
            new: Counter[str] = Counter()
            for row in chunk:
                for question in self._questions(row):
                    if self.cache.get(question):
                        known += 1
                        continue
                    new[self.datasets[row.dataset]] += 1
                    characters += sum(len(m["content"]) for m in self.judge.messages(question))
            missing += new.total()
            checks += sum(
                self.canaries.most(name) * -(-count // BATCH) for name, count in new.items()
            )
        # A known answer is about as long to read as a row.
        prompt = characters // CHARACTERS_PER_TOKEN * (missing + checks) // max(1, missing)
        self.say(
            f"{rows:,} rows: {missing:,} verdicts to ask for, {known:,} known; "
            f"about {prompt:,} tokens read and {(missing + checks) * ANSWER_TOKENS:,} written by "
            f"{self.judge.config.chat.model}, {checks:,} known answers included"
        )
        return rows

    def _rows(self, sources: Sequence[Path]) -> Iterator[Example]:
        seen: dict[str, str] = {}
        for source in sources:
            for where, row in parse(source, seen, {"bucket": UNLABELLED, "quality": 1}):
                if row.dataset not in self.datasets:
                    known = ", ".join(self.datasets)
                    raise UsageError(
                        f"{where}: dataset: {row.dataset!r} serves no objective of the config; it has {known}"
                    )
                yield row

    def _questions(self, row: Example) -> list[Question]:
        objective = self.datasets[row.dataset]
        if not self.judge.asks(objective):
            return []
        return [
            self.judge.ask_about(name, row.messages) for name in (objective, objective + REQUEST)
        ]

    def _verdicts(
        self, questions: Sequence[Question], known: Spent
    ) -> tuple[dict[str, Verdict], list[Made]]:
        """All verdicts by key, and those that were asked for now; `known` is what the known answers have cost."""
        found = {q.key: hit for q in questions if (hit := self.cache.get(q))}
        made: list[Made] = []
        for objective in sorted({q.name.removesuffix(REQUEST) for q in questions}):
            missing = [
                q
                for q in questions
                if q.name.removesuffix(REQUEST) == objective and q.key not in found
            ]

            def before(batch: str, objective: str = objective) -> None:
                self.canaries.ask(objective, batch, known)

            def keep(some: Sequence[Made]) -> None:
                self.cache.put([(q, v) for q, v, _ in some])
                made.extend(some)

            found |= ask_in_batches(self.judge, missing, before, keep)
        return found, made

    def _labelled(self, row: Example, found: Mapping[str, Verdict]) -> Example | str:
        """The row with quality, bucket and attributes, or why it has none."""
        objective = self.objectives[self.datasets[row.dataset]]
        items: dict[str, dict[str, int]] = {}
        constraints: list[dict[str, Any]] = []
        turns = max(1, sum(m.role == "user" for m in row.messages))
        try:
            if objective.name == CODE:
                constraints = _constraints(row)
                judgment = _checked(row, constraints)
                if judgment.status != "ok":
                    return judgment.reason or judgment.status
                line: dict[str, Any] = {"id": row.id, **judgment.items}
            else:
                for question in self._questions(row):
                    verdict = found[question.key]
                    if verdict.status != "ok":
                        return verdict.reason
                    items |= verdict.items
                line = {"id": row.id, "items": items, "turns": turns}
            scored = objective.score(line)
            bucket, _, valid = objective.prompt_side(items, turns, constraints)
        except Malformed as error:
            return str(error)
        if scored.status != "ok" or scored.score is None:
            return scored.reason or "unscored"
        if not valid:
            return "invalid: a harmful request, or one without a way to answer"
        attributes = {**row.attributes, **_attributes(scored, items)}
        return row.model_copy(
            update={"bucket": bucket, "quality": round(scored.score), "attributes": attributes}
        )


def _constraints(row: Example) -> list[dict[str, Any]]:
    """The constraints of a row with their parameters. Malformed where there are none, or the attributes do not fit."""
    ids, params = row.attributes.get("constraints"), row.attributes.get("constraint_params")
    if not isinstance(ids, list) or not ids:
        raise Malformed("no constraints to verify")
    texts = params if isinstance(params, list) else ["{}"] * len(ids)
    if len(texts) != len(ids):
        raise Malformed(f"constraint_params has {len(texts)} entries for {len(ids)} constraints")
    try:
        return [
            {"id": str(i), "params": dict(json.loads(str(p)))}
            for i, p in zip(ids, texts, strict=True)
        ]
    except (ValueError, TypeError):
        raise Malformed("constraint_params: an entry is not the text of a JSON object") from None


def _checked(row: Example, constraints: Sequence[dict[str, Any]]) -> Judgment:
    """The constraints that can be verified against the row's last answer, by code."""
    reasons = [verifiable(c) for c in constraints]
    if all(reasons):
        return Judgment(id=row.id, status="failed", reason=reasons[0], judge=VerifierJudge.digest)
    good = [c for c, reason in zip(constraints, reasons, strict=True) if not reason]
    prompt = Prompt(id=row.id, turns=["-"], slice="-", weight=1, constraints=good)
    last = next(m.content for m in reversed(row.messages) if m.role == "assistant")
    response = Response(id=row.id, answers=[last], finish_reasons=["stop"], n_tokens=0)
    return VerifierJudge().judge(CODE, [prompt], [response])[0]


def _attributes(scored: Scored, items: Mapping[str, Mapping[str, int]]) -> dict[str, Attribute]:
    """L2 under its own names, L3 as `items_<channel>`: the items that hold (with their value where it is above 1)."""
    attributes: dict[str, Attribute] = {}
    for name, value in scored.label.items():
        attributes[RENAMED.get(name, name)] = (
            [str(v) for v in value] if isinstance(value, list) else value
        )
    for channel, values in sorted(items.items()):
        held: list[Scalar] = [
            name if v == 1 else f"{name}_{v}" for name, v in sorted(values.items()) if v
        ]
        attributes[f"items_{channel}"] = held
    return attributes


def _chunks(rows: Iterator[Example]) -> Iterator[list[Example]]:
    chunk: list[Example] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
