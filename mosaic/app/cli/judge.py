"""The commands of `judge`, and `score`, which needs no judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mosaic.app.cli.options import MATERIAL, Config, ConfigOption, Json, Overrides, Run
from mosaic.app.terminal import emit, number, say, table
from mosaic.core.errors import UsageError

commands = typer.Typer()
group = typer.Typer(no_args_is_help=True, help="Judges: check one on known answers, compare two.")


@group.command()
def check(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Check that known-good answers come out best and known-bad ones worse; exit 2 if not.

    Shows for every objective how often each item holds of good and of bad answers, and every miss.
    """
    from mosaic.app.judging import check as check_config

    checked = check_config(config, overrides or [], say)
    if as_json:
        emit([one.data() for one in checked])
    else:
        header = ["item", "holds of good", "holds of bad", "holds of those missed"]
        for one in checked:
            table(one.title, header, one.item_rows())
    problems = [problem for one in checked if (problem := one.problem(None))]
    if problems:
        raise UsageError("\n".join(problems))


@group.command()
def compare(
    run: Run,
    first: Annotated[str, typer.Argument(help="A config; its judge is used.")],
    second: Annotated[str, typer.Argument(help="Another config.")],
    as_json: Json = False,
) -> None:
    """Compare two judges on the stored answers of a run: Cohen's kappa per item, with prevalence."""
    from mosaic.app.judging import compare_judges
    from mosaic.app.runs import find_run

    data = compare_judges(find_run(run), first, second, say)
    if as_json:
        emit(data)
        return
    header = ["item", "n", "agreement", "kappa", "prevalence", "prevalence 2"]
    for name, part in data["objectives"].items():
        rows = []
        for item in part["items"]:
            figures = (item["agreement"], item["kappa"], *item["prevalence"])
            rows.append([item["item"], str(item["n"]), *map(number, figures)])
        unscored = "unscored {} and {}".format(*part["unscored"])
        table(f"{name}: {part['conversations']} conversations, {unscored}", header, rows)


@commands.command(rich_help_panel=MATERIAL)
def score(
    objective: Annotated[
        str, typer.Argument(help="A published objective, or one of the config's.")
    ],
    items: Annotated[Path, typer.Argument(help="JSONL of stored L3 items.")],
    config: ConfigOption = None,
) -> None:
    """Score stored L3 items: L2, L1, slice, weight and need, a JSON line each; asks no judge."""
    from mosaic.app.config_file import load_config
    from mosaic.app.files import score_lines
    from mosaic.app.objectives import find_objective

    rules = find_objective(objective, load_config(config) if config else None, say)
    for line in score_lines(rules, items):
        print(json.dumps(line))
