"""The one place where an effect asks the journal whether it has already happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mosaic.errors import MosaicError
from mosaic.journal import Journal, Step
from mosaic.store import Store


@dataclass
class Outcome:
    """What an effect hands back: a plain JSON result, trace events, tokens spent, and its own clock if it has one."""

    result: dict[str, Any]
    events: Sequence[tuple[str, dict[str, Any]]] = field(default_factory=tuple)
    spent: int = 0
    seconds: float | None = None


class Steps:
    """Runs effects at most once per run. `round` labels what is begun; it is no part of a step's identity."""

    def __init__(self, journal: Journal, store: Store) -> None:
        self.journal = journal
        self.store = store
        self.round = 0

    def run(
        self, kind: str, inputs: dict[str, Any], effect: Callable[[], Outcome], *, reserve: int = 0, version: int = 1
    ) -> Step:
        """The finished step of this kind and these inputs: from the journal where it is done, else by the effect.

        `inputs` must name everything the result depends on, by value or digest; `version` changes when the code
        behind the effect does. An interrupted effect leaves its intent, and the next call runs it again.
        """
        step = self.journal.begin(kind, {**inputs, "version": version}, self.round, reserve)
        if step.state == "done":
            return step
        started = time.monotonic()
        try:
            outcome = effect()
        except MosaicError as error:
            self.journal.fail(step, str(error))
            raise
        seconds = time.monotonic() - started if outcome.seconds is None else outcome.seconds
        return self.journal.finish(step, outcome.result, outcome.events, outcome.spent, seconds)
