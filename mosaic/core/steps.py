"""The one place where an effect asks the journal whether it has already happened."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from mosaic.core.errors import MosaicError, PausedError, StopRequested
from mosaic.core.journal import Journal
from mosaic.core.rows import Calls, Place, SmallStep
from mosaic.core.store import Store, free_bytes, full_disk
from mosaic.core.types.base import FrozenModel
from mosaic.core.types.events import EventRecord, FailedEvent
from mosaic.core.types.runs import Usage
from mosaic.core.types.step_inputs import StepInputs

MIN_ROOM = 4 * 1024 * 1024
NOTHING = Usage()
NOWHERE = Place(0)

R = TypeVar("R", bound=FrozenModel)


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """What an effect hands back.

    `usage` settles the reservation. `seconds` replaces the time that the effect took here, if it
    has a clock of its own. `calls` is what it asked of language models.
    """

    result: R
    events: Sequence[EventRecord] = ()
    usage: Usage = NOTHING
    seconds: float | None = None
    calls: Sequence[Calls] = ()


class _Turns:
    """One thread at a time for each step: whoever comes second reads what the first one did."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held: dict[str, tuple[threading.Lock, int]] = {}

    @contextmanager
    def of(self, key: str) -> Iterator[None]:
        with self._guard:
            lock, users = self._held.get(key, (threading.Lock(), 0))
            self._held[key] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._guard:
                lock, users = self._held[key]
                if users == 1:
                    del self._held[key]
                else:
                    self._held[key] = (lock, users - 1)


def never() -> bool:
    """The answer of somebody who never asks a run to stop."""
    return False


@dataclass(frozen=True)
class Steps:
    """Runs effects at most once per run, in one place of it: a round and, inside one, a trial.

    `stopping` says whether someone asked the run to stop: then nothing new is begun
    (StopRequested). Threads may share it; the views that `at` gives share everything but the place.
    """

    journal: Journal
    store: Store
    stopping: Callable[[], bool] = never
    place: Place = NOWHERE
    _turns: _Turns = field(default_factory=_Turns)

    def at(self, round_: int, trial: str = "") -> Steps:
        """The same gate for another place of the run."""
        return Steps(self.journal, self.store, self.stopping, Place(round_, trial), self._turns)

    def finished(self, inputs: StepInputs[Any]) -> bool:
        """Whether `run` would only read."""
        return self.journal.find(inputs) is not None

    def run(
        self,
        inputs: StepInputs[R],
        effect: Callable[[], Outcome[R]],
        *,
        reserve: Usage = NOTHING,
        room: int = 0,
    ) -> R:
        """The result of the step: from the journal if it is done, else by the effect.

        `inputs` must name everything the result depends on. `reserve` is what the effect may cost,
        `room` how many bytes it will write. An interrupted effect leaves its intent, and the next
        call runs it again.
        """
        folder = self.journal.folder
        if self.stopping():
            raise StopRequested(
                f"stopped before {inputs.kind}; continue: python -m mosaic resume {folder}"
            )
        with self._turns.of(inputs.key):
            done = self.journal.find(inputs)
            if done is not None:
                return done.result
            self.journal.begin(inputs, self.place, reserve.cost)
            needed = room + MIN_ROOM
            if free_bytes(self.store.root) < needed:
                raise full_disk(folder, needed)
            started = time.monotonic()
            outcome = self._tried(inputs, effect, needed)
            seconds = outcome.seconds
            if seconds is None:
                seconds = time.monotonic() - started
            self.journal.finish(
                inputs,
                outcome.result,
                outcome.events,
                outcome.usage.cost,
                seconds,
                outcome.calls,
            )
            return outcome.result

    def _tried(
        self, inputs: StepInputs[R], effect: Callable[[], Outcome[R]], needed: int
    ) -> Outcome[R]:
        """The effect's outcome; a failure that a person can act on is recorded first."""
        try:
            return effect()
        except (PausedError, StopRequested) as error:
            # `resume` begins it again, from the intent or from a failure with something to tell.
            if error.details:
                self._fail(inputs, error)
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise full_disk(self.journal.folder, needed) from error
            raise
        except MosaicError as error:
            self._fail(inputs, error)
            raise

    def _fail(self, inputs: StepInputs[Any], error: MosaicError) -> None:
        event = {"step": inputs.kind, "reason": str(error), **error.details}
        self.journal.fail(inputs, FailedEvent.model_validate(event))

    def record(self, items: Sequence[SmallStep], calls: Sequence[Calls] = ()) -> None:
        """Write small effects, which are over and safe to repeat, as finished steps."""
        self.journal.record(items, self.place, calls)
