"""The commands by which a person decides on the plan that waits, or tells the planner something.

They run nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mosaic.app.cli.options import APPROVE, Json, Request, Run
from mosaic.app.terminal import emit, say
from mosaic.core.errors import UsageError

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
        list[str] | None,
        typer.Option(
            "--edit", help="A plan to run instead, JSON; of several plans N=FILE, once for each."
        ),
    ] = None,
    only: Annotated[
        list[int] | None,
        typer.Option("--only", help="Run this of several plans, by its number; once for each."),
    ] = None,
    comment: Annotated[str, typer.Option("--comment", help="Kept with the decision.")] = "",
    by: By = "",
    as_json: Json = False,
) -> None:
    """Approve the plans that wait, as they are or edited. Records the decision; runs nothing."""
    from mosaic.app import decisions
    from mosaic.app.files import read_plan
    from mosaic.app.runs import find_run

    folder = find_run(run)
    edits, edited = {}, None
    for text in edit or ():
        number, file = _numbered(text)
        if number in edits or (number is None and edited is not None):
            which = "the plan" if number is None else f"plan {number}"
            raise UsageError(f"--edit {text}: {which} is edited twice; give one file for it")
        if number is None:
            edited = read_plan(Path(file))
        else:
            edits[number] = read_plan(Path(file))
    made = decisions.approve(
        folder,
        request,
        edited=edited,
        edits=edits,
        only=only or (),
        reason=comment,
        by=by or None,
    )
    _tell(made, folder, as_json)


def _numbered(text: str) -> tuple[int | None, str]:
    """The number and the file of `N=FILE`; no number for a file alone."""
    number, sign, file = text.partition("=")
    if sign and number.isdecimal():
        return int(number), file
    return None, text


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


@commands.command(rich_help_panel=APPROVE)
def note(
    run: Run,
    text: Annotated[str, typer.Argument(help="What the planner should know.")],
    by: Annotated[str | None, typer.Option("--by", help="Who says so; you by default.")] = None,
) -> None:
    """Tell the planner something, from the next observation on. Runs nothing."""
    from mosaic.app import decisions
    from mosaic.app.runs import find_run

    folder = find_run(run)
    left, number = decisions.note(folder, text, by)
    print(f"round {number}: a note by {left.by}; the planner reads it from the next observation on")
