"""Starting, resuming and looking ahead: the loop of one run directory, with its progress on stderr."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from agent.graph import run as run_graph
from agent.nodes.approving import comment, refusal
from agent.observe import observation, stop_reason
from agent.planners.toolbox import open_toolbox
from eval.chat.client import ChatUnavailable
from mosaic.app import runs
from mosaic.app.config import RunConfig
from mosaic.app.decisions import Question, waiting_question
from mosaic.app.notices import Tell, told
from mosaic.app.progress import Bars
from mosaic.app.standing import note_end, noted
from mosaic.app.stopping import stop_order, withdraw_stop
from mosaic.app.telemetry.deliver import deliver
from mosaic.app.validation import check_before_run
from mosaic.app.views.links import link_rounds
from mosaic.app.wiring import (
    Inputs,
    build_context,
    open_inputs,
    open_meters,
    run_digests,
)
from mosaic.core.errors import StopRequested, UsageError, WaitingError
from mosaic.core.journal import Journal
from mosaic.core.types.records import RecordDecision

POLL = 1.0


def execute(
    folder: Path,
    config: RunConfig,
    new: bool,
    say: Callable[[str], None],
    *,
    wait: bool = False,
    accept_changes: bool = False,
) -> None:
    """Run to the end from where the journal stands.

    Raises what stops the run early; nothing that was finished is lost. `wait` keeps asking for a
    person's decision instead of leaving with WaitingError. `accept_changes` goes on although config
    or inputs differ from those the run began with, and records the difference.
    """
    with stop_signals(say) as signalled, told(folder, config.notify, say) as tell:
        if new:
            with _dropped_on_failure(folder):
                inputs = open_inputs(config, say)
                _check_new(folder, config, inputs, say)
                if signalled():
                    raise StopRequested("stopped before the run was made; nothing was spent")
                runs.create(folder, config, run_digests(config, inputs))
            say(f"run directory: {folder}")
        journal = Journal.open(folder)
        try:
            journal.acquire()
            stops = Stops(folder, signalled, config.stop.hours)
            with noted(journal):
                if not new:
                    inputs = open_inputs(config, say)
                    _continue(journal, config, inputs, say, accept_changes)
                with Bars(say) as reporting:
                    reporting.into(folder)
                    reporting.stopping = stops
                    context = build_context(config, folder, journal, inputs, reporting)
                    context.steps.store.sweep()
                    waiter = _waiter(folder, say, stops, tell) if wait else None
                    try:
                        run_graph(context, folder, waiter)
                    except StopRequested as error:
                        raise StopRequested(stops.words(str(error))) from error
                    except UsageError as error:
                        tell(error, begun=True)
                        raise
                    finally:
                        context.evaluator.generator.close()
                        deliver(folder, config.telemetry, say)
                link_rounds(folder)
        finally:
            journal.close()


class Stops:
    """Whether anybody asks the run to stop: a signal, `stop RUN`, or the config's own limit.

    What was asked of an earlier controller does not count.
    """

    def __init__(self, folder: Path, signalled: Callable[[], bool], hours: float | None) -> None:
        withdraw_stop(folder)
        self._folder = folder
        self._signalled = signalled
        self._hours = hours
        self._began = time.monotonic()

    def __call__(self) -> bool:
        return self._signalled() or stop_order(self._folder) is not None or self._late()

    def _late(self) -> bool:
        return self._hours is not None and time.monotonic() - self._began >= 3600 * self._hours

    def words(self, otherwise: str) -> str:
        """Who stopped the run and why, for its trace; `otherwise` for a signal."""
        order = stop_order(self._folder)
        if order is not None:
            withdraw_stop(self._folder)
            return f"{order.text}; continue: python -m mosaic resume {self._folder}"
        if self._late():
            return (
                f"stop.hours: {self._hours:g} hours are over; continue: "
                f"python -m mosaic resume {self._folder}"
            )
        return otherwise


def _check_new(folder: Path, config: RunConfig, inputs: Inputs, say: Callable[[str], None]) -> None:
    """Every check before a run. If judge or planner does not answer, the run is made, and paused.

    Nothing is spent by then. `resume` checks again and goes on.
    """
    try:
        check_before_run(config, inputs, say, folder.resolve().parent)
    except ChatUnavailable as error:
        runs.create(folder, config, run_digests(config, inputs))
        journal = Journal.open(folder)
        note_end(journal, error)
        journal.close()
        say(f"run directory: {folder}; nothing was measured yet")
        raise


def _continue(
    journal: Journal,
    config: RunConfig,
    inputs: Inputs,
    say: Callable[[str], None],
    accept: bool,
) -> None:
    """Go on with what the run began with, or with what a person accepts as changed.

    A change passes every check that a new run passes, before it is recorded. So does a run that
    stopped before its first step, since judge or planner did not answer.
    """
    folder, digests = journal.folder, run_digests(config, inputs)
    changed = runs.changes(journal, config, digests)
    if not changed and journal.last_row() is None:
        check_before_run(config, inputs, say, folder.resolve().parent)
    if changed:
        if not accept:
            raise UsageError(runs.refused_changes(folder, changed))
        meters = open_meters(config, journal)
        check_before_run(config, inputs, say, folder.resolve().parent, meters)
        runs.accept_changes(journal, config, digests, changed)
    elif not (folder / runs.CONFIG).is_file():
        runs.write_config(folder, config)
    say(f"continuing {folder}")


@contextmanager
def _dropped_on_failure(folder: Path) -> Iterator[None]:
    """A run folder that nothing was written into goes again."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            folder.rmdir()
        raise


