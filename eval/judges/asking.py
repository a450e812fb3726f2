"""Many questions to one endpoint at once: which failures are a question's own, which an outage.

A question that the endpoint does not answer, while it answers something harmless, is `failed`. Such
questions are held back until another one is answered, since they may be the beginning of an outage.
So many of them that they cannot be the questions' fault are an outage too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from eval.chat.client import ChatUnavailable
from eval.chat.failures import STRANGE
from eval.chat.reply import Attempt
from eval.judges.verdicts import Question, VerdictEntry, verdict_of
from mosaic.core.types.calls import Exchange
from mosaic.core.types.evaluation import Verdict

TICK = 1.0
UNANSWERED = "the endpoint answers others but not this"
# Faults that an endpoint also shows when it cannot do with one conversation, or does not want to;
# and how many of the questions that are asked together may end in one of them before it counts as
# an outage.
OWN_FAULT = (
    "http_500",
    "http_502",
    "http_504",
    "timeout",
    "transport",
    "http_403",
    *STRANGE,
)
MAX_LOST = 5

Ask = Callable[[Question], tuple[Verdict, Exchange]]
"""Asks the model one question. May raise ChatUnavailable."""
Probe = Callable[[list[Attempt]], bool]
"""Whether the endpoint answers something harmless. What that took is added to `attempts`."""


class Asking:
    """One go at some questions, asked by `concurrency` threads."""

    def __init__(self, ask: Ask, probe: Probe, concurrency: int) -> None:
        self._ask = ask
        self._probe = probe
        self._concurrency = concurrency
        self._halt = threading.Event()
        # Attempts of questions that found no answer, by key. Threads add to it.
        self._lost: dict[str, list[Attempt]] = {}

    def run(
        self, questions: Sequence[Question], stopping: Callable[[], bool]
    ) -> Iterator[list[VerdictEntry]]:
        """See `eval.judges.llm.LlmJudge.ask_all`."""
        outage: ChatUnavailable | None = None
        held_back: list[VerdictEntry] = []
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="judge")
        futures = [pool.submit(self._work, question) for question in questions]
        waiting: set[Future[VerdictEntry | None]] = set(futures)
        left_early = True
        try:
            while waiting:
                done, waiting = wait(waiting, TICK, FIRST_COMPLETED)
                entries: list[VerdictEntry] = []
                for future in done:
                    try:
                        result = future.result()
                    except ChatUnavailable as error:
                        if outage:
                            outage.attempts += error.attempts
                        outage = outage or error
                        continue
                    if result:
                        target = held_back if result.question.key in self._lost else entries
                        target.append(result)
                if entries:  # others are answered, so that it is these conversations
                    entries, held_back = entries + held_back, []
                yield entries
                if stopping():
                    self._halt.set()
            left_early = False
            if outage:
                for entry in held_back:
                    outage.attempts += self._lost[entry.question.key]
                raise outage
            yield held_back
        finally:
            self._halt.set()
            pool.shutdown(wait=not left_early, cancel_futures=True)

    def _work(self, question: Question) -> VerdictEntry | None:
        """The verdict of one question, in a thread. None after a halt."""
        if self._halt.is_set():
            return None
        started = time.monotonic()
        exchange: Exchange | None = None
        try:
            verdict, exchange = self._ask(question)
        except ChatUnavailable as error:
            kind = str(error.attempts[-1].error) if error.attempts else "limit"
            self._lost[question.key] = error.attempts
            few = len(self._lost) <= MAX_LOST
            may_be_its_own = kind in OWN_FAULT and few and not self._halt.is_set()
            if not (may_be_its_own and self._probe(error.attempts)):
                self._halt.set()
                raise
            why = str(error) if kind in STRANGE else kind
            verdict = verdict_of(error.attempts, "failed", f"{UNANSWERED}: {why}")
        return VerdictEntry(question, verdict, time.monotonic() - started, exchange)
