"""`pool import` and `pool contamination`: commands that need many words, kept out of `cli.py`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mosaic.errors import UsageError

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SHAPES = (
    "chat, sharegpt, xguard, alpaca, tulu-if or map (pool rows; with --suite also prompts); "
    "ifeval, or-bench-80k, or-bench-hard-1k or or-bench-toxic (prompts)."
)


def register(app: typer.Typer) -> None:
    """Add the commands to the `pool` group."""
    app.command("import")(import_)
    app.command("contamination")(contamination)


def import_(
    sources: Annotated[
        list[str],
        typer.Argument(help="Files (.jsonl, .json, .csv, .parquet), a `datasets` folder, or hub:owner/name@REVISION."),
    ],
    shape: Annotated[str, typer.Option("--as", help=f"The shape of a row: {SHAPES}")],
    dataset: Annotated[str, typer.Option(help="Name of the data set in the pool; ids begin with it.")],
    out: Annotated[Path, typer.Option(help="A .jsonl or .parquet file of pool rows, or with --suite a folder.")],
    suite: Annotated[str | None, typer.Option(help="Make suite prompts of this objective instead.")] = None,
    mapping: Annotated[
        str | None,
        typer.Option(
            "--map", help="With --as map: messages=F,role=F,content=F or prompt=F,response=F[,system=F]; id=F."
        ),
    ] = None,
    per_role: Annotated[int, typer.Option(min=1, help="With --suite: prompts in each role.")] = 200,
    quality: Annotated[int | None, typer.Option(min=1, max=5, help="For rows that carry none.")] = None,
    bucket: Annotated[str | None, typer.Option(help="For rows that carry none.")] = None,
    without: Annotated[
        list[Path] | None, typer.Option(help="A suite's folder: leave out rows that stand in it.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option(help="Leave bad rows out, counted, instead of refusing.")] = False,
    split: Annotated[str, typer.Option(help="Split of a `datasets` folder or hub data set.")] = "train",
    name: Annotated[str | None, typer.Option(help="Configuration of a hub data set, such as or-bench-hard-1k.")] = None,
    licence: Annotated[str | None, typer.Option(help="Hub identifier, such as cc-by-4.0; for the card.")] = None,
    source: Annotated[
        str | None, typer.Option(help="Where the data is from; for the card. Default: file names.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make pool rows, or a suite, from files of published shapes. Every bad row is named with file and line."""
    from training.pool_import import ImportJob, import_rows, import_suite
    from training.provenance import card_of

    job = ImportJob(
        sources=sources,
        shape=shape,
        dataset=dataset,
        mapping=mapping,
        split=split,
        name=name,
        quality=quality,
        bucket=bucket,
        skip_bad=skip_bad,
        source=source,
        licence=licence,
        command=_command(),
        without=without or (),
    )
    if suite:
        if without or quality is not None or bucket is not None:
            raise UsageError("--without, --quality and --bucket are for pool rows, not for --suite")
        tally = import_suite(job, suite, out, per_role)
        wrote, next_ = str(out), f"name it as objectives.{suite}.suite in a config"
    else:
        tally = import_rows(job, out, lambda rows: _say(f"{rows:,} rows read"))
        wrote = f"{out} and {card_of(out)}"
        next_ = f"python -m mosaic pool build {out} --model BASE --out POOL"
    if as_json:
        print(json.dumps(tally.data(), indent=2))
    else:
        print(f"{'prompts' if suite else 'rows'}: {tally.rows:,} of {tally.read:,} read")
        for what, count in [*tally.left_out.items(), *tally.notes.items()]:
            print(f"  {count:,}: {what}")
    if tally.bad:
        _say(tally.complaint())
    _say(f"wrote {wrote}; next: {next_}")


def contamination(
    config: Annotated[str, typer.Argument(help="A config file, or `lab`.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a config value: a.b=c.")] = None,
    as_json: Json = False,
) -> None:
    """How many prompts of each suite stand in the pool (13-gram overlap). Fails above contamination.max_share."""
    from mosaic.app.config import load_config
    from mosaic.app.validation import contaminated, refuse_contaminated
    from mosaic.app.wiring import open_inputs

    resolved = load_config(config, overrides or [])
    found = contaminated(resolved, open_inputs(resolved))
    if as_json:
        print(json.dumps([{**f.data(), "max_share": resolved.contamination.limit(f.role)} for f in found], indent=2))
    else:
        for one in found:
            limit = resolved.contamination.limit(one.role)
            line = f"{one.objective} {one.role}: {len(one.hits)} of {one.prompts} prompts"
            print(f"{line} ({one.share:.1%}, at most {limit:.1%})")
            for hit in one.hits[:3]:
                print(f"  {hit.prompt}: {hit.covered:.0%} of its words in {hit.row}")
    refuse_contaminated(resolved, found)


def rows_of(stats: dict[str, Any]) -> list[list[str]]:
    """The origins in pool statistics, for a table."""
    return [[o["dataset"], o["source"], o["licence"], f"{o['rows']:,}"] for o in stats["origins"]]


def _command() -> str:
    """The command of this process as it could be typed again, paths shortened to names."""
    words = [Path(w).name if "/" in w and not w.startswith("hub:") else w for w in sys.argv[1:]]
    return "python -m mosaic " + shlex.join(words)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
