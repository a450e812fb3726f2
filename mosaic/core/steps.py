"""The one place where an effect asks the journal whether it has already happened."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mosaic.core.errors import MosaicError, PausedError, StopRequested
from mosaic.core.journal import Journal, Step
from mosaic.core.store import Store, free_bytes, full_disk
from mosaic.core.types.base import digest_of

MIN_ROOM = 4 * 1024 * 1024


@dataclass
class Outcome:
    """What an effect hands back: a plain JSON result, trace events, tokens spent, and its own clock if it has one."""

    result: dict[str, Any]
    events: Sequence[tuple[str, dict[str, Any]]] = field(default_factory=tuple)
    spent: int = 0
    seconds: float | None = None


class Steps:
    """Runs effects at most once per run. `round` labels what is begun; it is no part of a step's identity.

    `stopping` says whether someone asked the run to stop: then nothing new is begun (StopRequested).
    """

    def __init__(
        self, journal: Journal, store: Store, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self.journal = journal
        self.store = store
        self.stopping = stopping
        self.round = 0

    def finished(self, kind: str, inputs: dict[str, Any], version: int = 1) -> bool:
        """Whether `run` would only read."""
        step = self.journal.step(
            digest_of({"kind": kind, "inputs": {**inputs, "version": version}})
        )
        return step is not None and step.state == "done"

    def run(
        self,
        kind: str,
        inputs: dict[str, Any],
        effect: Callable[[], Outcome],
        *,
        reserve: int = 0,
        room: int = 0,
        version: int = 1,
    ) -> Step:
        """The finished step of this kind and these inputs: from the journal where it is done, else by the effect.

        `inputs` must name everything the result depends on, by value or digest; `version` changes when the code
        behind the effect does. `reserve` is in training tokens, `room` in bytes that the effect will write. An
        interrupted effect leaves its intent, and the next call runs it again.
        """
        if self.stopping():
            raise StopRequested(
                f"stopped before {kind}; continue: python -m mosaic resume {self.journal.folder}"
            )
        step = self.journal.begin(kind, {**inputs, "version": version}, self.round, reserve)
        if step.state == "done":
            return step
        needed = room + MIN_ROOM
        if free_bytes(self.store.root) < needed:
            raise full_disk(self.store.root.parent, needed)
        started = time.monotonic()
        try:
            outcome = effect()
        except (PausedError, StopRequested) as error:
            # `resume` begins it again, from the intent or from a failure that has something to tell.
            if error.details:
                self.journal.fail(step, str(error), error.details)
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise full_disk(self.store.root.parent, needed) from error
            raise
        except MosaicError as error:
            self.journal.fail(step, str(error), error.details)
            raise
        seconds = time.monotonic() - started if outcome.seconds is None else outcome.seconds
        return self.journal.finish(step, outcome.result, outcome.events, outcome.spent, seconds)
