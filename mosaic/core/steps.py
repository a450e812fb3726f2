"""The one place where an effect asks the journal whether it has already happened."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from mosaic.core.errors import BoundaryError, MosaicError, PausedError, StopRequested
from mosaic.core.journal import Journal
from mosaic.core.rows import Calls, Place, SmallStep
from mosaic.core.store import Store, free_bytes, full_disk
from mosaic.core.types.base import FrozenModel
from mosaic.core.types.events import EventRecord, FailedEvent
from mosaic.core.types.spending import Usage
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


@dataclass(frozen=True)
class Task(Generic[R]):
    """A step that is to be run beside others: what `Steps.run` is given, and the trial it is of."""

    inputs: StepInputs[R]
    effect: Callable[[], Outcome[R]]
    reserve: Usage = NOTHING
    room: int = 0
    trial: str = ""


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


@dataclass(frozen=True)
class _Timed(Generic[R]):
    """What an effect handed back, and the seconds that it took here."""

    outcome: Outcome[R]
    seconds: float


def _timed(effect: Callable[[], Outcome[R]]) -> Callable[[], _Timed[R]]:
    """The effect, with a clock."""

    def run() -> _Timed[R]:
        started = time.monotonic()
        outcome = effect()
        return _Timed(outcome, time.monotonic() - started)

    return run


def _side_by_side(
    tasks: Sequence[Task[R]],
) -> Iterator[tuple[Task[R], Callable[[], _Timed[R]]]]:
    """Run effects in threads, a single one in this; each task as it ends, with how it ended."""
    if len(tasks) == 1:
        yield tasks[0], _timed(tasks[0].effect)
        return
    with ThreadPoolExecutor(len(tasks), thread_name_prefix="step") as threads:
        running = {threads.submit(_timed(task.effect)): task for task in tasks}
        for over in as_completed(running):
            yield running[over], over.result


def _in_order(tasks: Sequence[Task[Any]]) -> list[str]:
    """The keys of some steps, each once, in order."""
    return list(dict.fromkeys(task.inputs.key for task in tasks))


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
        self._keep_on(inputs.kind)
        with self._turns.of(inputs.key):
            done = self.journal.find(inputs)
            if done is not None:
                return done.result
            self.journal.begin(inputs, self.place, reserve.cost)
            needed = self._room(room)
            return self._finished(inputs, needed, _timed(effect))

    def run_many(self, tasks: Sequence[Task[R]]) -> list[R | BoundaryError]:
        """The results of several steps in their order; their effects run side by side, in threads.

        All are begun and reserved at once, or none is (BudgetError). The calling thread records each
        as soon as it is over, so that nothing finished is repeated however the others end. A part
        behind a seam that failed (BoundaryError) is that step's result; any other failure is raised
        when all are over. Two steps of the same inputs are one.
        """
        found: dict[str, R | BoundaryError] = {}
        by_key = {task.inputs.key: task for task in reversed(tasks)}
        for task in tasks:
            self._keep_on(task.inputs.kind)
        with ExitStack() as stack:
            for key in sorted(by_key):
                stack.enter_context(self._turns.of(key))
            for key, task in by_key.items():
                done = self.journal.find(task.inputs)
                if done is not None:
                    found[key] = done.result
            open_tasks = [by_key[key] for key in _in_order(tasks) if key not in found]
            if open_tasks:
                found |= self._run_open(open_tasks)
        return [found[task.inputs.key] for task in tasks]

    def _run_open(self, tasks: Sequence[Task[R]]) -> dict[str, R | BoundaryError]:
        """Results of steps that are not finished, by their keys."""
        begun = []
        for task in tasks:
            begun.append((task.inputs, Place(self.place.round, task.trial), task.reserve.cost))
        self.journal.begin_many(begun)
        needed = self._room(sum(task.room for task in tasks))
        found: dict[str, R | BoundaryError] = {}
        failures: dict[str, Exception] = {}
        for task, effect in _side_by_side(tasks):
            key = task.inputs.key
            try:
                found[key] = self._finished(task.inputs, needed, effect)
            except BoundaryError as error:
                found[key] = error
            except Exception as error:
                failures[key] = error
        for task in tasks:
            if task.inputs.key in failures:
                raise failures[task.inputs.key]
        return found

    def _keep_on(self, kind: str) -> None:
        """Raise StopRequested if someone asked the run to stop."""
        if self.stopping():
            folder = self.journal.folder
            raise StopRequested(
                f"stopped before {kind}; continue: python -m mosaic resume {folder}"
            )

    def _room(self, room: int) -> int:
        """The bytes that an effect needs. Raises PausedError if the disk has not as many free."""
        needed = room + MIN_ROOM
        if free_bytes(self.store.root) < needed:
            raise full_disk(self.journal.folder, needed)
        return needed

    def _finished(self, inputs: StepInputs[R], needed: int, effect: Callable[[], _Timed[R]]) -> R:
        """The result of a step that was begun, recorded; so is how its effect failed."""
        timed = self._tried(inputs, effect, needed)
        outcome = timed.outcome
        self.journal.finish(
            inputs,
            outcome.result,
            outcome.events,
            outcome.usage.cost,
            timed.seconds if outcome.seconds is None else outcome.seconds,
            outcome.calls,
        )
        return outcome.result

    def _tried(
        self, inputs: StepInputs[R], effect: Callable[[], _Timed[R]], needed: int
    ) -> _Timed[R]:
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
