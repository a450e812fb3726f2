"""`pool build`, `pool merge` and `pool upgrade`: what makes a pool folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mosaic.app.cli.options import Json, Template
from mosaic.app.terminal import emit, say, table
from mosaic.core.errors import UsageError

if TYPE_CHECKING:
    from training.data.pool import PoolStats

Shard = Annotated[
    str,
    typer.Option(
        "--shard", help="I/N: only the I-th of N parts of the rows, on one of several machines."
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Folder of the pool.")]


def build(
    sources: Annotated[list[Path], typer.Argument(help="JSONL or Parquet files of pool rows.")],
    out: Out,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Base model, to count tokens: a folder or org/name@revision."),
    ] = None,
    template: Template = None,
    max_length: Annotated[int, typer.Option(help="Longer chats become windows of turns.")] = 4096,
    trust_token_counts: Annotated[bool, typer.Option(help="Take n_tokens as given.")] = False,
    licence: Annotated[
        list[str] | None, typer.Option(help="DATASET=LICENCE, where no card says it.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that count tokens.")] = 1,
    shard: Shard = "",
    as_json: Json = False,
) -> None:
    """Make a pool from files of chats, or with --shard a part of one, for `pool merge`."""
    from mosaic.app.base_check import check_base
    from mosaic.app.bases import base_folder
    from training.data.build import BuildOptions, build_shard
    from training.data.build import build as build_folder
    from training.data.provenance import licensed
    from training.data.shards import Part

    base = None if model is None else base_folder(str(model))
    if base is not None and not trust_token_counts:
        check_base(base, template)
    options = BuildOptions(
        model=base,
        max_length=max_length,
        trust_token_counts=trust_token_counts,
        licences=licensed(licence or []),
        template=template,
        processes=processes,
    )
    if shard:
        if as_json:
            raise UsageError("--json shows a pool, and a shard is only a part of one: leave it out")
        part = Part.parse(shard)
        build_shard(sources, out, options, part)
        say(
            f"wrote shard {part}; when all are there: python -m mosaic pool merge SHARD... --out POOL"
        )
        return
    build_folder(sources, out, options)
    _show_new(out, as_json)


def merge(
    shards: Annotated[list[Path], typer.Argument(help="Folders that `pool build --shard` wrote.")],
    out: Out,
    as_json: Json = False,
) -> None:
    """Make a pool from all of its shards: the same pool as if it were built in one go."""
    from training.data.merge import merge as merge_shards

    merge_shards(shards, out)
    _show_new(out, as_json)


def upgrade(
    pool: Annotated[Path, typer.Argument(help="A pool of an earlier release.")],
    out: Out,
    as_json: Json = False,
) -> None:
    """Write a pool of an earlier release anew, with the same rows and the same digest."""
    from training.data.upgrade import upgrade as write_anew

    write_anew(pool, out)
    _show_new(out, as_json)


def _show_new(out: Path, as_json: bool) -> None:
    """Say what the new pool holds, and what to do with it."""
    from training.data.pool import Pool

    show_stats(Pool.open(out).stats(), as_json, out)
    say(f"wrote {out}; name it as `pool` in a config, then: python -m mosaic validate CONFIG")


def show_stats(stats: PoolStats, as_json: bool, pool: Path) -> None:
    """Print what a pool holds; what was left out of it goes to stderr."""
    for line in _left_out(stats, pool):
        say(line)
    if as_json:
        emit(stats)
        return
    rows = []
    for dataset, entry in stats["datasets"].items():
        for bucket, cell in entry["buckets"].items():
            rows.append([dataset, bucket, f"{cell['rows']:,}", f"{cell['tokens']:,}"])
    table("pool", ["data set", "bucket", "rows", "tokens"], rows)
    origins = []
    for origin in stats["origins"]:
        named = [origin["dataset"], origin["source"], origin["licence"]]
        origins.append([*named, f"{origin['rows']:,}"])
    table("origins", ["data set", "source", "licence", "rows imported"], origins)


def _left_out(stats: PoolStats, pool: Path) -> list[str]:
    """A line each for rows and turns that were too long for the pool, and for turns cut off."""
    from training.data.merge import TOO_LONG

    named = f"named in {pool / TOO_LONG}"
    lines = []
    rows, turns, limit = stats["too_long"], stats["turns_left_out"], stats["max_length"]
    if rows:
        what = "1 row left out: no turn of it fits"
        if rows > 1:
            what = f"{rows:,} rows left out: no turn of them fits"
        lines.append(f"{what} in {limit:,} tokens; {named}")
    if turns:
        what = "1 turn" if turns == 1 else f"{turns:,} turns"
        lines.append(
            f"{what} above {limit:,} tokens, or without an answer to learn within them, left out of "
            f"rows that are kept; {named}"
        )
    if stats["turns_cut"]:
        cut = "1 turn" if stats["turns_cut"] == 1 else f"{stats['turns_cut']:,} turns"
        lines.append(f"{cut} after the last answer of a row cut off")
    return lines
