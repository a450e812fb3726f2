"""The commands that hand a run on to other people's tools: Inspect, OpenTelemetry, MCP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mosaic.app.cli.options import HAND_ON, Run
from mosaic.app.terminal import say
from mosaic.core.errors import UsageError

commands = typer.Typer()


@commands.command("inspect-logs", rich_help_panel=HAND_ON)
def inspect_logs(
    run: Run, out: Annotated[Path, typer.Option("--out", help="A new folder.")]
) -> None:
    """Write every evaluation of a run as a log of Inspect, for `inspect view`.

    The logs hold what models wrote under attack.
    """
    from mosaic.app.inspect_logs import write_inspect
    from mosaic.app.runs import find_run

    for path in write_inspect(find_run(run), out):
        print(path)
    say("these logs hold what models wrote under attack")
    say(f"open them: inspect view --log-dir {out}")


@commands.command(rich_help_panel=HAND_ON)
def spans(
    run: Run,
    out: Annotated[
        Path | None, typer.Option("--out", help="A file: one request in OTLP's JSON form.")
    ] = None,
    otlp: Annotated[
        str | None,
        typer.Option("--otlp", help="A receiver, such as http://127.0.0.1:4318/v1/traces."),
    ] = None,
    content: Annotated[
        bool, typer.Option("--capture-content", help="Also what models were sent and said.")
    ] = False,
) -> None:
    """Write or send what happened in a run as spans of OpenTelemetry."""
    from mosaic.app.runs import find_run
    from mosaic.app.telemetry.config import check_address
    from mosaic.app.telemetry.deliver import needs_otel
    from mosaic.app.telemetry.spans import spans_of

    if out is None and otlp is None:
        raise UsageError("name a file with --out, a receiver with --otlp, or both")
    folder = find_run(run)
    needs_otel()
    from mosaic.app.telemetry import otel

    if otlp is not None:
        try:
            check_address(otlp)
        except ValueError as error:
            raise UsageError(f"--otlp: {error}") from None
    found = spans_of(folder, content=content)
    if not found:
        raise UsageError(f"{folder}: nothing has happened yet")
    if out is not None:
        otel.write_spans(found, out)
        print(out)
    if otlp is not None:
        otel.send_spans(found, otlp)
        say(f"sent {len(found)} spans to {otlp}")


@commands.command(rich_help_panel=HAND_ON)
def mcp(
    folder: Annotated[Path, typer.Argument(help="A folder of runs.")] = Path("runs"),
) -> None:
    """Let an assistant look at runs, over the Model Context Protocol on stdin and stdout.

    It may read, and ask for the next plan; it decides nothing.
    """
    from mosaic.app.extras import needs

    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; `python -m mosaic run lab` makes runs/")
    needs("mcp.server.mcpserver", "mcp")
    from mosaic.app.mcp_server import make_server

    make_server(folder.resolve()).run("stdio")
