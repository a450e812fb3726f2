"""The commands before a run: a config to start from, its checks, file shapes, the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mosaic.app.cli.options import START, Config, Json, Overrides
from mosaic.app.terminal import emit, say, table

commands = typer.Typer()


@commands.command(rich_help_panel=START)
def init(force: Annotated[bool, typer.Option(help="Overwrite an existing file.")] = False) -> None:
    """Write a commented config, mosaic.yaml, into the current folder."""
    from mosaic.app.config_file import write_template

    path = write_template(Path("mosaic.yaml"), force)
    print(path)
    say(f"edit it, then: python -m mosaic validate {path}")


@commands.command(rich_help_panel=START)
def validate(
    config: Config,
    full: Annotated[
        bool, typer.Option("--full", help="Also two training steps and eight prompts, timed.")
    ] = False,
    training_speed: Annotated[
        float | None, typer.Option(min=1, help="Training tokens per second.")
    ] = None,
    generation_speed: Annotated[
        float | None, typer.Option(min=1, help="Generated tokens per second.")
    ] = None,
    judge_speed: Annotated[
        float | None, typer.Option(min=0.01, help="Judge calls per second.")
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Check a config before it costs anything, and estimate what a run takes.

    Opens pool and suites, checks the adapter recipe, and draws a mixture without training. What a
    run takes is printed before judge and planner are asked.
    """
    from collections.abc import Sequence

    from mosaic.app.bases import pinned
    from mosaic.app.config_file import load_config
    from mosaic.app.estimate import KnownSpeeds
    from mosaic.app.shapes import Finding
    from mosaic.app.validation import validate as check

    def show(title: str, findings: Sequence[Finding]) -> None:
        """Findings as they come: on stdout as tables, or on stderr where stdout is for the JSON."""
        rows = [[found.check, found.result] for found in findings]
        if not as_json:
            table(title, ["check", "result"], rows)
            return
        for row in rows:
            say(": ".join(row))

    given = KnownSpeeds(training_speed, generation_speed, judge_speed)
    resolved = pinned(load_config(config, overrides or []), say)
    findings = check(resolved, full, say, given, show)
    if as_json:
        emit([found.json_data() for found in findings])
    say(f"next: python -m mosaic run {config}")


@commands.command(rich_help_panel=START)
def schema(
    name: Annotated[str, typer.Argument(help="A file shape; leave it out for the names.")] = "",
) -> None:
    """Print the JSON Schema of a file shape."""
    from mosaic.app.schemas import schema_names, schema_of

    if name:
        emit(schema_of(name))
    else:
        print("\n".join(schema_names()))


@commands.command(rich_help_panel=START)
def doctor(as_json: Json = False) -> None:
    """Show versions, threads, memory and disk, and whether the six packages are this checkout's."""
    from mosaic.app.doctor import examine

    findings = examine()
    if as_json:
        emit([found.json_data() for found in findings])
    else:
        rows = [[found.check, found.found, found.verdict] for found in findings]
        table("doctor", ["check", "found", "verdict"], rows)
    if any(found.verdict.startswith("broken") for found in findings):
        raise typer.Exit(1)
