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
def model(
    name: Annotated[str, typer.Argument(help="Which public model; smollm2.")],
    gguf: Annotated[Path, typer.Option(help="Its GGUF file, or a wheel that holds it.")],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
) -> None:
    """Make a model folder of a public model from a GGUF file."""
    from mosaic.lab.gguf_model import make_model_folder

    make_model_folder(name, gguf, out)
    say(f"make pool and suites for it with: python -m mosaic lab data --base {out} --out DIR")


@group.command()
def data(
    base: Annotated[
        str, typer.Option(help="Folder of any base model, or org/name@revision of the hub.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for pool, suites and config.")],
    seed: Annotated[int, typer.Option(help="Another seed draws other names and rows.")] = 1,
) -> None:
    """Make a pool and suites in ordinary English for a base model, to try the loop without data."""
    from mosaic.app.bases import base_folder
    from mosaic.lab.english.folder import make_data

    emit(make_data(base_folder(base), out, seed, progress=say))
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
