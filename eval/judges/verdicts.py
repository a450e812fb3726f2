"""Questions to a model judge and its verdicts: what is known is not asked again.

    answers = answer(questions, judge, [cache], before_batch=check_gold)
    answers.verdicts[question.key].status

A verdict is looked for in each store in turn. What no store knows is asked in batches, and kept
soon after it is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, Protocol

from eval.chat.reply import Attempt, sent
from eval.judges.items import ItemSet, prompt_digest
from mosaic.core.types.base import digest_of
from mosaic.core.types.calls import Exchange
from mosaic.core.types.data import Message
from mosaic.core.types.evaluation import Verdict

BATCH = 256
# New verdicts are kept when there are so many, or after so many seconds.
FLUSH = 64
FLUSH_SECONDS = 1.0

Status = Literal["ok", "abstained", "failed"]
Source = Literal["cache", "model"]
Items = dict[str, dict[str, int]]
"""channel -> item -> value"""


@dataclass(frozen=True)
class Question:
    """One conversation to be judged under one set of items. `judge` is an identity."""

    items: ItemSet
    messages: tuple[Message, ...]
    judge: str

    @cached_property
    def inputs(self) -> dict[str, str]:
        """What the verdict depends on: judge, prompt files and schema, conversation."""
        conversation = digest_of([[m.role, m.content] for m in self.messages])
        return {
            "judge": self.judge,
            "prompt": prompt_digest(self.items),
            "conversation": conversation,
        }

    @cached_property
    def key(self) -> str:
        return digest_of(self.inputs)


def verdict_of(
    attempts: Sequence[Attempt],
    status: Status,
    reason: str = "",
    explanation: str = "",
    items: Items | None = None,
) -> Verdict:
    """A verdict that took these attempts."""
    return Verdict(
        status=status,
        reason=reason,
        explanation=explanation,
        items=items or {},
        attempts=sent(attempts),
        charged=sum(a.charged for a in attempts),
    )


class VerdictEntry(NamedTuple):
    """A verdict with its question, and how many seconds it took to make (0 if it was copied).

    `exchange` is what was asked and said; None if it was copied.
    """

    question: Question
    verdict: Verdict
    seconds: float
    exchange: Exchange | None = None


class VerdictStore(Protocol):
    """Where verdicts are kept: the journal of a run, or a cache that runs share."""

    def get(self, question: Question) -> Verdict | None: ...

    def keep(self, entries: Sequence[VerdictEntry], source: Source) -> None:
        """Keep verdicts that were just made by the model, or found in another store."""
        ...


class Asker(Protocol):
    """Asks the model. See `eval.judges.llm.LlmJudge.ask_all`."""

    def ask_all(
        self, questions: Sequence[Question], stopping: Callable[[], bool]
    ) -> Iterator[list[VerdictEntry]]: ...


@dataclass
class JudgeCost:
    """Requests that reached a server and charged tokens, of some verdicts."""

    requests: int = 0
    tokens: int = 0

    def add(self, verdict: Verdict) -> None:
        self.requests += verdict.attempts
        self.tokens += verdict.charged


@dataclass(frozen=True)
class Answers:
    """Verdicts by the key of their question, and what those that were asked for now have cost.

    `asked` counts the new verdicts. After a stop some questions have no verdict.
    """

    verdicts: Mapping[str, Verdict]
    asked: int
    charged: int


def unique(questions: Iterable[Question]) -> list[Question]:
    """Each question once, in the order of its first appearance."""
    by_key: dict[str, Question] = {}
    for question in questions:
        by_key.setdefault(question.key, question)
    return list(by_key.values())


def answer(
    questions: Iterable[Question],
    judge: Asker,
    stores: Sequence[VerdictStore],
    *,
    announce: Callable[[int], None] = lambda missing: None,
    before_batch: Callable[[str], None] = lambda digest: None,
    progress: Callable[[int, int], None] = lambda done, missing: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Answers:
    """The verdict of each question: from the first store that knows it, or else from the model.

    What a later store knows is copied into the earlier ones. `announce` is told how many questions
    are missing then. They are asked in batches; `before_batch` is given the digest of each batch
    before it is asked, and may raise. New verdicts go into all stores in order, soon after they are
    made. `progress` is (asked, missing).

    Raises ChatUnavailable after an outage, with nothing lost that was made before. Once `stopping`
    says so, nothing new is asked and the rest has no verdict.
    """
    wanted = unique(questions)
    verdicts = _look_up(wanted, stores)
    missing = [q for q in wanted if q.key not in verdicts]
    announce(len(missing))
    asked = charged = 0
    for start in range(0, len(missing), BATCH):
        if stopping():
            break
        batch = missing[start : start + BATCH]
        before_batch(digest_of([q.key for q in batch]))
        for entries in _asked_and_kept(batch, judge, stores, stopping):
            for entry in entries:
                verdicts[entry.question.key] = entry.verdict
                charged += entry.verdict.charged
            asked += len(entries)
            if entries:
                progress(asked, len(missing))
    return Answers(verdicts, asked, charged)


def _look_up(questions: Sequence[Question], stores: Sequence[VerdictStore]) -> dict[str, Verdict]:
    """What the stores know, copied into those that were asked in vain."""
    verdicts: dict[str, Verdict] = {}
    copies: list[list[VerdictEntry]] = [[] for _ in stores]
    for question in questions:
        for place, store in enumerate(stores):
            verdict = store.get(question)
            if verdict is not None:
                verdicts[question.key] = verdict
                for earlier in copies[:place]:
                    earlier.append(VerdictEntry(question, verdict, 0.0))
                break
    for store, entries in zip(stores, copies, strict=True):
        if entries:
            store.keep(entries, "cache")
    return verdicts


def _asked_and_kept(
    batch: Sequence[Question],
    judge: Asker,
    stores: Sequence[VerdictStore],
    stopping: Callable[[], bool],
) -> Iterator[list[VerdictEntry]]:
    """Ask one batch and hand on the verdicts that are kept.

    Whatever was made is kept before an error leaves.
    """

    def keep(entries: Sequence[VerdictEntry]) -> None:
        for store in stores:
            store.keep(entries, "model")

    waiting: list[VerdictEntry] = []
    last = time.monotonic()
    try:
        for entries in judge.ask_all(batch, stopping):
            waiting += entries
            if waiting and (len(waiting) >= FLUSH or time.monotonic() - last > FLUSH_SECONDS):
                ready, waiting = waiting, []
                keep(ready)
                last = time.monotonic()
                yield ready
    finally:
        if waiting:
            keep(waiting)
    yield waiting
