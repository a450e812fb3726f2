"""Options that several commands share, and the groups under which `--help` lists the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

START = "Set up"
RUN = "Run"
APPROVE = "Approve"
READ = "Read a run"
HAND_ON = "Hand a run on"
MATERIAL = "Data, judges and the laboratory"

Run = Annotated[str, typer.Argument(help="A run: a path, a name under runs/, or `last`.")]
Config = Annotated[str, typer.Argument(help="A config file, or `lab`.")]
ConfigOption = Annotated[
    str | None, typer.Option("--config", help="A config with objectives of your own.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RoundOption = Annotated[int | None, typer.Option("--round", help="Only this round.")]
Request = Annotated[
    str, typer.Option("--request", help="The question you saw: its id, as `pending` shows it.")
]
Template = Annotated[
    Path | None,
    typer.Option("--chat-template", help="A Jinja file that replaces the model's chat template."),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a config value: a.b=c.")
]
MayCostMoney = Annotated[
    bool,
    typer.Option("--may-cost-money", help="Ask a model although no limit of the run counts it."),
]