def _waiter(
    folder: Path,
    say: Callable[[str], None],
    stopping: Callable[[], bool],
    tell: Tell,
) -> Callable[[], None]:
    """Sleeps between two looks at the journal; a stop signal ends the wait."""
    said = False

    def wait() -> None:
        nonlocal said
        if not said:
            say(f"waiting for a decision: python -m mosaic pending {folder}")
            tell(WaitingError(f"a plan waits: python -m mosaic pending {folder}"))
            said = True
        if stopping():
            raise StopRequested(
                f"stopped while waiting; continue: python -m mosaic resume {folder} --wait"
            )
        time.sleep(POLL)

    return wait


@contextmanager
def stop_signals(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """While inside, the first Ctrl-C or SIGTERM asks for a stop at the next safe point.

    A second one stops at once. Outside of the main thread, where Python lets nobody handle signals,
    nothing asks.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        say(
            "stopping at the next safe point; once more stops at once (nothing finished is lost "
            "either way)"
        )

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _asked(question: Question) -> str:
    """What became of a question about plans."""
    made = question.decision
    if made is None:
        return "waits for a decision on plans that were proposed"
    return f"was decided ({made.kind} by {made.by}), which the next controller takes up"


def propose(
    folder: Path, config: RunConfig, say: Callable[[str], None] = lambda text: None
) -> dict[str, object]:
    """The next plan and its violations, from the recorded rounds and the refusals of this one.

    Nothing is written.
    """
    inputs = open_inputs(config, say)
    runs.same_inputs(folder, config, run_digests(config, inputs))
    journal = Journal.open(folder)
    try:
        question = waiting_question(journal)
        if question is not None:
            say(f"round {question.request.round} {_asked(question)}; this is another proposal")
        context = build_context(config, folder, journal, inputs)
        state, settings = context.state, context.settings
        if not state.rounds or state.calibration is None or state.latest is None:
            raise UsageError(
                f"{folder} has no measured round yet; `python -m mosaic resume {folder}` measures "
                "first"
            )
        reason = stop_reason(state, settings, context.budget_left())
        if reason:
            return {"plan": None, "stop": reason}
        refused = []
        for step in journal.steps(RecordDecision, len(state.rounds)):
            if step.result.kind == "reject":
                reason = step.result.reason
                refused += [refusal(context.plan(d), reason) for d in step.result.plans]
            elif step.result.kind == "respond":
                refused.append(comment(step.result))
        influence = None
        if context.influence is not None and state.latest.mixture_adapter is not None:
            influence = context.influence.look_ahead(
                context.steps, state.latest_repeats, state.first_trials
            )
        left = context.budget_left()
        practice = context.practice.slices if context.practice else None
        seen = observation(state, settings, context.pool, left, refused, influence, practice)
        store = context.steps.store
        toolbox = open_toolbox(seen, context.pool, store, state.latest.files)
        plans = context.planner.propose(seen, toolbox, seen.candidates)
        told: list[dict[str, object]] = []
        for place, plan in enumerate(plans):
            found = toolbox.violations(plan, plans[:place])
            told.append(
                {
                    "plan": plan.json_data(),
                    "plan_digest": plan.content_digest,
                    "violations": [v.json_data() for v in found],
                }
            )
        first, *siblings = told
        more = {"siblings": siblings} if siblings else {}
        return {
            "round": seen.round,
            "planner": context.planner.kind,
            **first,
            **more,
            "trace": toolbox.trace(),
        }
    finally:
        journal.close()
