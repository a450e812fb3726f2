"""The commands of `pool`, but for `label`, which is a judge's."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mosaic.app.terminal import emit, say, show, table
from mosaic.core.errors import UsageError

if TYPE_CHECKING:
    from training.data.pool import PoolStats

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SHAPES = (
    "chat, sharegpt, xguard, alpaca, tulu-if or map (pool rows; with --suite also prompts); "
    "ifeval, or-bench-80k, or-bench-hard-1k or or-bench-toxic (prompts)."
)


def register(app: typer.Typer) -> None:
    """Add the commands to the `pool` group."""
    app.command("import")(import_)
    app.command("build")(build)
    app.command("stats")(stats)
    app.command("contamination")(contamination)


def import_(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Files (.jsonl, .json, .csv, .parquet), a `datasets` folder, or hub:owner/name@REVISION."
        ),
    ],
    shape: Annotated[str, typer.Option("--as", help=f"The shape of a row: {SHAPES}")],
    dataset: Annotated[
        str, typer.Option(help="Name of the data set in the pool; ids begin with it.")
    ],
    out: Annotated[
        Path, typer.Option(help="A .jsonl or .parquet file of pool rows, or with --suite a folder.")
    ],
    suite: Annotated[
        str | None, typer.Option(help="Make suite prompts of this objective instead.")
    ] = None,
    mapping: Annotated[
        str | None,
        typer.Option(
            "--map",
            help="With --as map: messages=F,role=F,content=F or prompt=F,response=F[,system=F]; id=F.",
        ),
    ] = None,
    per_role: Annotated[int, typer.Option(min=1, help="With --suite: prompts in each role.")] = 200,
    quality: Annotated[
        int | None, typer.Option(min=1, max=5, help="For rows that carry none.")
    ] = None,
    bucket: Annotated[str | None, typer.Option(help="For rows that carry none.")] = None,
    without: Annotated[
        list[Path] | None, typer.Option(help="A suite's folder: leave out rows that stand in it.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option(help="Leave bad rows out, counted, instead of refusing.")
    ] = False,
    split: Annotated[
        str, typer.Option(help="Split of a `datasets` folder or hub data set.")
    ] = "train",
    name: Annotated[
        str | None, typer.Option(help="Configuration of a hub data set, such as or-bench-hard-1k.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Hub identifier, such as cc-by-4.0; for the card.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Where the data is from; for the card. Default: file names.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make pool rows, or a suite, from files of published shapes. Every bad row is named with file and line."""
    from training.data.importers.job import ImportJob
    from training.data.importers.rows import import_rows
    from training.data.importers.suites import import_suite
    from training.data.provenance import card_of

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
        tally = import_rows(job, out, lambda rows: say(f"{rows:,} rows read"))
        wrote = f"{out} and {card_of(out)}"
        next_ = f"python -m mosaic pool build {out} --model BASE --out POOL"
    if as_json:
        emit(tally.data())
    else:
        show(f"{'prompts' if suite else 'rows'}: {tally.rows:,} of {tally.read:,} read")
        for what, count in [*tally.left_out.items(), *tally.notes.items()]:
            show(f"  {count:,}: {what}")
    if tally.bad:
        say(tally.complaint())
    say(f"wrote {wrote}; next: {next_}")


def contamination(
    config: Annotated[str, typer.Argument(help="A config file, or `lab`.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a config value: a.b=c.")
    ] = None,
    as_json: Json = False,
) -> None:
    """How many prompts of each suite stand in the pool (13-gram overlap). Fails above contamination.max_share."""
    from mosaic.app.config import load_config
    from mosaic.app.validation import contaminated, refuse_contaminated
    from mosaic.app.wiring import open_inputs

    resolved = load_config(config, overrides or [])
    found = contaminated(resolved, open_inputs(resolved))
    if as_json:
        emit([{**f.data(), "max_share": resolved.contamination.limit(f.role)} for f in found])
    else:
        for one in found:
            limit = resolved.contamination.limit(one.role)
            line = f"{one.objective} {one.role}: {len(one.hits)} of {one.prompts} prompts"
            show(f"{line} ({one.share:.1%}, at most {limit:.1%})")
            for hit in one.hits[:3]:
                show(f"  {hit.prompt}: {hit.covered:.0%} of its words in {hit.row}")
    refuse_contaminated(resolved, found)


def build(
    sources: Annotated[list[Path], typer.Argument(help="JSONL or Parquet files of pool rows.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the pool.")],
    model: Annotated[
        Path | None, typer.Option("--model", help="Base model folder, to count tokens.")
    ] = None,
    max_length: Annotated[int, typer.Option(help="Longer chats become windows of turns.")] = 4096,
    trust_token_counts: Annotated[bool, typer.Option(help="Take n_tokens as given.")] = False,
    licence: Annotated[
        list[str] | None, typer.Option(help="DATASET=LICENCE, where no card says it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a pool from files of chats."""
    from training.data.pool import build_pool
    from training.data.provenance import licensed

    pool = build_pool(
        sources,
        out,
        model=model,
        max_length=max_length,
        trust_token_counts=trust_token_counts,
        licences=licensed(licence or []),
    )
    _show(pool.stats(), as_json, pool.path)
    say(f"wrote {out}; name it as `pool` in a config, then: python -m mosaic validate CONFIG")


def stats(pool: Path, as_json: Json = False) -> None:
    """Rows and tokens by data set and bucket; sources and licences."""
    from training.data.pool import Pool

    _show(Pool.open(pool).stats(), as_json, pool)


def _show(stats: PoolStats, as_json: bool, pool: Path) -> None:
    from training.data.build import TOO_LONG

    if stats["too_long"]:
        words = (
            "1 row left out: no turn of it"
            if stats["too_long"] == 1
            else "{:,} rows left out: no turn of them"
        )
        left = words.format(stats["too_long"])
        say(f"{left} fits in {stats['max_length']:,} tokens; named in {pool / TOO_LONG}")
    if stats["turns_left_out"]:
        words = "1 turn" if stats["turns_left_out"] == 1 else f"{stats['turns_left_out']:,} turns"
        say(
            f"{words} above {stats['max_length']:,} tokens left out of rows that are kept; named in {pool / TOO_LONG}"
        )
    if as_json:
        emit(stats)
        return
    rows = [
        [dataset, bucket, f"{cell['rows']:,}", f"{cell['tokens']:,}"]
        for dataset, entry in stats["datasets"].items()
        for bucket, cell in entry["buckets"].items()
    ]
    table("pool", ["data set", "bucket", "rows", "tokens"], rows)
    origins = [
        [o["dataset"], o["source"], o["licence"], f"{o['rows']:,}"] for o in stats["origins"]
    ]
    table("origins", ["data set", "source", "licence", "rows imported"], origins)


def _command() -> str:
    """The command of this process as it could be typed again, paths shortened to names."""
    words = [Path(w).name if "/" in w and not w.startswith("hub:") else w for w in sys.argv[1:]]
    return "python -m mosaic " + shlex.join(words)
