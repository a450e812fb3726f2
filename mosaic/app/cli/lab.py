"""The commands of `lab`: the laboratory, and its scripted mock server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mosaic.app.terminal import emit, say

group = typer.Typer(
    no_args_is_help=True, help="The built-in laboratory: a small base model, pools and suites."
)


@group.command()
def build(
    out: Annotated[Path, typer.Option(help="Folder for the laboratory.")] = Path("lab"),
    seed: Annotated[int, typer.Option(help="Another seed makes another laboratory.")] = 0,
) -> None:
    """Make the laboratory from nothing: pre-train the base model, generate pools and suites."""
    from mosaic.lab.build import build as make

    manifest = make(out, seed, progress=say)
    emit(manifest)
    say(f"run it with: python -m mosaic run {out / 'config.yaml'}")


@group.command()
def serve(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 8000,
    faults: Annotated[
        float, typer.Option(min=0, max=1, help="Share of requests that get a fault.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Chooses which requests get which fault.")] = 1,
) -> None:
    """Serve a scripted chat model that plans, and on demand shows every fault of a bad day."""
    from mosaic.lab.server import ScriptedServer

    server = ScriptedServer(port, faults, seed)
    print(server.url, flush=True)
    llm = f"--set planner.kind=llm --set planner.chat.base_url={server.url}"
    say(f"try it: python -m mosaic run lab {llm}")
    server.forever()
