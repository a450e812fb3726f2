"""The commands that run the loop, and the one that looks a plan ahead."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mosaic.app.cli.options import RUN, Config, Json, MayCostMoney, Overrides, Run
from mosaic.app.terminal import columns, emit, say

commands = typer.Typer()


@commands.command("run", rich_help_panel=RUN)
def run_command(
    config: Config,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where the run lives; default runs/<name>-<n>.")
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Start a run: measure, plan, curate, train, measure again, and audit at the end."""
    from mosaic.app import runs
    from mosaic.app.loop import execute

    folder, resolved, new = runs.start(config, overrides or [], run_dir, say)
    execute(folder, resolved, new, say)
    finish(folder, as_json)


@commands.command(rich_help_panel=RUN)
def resume(
    run: Run,
    overrides: Overrides = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay and wait for a person's decision.")
    ] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on with changed inputs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Continue a run where its journal ends."""
    from mosaic.app import runs
    from mosaic.app.bases import pinned
    from mosaic.app.config_file import with_overrides
    from mosaic.app.loop import execute

    folder = runs.find_run(run)
    config = pinned(with_overrides(runs.run_config(folder), overrides or []), say)
    execute(folder, config, False, say, wait=wait, accept_changes=accept_changes)
    finish(folder, as_json)


@commands.command(rich_help_panel=RUN)
def stop(
    run: Run,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is kept with the run.")] = "",
    as_json: Json = False,
) -> None:
    """Ask the controller of a run to stop at its next safe point; nothing finished is lost."""
    from mosaic.app import runs
    from mosaic.app.stopping import stop_run

    folder = runs.find_run(run)
    order = stop_run(folder, reason)
    if as_json:
        emit(order.json_data())
    say(f"{folder} stops at its next safe point; go on with: python -m mosaic resume {folder}")


def finish(folder: Path, as_json: bool) -> None:
    """Print the report of a run that ended. Raises BoundaryError if it ended without a plan."""
    from agent.nodes.planning import NO_PLAN
    from mosaic.app.views.report_data import report_data
    from mosaic.app.views.text import report_text
    from mosaic.core.errors import BoundaryError

    report = report_data(folder)
    if as_json:
        emit(report.json_data())
    else:
        print(report_text(report, columns()))
    say(f"wrote {folder}; read more: python -m mosaic report {folder} --html report.html")
    if str(report.stop).startswith(NO_PLAN):
        raise BoundaryError(f"ended early: {report.stop}; what was measured stands")


@commands.command(rich_help_panel=RUN)
def plan(run: Run, may_cost_money: MayCostMoney = False) -> None:
    """Propose and check the next plan of a run; execute and record nothing."""
    from mosaic.app import runs
    from mosaic.app.loop import propose
    from mosaic.app.uncounted import check_consent

    folder = runs.find_run(run)
    config = runs.run_config(folder)
    check_consent(config, may_cost_money, say)
    emit(propose(folder, config, say))
    say(f"to go on with the run: python -m mosaic resume {folder}")
