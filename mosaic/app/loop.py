"""Starting, resuming and looking ahead: the loop of one run directory, with its progress on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.graph import run as run_graph
from agent.nodes import Services
from agent.observe import observation, stop_reason
from mosaic.app import runs
from mosaic.app.config import RunConfig
from mosaic.app.validation import check_before_run
from mosaic.app.views import link_rounds
from mosaic.app.wiring import Reporting, build_services, open_inputs
from mosaic.errors import UsageError
from mosaic.journal import Journal
from tools.examine import examples_of
from tools.toolbox import Toolbox


def execute(folder: Path, config: RunConfig, new: bool, say: Callable[[str], None]) -> None:
    """Run to the end from where the journal stands. Raises what stops the run early; nothing finished is lost."""
    inputs = open_inputs(config)
    if new:
        check_before_run(config, inputs, say)
        runs.create(folder, config, inputs.digests())
        say(f"run directory: {folder}")
    else:
        runs.same_inputs(folder, inputs.digests())
        say(f"continuing {folder}")
    journal = Journal.open(folder)
    try:
        journal.acquire()
        with Bars(say) as reporting:
            run_graph(build_services(config, folder, journal, inputs, reporting), folder)
        link_rounds(folder)
    finally:
        journal.close()


def propose(folder: Path, config: RunConfig) -> dict[str, Any]:
    """The next plan and its violations, from the recorded rounds; nothing is written."""
    inputs = open_inputs(config)
    runs.same_inputs(folder, inputs.digests())
    journal = Journal.open(folder)
    try:
        services: Services = build_services(config, folder, journal, inputs)
        state = services.state()
        if not state.rounds or state.calibration is None:
            raise UsageError(f"{folder} has no measured round yet; `python -m mosaic resume {folder}` measures first")
        reason = stop_reason(state, services.settings, services.budget_left())
        if reason:
            return {"plan": None, "stop": reason}
        seen = observation(state, services.settings, services.pool, services.budget_left(), [])
        files = state.latest_files or {}
        toolbox = Toolbox(seen, lambda *wanted: examples_of(services.steps.store, files, *wanted), services.check(seen))
        plan = services.planner.propose(seen, toolbox)
        violations = services.check(seen)(plan)
        return {
            "round": seen.round,
            "planner": services.planner.kind,
            "plan": plan.json_data(),
            "plan_digest": plan.content_digest,
            "violations": [v.json_data() for v in violations],
            "trace": toolbox.trace(),
        }
    finally:
        journal.close()


class Bars(Reporting):
    """Rich progress bars on a terminal; plain lines elsewhere."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._live = sys.stderr.isatty()
        self.notify = say
        if self._live:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._tasks: dict[str, Any] = {}
            self.notify = self._progress.console.print
            self.evaluating = lambda what, done, total: self._show(what, done, total)
            self.generating = lambda done, total: self._show("generating", done, total)
            self.training = self._train

    def _train(self, event: dict[str, Any]) -> None:
        self._show("training", int(event.get("step", 0)), int(event.get("steps", 0)) or 1)

    def _show(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done, total=total, visible=done < total)

    def __enter__(self) -> Bars:
        if self._live:
            self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live:
            self._progress.stop()
