"""The commands by which a person decides on the plan that waits. They run nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mosaic.app.cli.options import APPROVE, Json, Request, Run
from mosaic.app.terminal import emit, say

if TYPE_CHECKING:
    from mosaic.core.types.plans import Decision

commands = typer.Typer()


@commands.command(rich_help_panel=APPROVE)
def pending(run: Run, as_json: Json = False) -> None:
    """Show the plan that waits for a person's approval."""
    from mosaic.app.decisions import pending as waiting
    from mosaic.app.runs import find_run
    from mosaic.app.views.text import request_text

    folder = find_run(run)
    request = waiting(folder)
    if as_json:
        emit(request.json_data())
    else:
        print(request_text(request))
    name = f"--request {request.request[:12]}"
    say(f"decide: python -m mosaic approve {folder} {name}")
    say(f"    or: python -m mosaic reject {folder} {name} --reason ...")
    say(f"    or: python -m mosaic respond {folder} {name} --comment ...")


By = Annotated[str, typer.Option("--by", help="Your name, as it is kept; the user's by default.")]


@commands.command(rich_help_panel=APPROVE)
def approve(
    run: Run,
    request: Request = "",
    edit: Annotated[
        Path | None, typer.Option("--edit", help="A plan to run instead, JSON.")
    ] = None,
    comment: Annotated[str, typer.Option("--comment", help="Kept with the decision.")] = "",
    by: By = "",
    as_json: Json = False,
) -> None:
    """Approve the plan that waits, as it is or edited. Records the decision; runs nothing."""
    from mosaic.app import decisions
    from mosaic.app.files import read_plan
    from mosaic.app.runs import find_run

    folder = find_run(run)
    edited = read_plan(edit) if edit else None
    made = decisions.approve(folder, request, edited=edited, reason=comment, by=by or None)
    _tell(made, folder, as_json)


@commands.command(rich_help_panel=APPROVE)
def reject(
    run: Run,
    reason: Annotated[str, typer.Option("--reason", help="What the planner should hear.")],
    request: Request = "",
    by: By = "",
    as_json: Json = False,
) -> None:
    """Refuse the plan that waits; the reason reaches the planner. Runs nothing."""
    from mosaic.app import decisions
    from mosaic.app.runs import find_run

    folder = find_run(run)
    _tell(decisions.reject(folder, request, reason=reason, by=by or None), folder, as_json)


@commands.command(rich_help_panel=APPROVE)
def respond(
    run: Run,
    comment: Annotated[str, typer.Option("--comment", help="What the planner should hear.")],
    request: Request = "",
    by: By = "",
    as_json: Json = False,
) -> None:
    """Comment on the plan that waits and ask for another; nothing is refused. Runs nothing."""
    from mosaic.app import decisions
    from mosaic.app.runs import find_run

    folder = find_run(run)
    _tell(decisions.respond(folder, request, comment=comment, by=by or None), folder, as_json)


def _tell(made: Decision, folder: Path, as_json: bool) -> None:
    """Say what was recorded, and what takes it up."""
    if as_json:
        emit(made.json_data())
    else:
        print(f"round {made.round}: {made.kind} by {made.by}")
    say(f"continue: python -m mosaic resume {folder}")
