"""Labels for pool rows: a judge scores each row once, the objective's own rules make the rest.

The assistant turns of a row are the answers, its user turns the request. Both sides are judged
under the items that evaluation uses, so that a bucket of the pool and a slice of a suite mean the
same. Known verdicts come from the cache; an interrupted labelling asks only for the rest. A row is
left out, with a reason, if a verdict could not be made, or if the rules call the request invalid
(harmful, or without a way to answer).

What is checked by code needs no judge, so it is labelled under the verifier too. The known answer
of a reference objective stands in the attribute `answer`. The constraints of instruction following
stand in two attributes of equal length: `constraints` (checker ids) and `constraint_params` (the
text of a JSON object each). A constraint that lacks its parameters cannot be verified: it counts
for the bucket and not for the quality. A row with no other constraints is left out. Both attributes
stay as they are, so that labelled rows can be labelled again; the label of that name becomes
`constraint_count`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from eval.ifeval import verifiable
from eval.judges.base import ModelJudge
from eval.judges.by_code import check_answers
from eval.judges.items import items_of
from eval.judges.verdicts import BATCH, Items, JudgeCost, Question, answer, unique
from eval.objectives.base import LabelsPrompts, Malformed, Objective, Side, by_code, labels_of
from mosaic.core.errors import UsageError
from mosaic.core.types.base import Attribute, JsonObject, Scalar
from mosaic.core.types.data import Example
from mosaic.core.types.evaluation import Judgment, Prompt, Response, Scored, Verdict
from tools.effects.judge import GoldChecks
from tools.effects.verdict_cache import VerdictCache
from training.data.examples import parse
from training.data.faults import Faults
from training.data.shards import WHOLE, Part

CHUNK = 512
UNLABELLED = "unlabelled"
# L2 labels named like attributes that labelling reads.
RENAMED = {"constraints": "constraint_count"}
# For the estimate of what a labelling costs.
ANSWER_TOKENS = 120
CHARACTERS_PER_TOKEN = 4

Say = Callable[[str], None]


@dataclass(frozen=True)
class Labelling:
    """What a labelling did.

    `left_out` counts reasons. `asked` and `cached` are verdicts; `known_answers` are those that the
    judge was asked about beside them. `tokens` is what both were charged.
    """

    rows: int
    labelled: int
    left_out: dict[str, int]
    asked: int
    cached: int
    tokens: int
    known_answers: int

    def json_data(self) -> dict[str, object]:
        return dict(vars(self))


class Labeller:
    """Labels rows under the objectives that their data sets serve."""

    def __init__(
        self,
        judge: ModelJudge | None,
        cache: VerdictCache,
        gold_checks: GoldChecks | None,
        objectives: Mapping[str, Objective],
        datasets: Mapping[str, str],
        say: Say,
        part: Part = WHOLE,
    ) -> None:
        """`datasets` is data set -> name of its objective. Only rows of the part are labelled.

        Without a judge and its gold checks only rows that code checks can be labelled.
        """
        self.judge = judge
        self.cache = cache
        self.gold_checks = gold_checks
        self.objectives = objectives
        self.datasets = datasets
        self.say = say
        self.part = part

    def label(self, sources: Sequence[Path], out: Path) -> Labelling:
        """Write the labelled rows to `out`, and the others with reasons to `<out>.left-out.jsonl`.

        UsageError with file:line for a broken row; nothing is asked before all rows are read. Also
        if no row could be labelled: then there is no `out`.
        """
        if out.exists():
            raise UsageError(f"--out {out} exists; name a new file")
        total = self._estimate(sources)
        if not total:
            raise UsageError(f"{', '.join(map(str, sources))}: no row in them")
        rows = labelled = 0
        questions = 0
        cost = _Cost(JudgeCost())
        reasons: Counter[str] = Counter()
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_name(f".{out.name}.part")
        aside = out.with_name(f"{out.name}.left-out.jsonl")
        with part.open("w", encoding="utf-8") as kept, aside.open("w", encoding="utf-8") as dropped:
            for chunk in _chunks(self._rows(sources)):
                wanted = unique(q for row in chunk for q in self._questions(row))
                verdicts = self._verdicts(wanted, cost)
                questions += len(wanted)
                for row in chunk:
                    result = self._labelled(row, verdicts)
                    if isinstance(result, Example):
                        labelled += 1
                        data = result.model_dump(mode="json", exclude_none=True)
                        kept.write(json.dumps(data) + "\n")
                    else:
                        reasons[result] += 1
                        entry = {"id": row.id, "dataset": row.dataset, "reason": result}
                        dropped.write(json.dumps(entry) + "\n")
                rows += len(chunk)
                self.say(
                    f"{rows:,} of {total:,} rows looked at, {labelled:,} labelled, "
                    f"{cost.asked:,} verdicts asked for"
                )
            kept.flush()
            os.fsync(kept.fileno())
        if not labelled:
            part.unlink()
            listed = "".join(f"\n  {count:,}: {why}" for why, count in sorted(reasons.items()))
            raise UsageError(f"none of {rows:,} rows could be labelled (see {aside}):{listed}")
        os.replace(part, out)
        if not reasons:
            aside.unlink()
        return Labelling(
            rows=rows,
            labelled=labelled,
            left_out=dict(sorted(reasons.items())),
            asked=cost.asked,
            cached=questions - cost.asked,
            tokens=cost.tokens + cost.known.tokens,
            known_answers=cost.known.requests,
        )

    def _estimate(self, sources: Sequence[Path]) -> int:
        """Read every row once, say what the rest will cost, and return their number.

        UsageError if some rows need a judge that is not there.
        """
        if self.judge is None or self.gold_checks is None:
            return self._count_checked(sources)
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
            for name, count in new.items():
                batches = -(-count // BATCH)
                checks += self.gold_checks.most(name) * batches
        # A known answer is about as long to read as a row.
        prompt = characters // CHARACTERS_PER_TOKEN * (missing + checks) // max(1, missing)
        self.say(
            f"{rows:,} rows: {missing:,} verdicts to ask for, {known:,} known; "
            f"about {prompt:,} tokens read and {(missing + checks) * ANSWER_TOKENS:,} written by "
            f"{self.judge.config.chat.model}, {checks:,} known answers included"
        )
        return rows

    def _count_checked(self, sources: Sequence[Path]) -> int:
        """The number of rows, all of which code checks. UsageError naming the data sets of others."""
        rows = 0
        others: Counter[str] = Counter()
        for row in self._rows(sources):
            rows += 1
            name = self.datasets[row.dataset]
            if not by_code(self.objectives[name]):
                others[f"{row.dataset} ({name})"] += 1
        if others:
            named = ", ".join(f"{count:,} of {name}" for name, count in others.items())
            raise UsageError(
                f"judge.kind: the verifier needs rules, which rows lack: {named}; label with "
                "`judge: {kind: llm, ...}`, or leave these rows out"
            )
        self.say(f"{rows:,} rows, all checked by code: no verdict to ask for")
        return rows

    def _rows(self, sources: Sequence[Path]) -> Iterator[Example]:
        return self.part.of_rows(self._every_row(sources))

    def _every_row(self, sources: Sequence[Path]) -> Iterator[Example]:
        seen: dict[str, str] = {}
        faults = Faults()
        for source in sources:
            for where, row in parse(source, seen, faults, {"bucket": UNLABELLED, "quality": 1}):
                if row.dataset not in self.datasets:
                    known = ", ".join(self.datasets)
                    raise UsageError(
                        f"{where}: dataset: {row.dataset!r} serves no objective of the config; "
                        f"it has {known}"
                    )
                yield row
        faults.refuse()

    def _questions(self, row: Example) -> list[Question]:
        """One question about the answers and one about the request; none if code checks the row."""
        objective = self.objectives[self.datasets[row.dataset]]
        if by_code(objective):
            return []
        assert self.judge is not None, "rows that need a judge are refused before"
        sides: list[Side] = ["answers"]
        if objective.request:
            sides.append("request")
        return [self.judge.ask_about(items_of(objective, s), row.messages) for s in sides]

    def _verdicts(self, questions: Sequence[Question], cost: _Cost) -> dict[str, Verdict]:
        """All verdicts by key. What new ones and known answers have cost is added to `cost`."""
        by_objective: dict[str, list[Question]] = {}
        for question in questions:
            by_objective.setdefault(question.items.objective, []).append(question)
        verdicts: dict[str, Verdict] = {}
        for objective, own in sorted(by_objective.items()):
            judge, gold_checks = self.judge, self.gold_checks
            assert judge is not None
            assert gold_checks is not None

            def check_gold(
                batch: str, objective: str = objective, checks: GoldChecks = gold_checks
            ) -> None:
                checks.ask(objective, batch, cost.known)

            answers = answer(own, judge, [self.cache], before_batch=check_gold)
            verdicts |= answers.verdicts
            cost.asked += answers.asked
            cost.tokens += answers.charged
        return verdicts

    def _labelled(self, row: Example, verdicts: Mapping[str, Verdict]) -> Example | str:
        """The row with quality, bucket and attributes, or why it has none."""
        objective = self.objectives[self.datasets[row.dataset]]
        if objective.evidence == "likelihood":
            return f"{objective.name} reads texts: it grades no answers"
        items: Items = {}
        turns = max(1, sum(m.role == "user" for m in row.messages))
        try:
            if by_code(objective):
                prompt = _prompt(objective, row)
                judgment = _checked(objective, row, prompt)
                if judgment.status != "ok":
                    return judgment.reason or judgment.status
                line: dict[str, object] = {"id": row.id, **judgment.items}
                bucket, _, valid = labels_of(objective, prompt)
            else:
                for question in self._questions(row):
                    verdict = verdicts[question.key]
                    if verdict.status != "ok":
                        return verdict.reason
                    items |= verdict.items
                line = {"id": row.id, "items": items, "turns": turns}
                bucket, _, valid = objective.prompt_side(items, turns, [])
            scored = objective.score(line)
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


@dataclass
class _Cost:
    """New verdicts and their charged tokens, beside what the `known` answers have cost."""

    known: JudgeCost
    asked: int = 0
    tokens: int = 0


def _constraints(row: Example) -> list[JsonObject]:
    """The constraints of a row with their parameters.

    Malformed if there are none, or the attributes do not fit.
    """
    ids, params = row.attributes.get("constraints"), row.attributes.get("constraint_params")
    if not isinstance(ids, list) or not ids:
        raise Malformed("no constraints to verify")
    texts = params if isinstance(params, list) else ["{}"] * len(ids)
    if len(texts) != len(ids):
        raise Malformed(f"constraint_params has {len(texts)} entries for {len(ids)} constraints")
    constraints: list[JsonObject] = []
    for identifier, text in zip(ids, texts, strict=True):
        try:
            parameters: JsonValue = dict(json.loads(str(text)))
        except (ValueError, TypeError):
            raise Malformed(
                "constraint_params: an entry is not the text of a JSON object"
            ) from None
        constraints.append({"id": str(identifier), "params": parameters})
    return constraints


def _prompt(objective: Objective, row: Example) -> Prompt:
    """What a row asked, as a prompt whose answer code can check. Malformed if it holds no check."""
    named = isinstance(objective, LabelsPrompts)
    constraints = [] if named and "constraints" not in row.attributes else _constraints(row)
    asked = [m.content for m in row.messages if m.role == "user"] or ["-"]
    known = row.attributes.get("answer") if named else None
    return Prompt(
        id=row.id,
        turns=asked,
        slice="-",
        weight=1,
        constraints=constraints,
        attributes=row.attributes,
        answer=list(known) if isinstance(known, list) else known,
    )


def _checked(objective: Objective, row: Example, prompt: Prompt) -> Judgment:
    """What code makes of the row's last answer: of the constraints, those that can be verified."""
    reasons = [verifiable(c) for c in prompt.constraints]
    if reasons and all(reasons):
        return Judgment(id=row.id, status="failed", reason=reasons[0], judge=objective.rules)
    good = [c for c, reason in zip(prompt.constraints, reasons, strict=True) if not reason]
    last = next(m.content for m in reversed(row.messages) if m.role == "assistant" and m.learn)
    response = Response(id=row.id, answers=[last], finish_reasons=["stop"], n_tokens=0)
    verified = prompt.model_copy(update={"constraints": good})
    return check_answers(objective, [verified], [response])[0]


def _attributes(scored: Scored, items: Items) -> dict[str, Attribute]:
    """L2 under its own names, L3 as `items_<channel>`: the items that hold.

    An item of a value above 1 has it at its end: `rejection_votes_2`.
    """
    attributes: dict[str, Attribute] = {}
    for name, value in scored.label.items():
        attribute = list(map(str, value)) if isinstance(value, list) else value
        attributes[RENAMED.get(name, name)] = attribute
    for channel, values in sorted(items.items()):
        names: list[Scalar] = []
        for name, value in sorted(values.items()):
            if value:
                names.append(name if value == 1 else f"{name}_{value}")
        attributes[f"items_{channel}"] = names
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
