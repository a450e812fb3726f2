"""The commands of `pool`, and `curate`, which draws from one."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mosaic.app.cli.options import MATERIAL, Config, Json, Overrides
from mosaic.app.cli.pool_build import Shard, build, merge, show_stats, upgrade
from mosaic.app.cli.pool_show import show_rows
from mosaic.app.terminal import emit, say, show, table
from mosaic.core.errors import UsageError

if TYPE_CHECKING:
    from mosaic.core.types.data import CurationReport

commands = typer.Typer()
group = typer.Typer(
    no_args_is_help=True, help="Pools: build them from files of chats, count what they hold."
)
SHAPES = (
    "chat, sharegpt, xguard, alpaca, tulu-if or map (pool rows; with --suite also prompts); "
    "prompt, ifeval, xstest, or-bench-80k, or-bench-hard-1k or or-bench-toxic (prompts)."
)


@group.command("import")
def import_(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Files (.jsonl, .json, .csv, .parquet), a `datasets` folder, "
            "or hub:owner/name@REVISION."
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
            help="With --as map: messages=F,role=F,content=F or "
            "prompt=F,response=F[,system=F]; id=F.",
        ),
    ] = None,
    per_role: Annotated[int, typer.Option(min=1, help="With --suite: prompts in each role.")] = 200,
    independent: Annotated[
        bool,
        typer.Option(
            "--independent", help="With --suite: one for `audit_also`, all prompts in audit.jsonl."
        ),
    ] = False,
    quality: Annotated[
        int | None, typer.Option(min=1, max=5, help="For rows that carry none.")
    ] = None,
    bucket: Annotated[str | None, typer.Option(help="For rows that carry none.")] = None,
    without: Annotated[
        list[Path] | None, typer.Option(help="A suite's folder: leave out rows that stand in it.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="FIELD=VALUE: only rows where it holds; the others are counted. Repeated for one "
            "field: any of the values."
        ),
    ] = None,
    slice_from: Annotated[
        str | None, typer.Option(help="Field whose value is a prompt's slice, or a row's bucket.")
    ] = None,
    id_prefix: Annotated[
        str | None,
        typer.Option(
            help="Put before every id. Default: the file's name, for ids that an earlier file used."
        ),
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
    """Make pool rows, or a suite, from files of published shapes.

    Every bad row is named with its file and line.
    """
    from mosaic.app.objectives import published_objective
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
        where=where or (),
        slice_from=slice_from,
        id_prefix=id_prefix,
    )
    if suite:
        if without or quality is not None or bucket is not None or id_prefix is not None:
            raise UsageError(
                "--without, --quality, --bucket and --id-prefix are for pool rows, not for --suite"
            )
        tally = import_suite(job, published_objective(suite), out, per_role, independent)
        named = f"audit_also.{dataset}" if independent else f"objectives.{suite}.suite"
        wrote, next_ = str(out), f"name it as {named} in a config"
    elif independent:
        raise UsageError("--independent is for --suite, which says what judges it")
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


@group.command()
def contamination(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Count the prompts of each suite that stand in the pool (13-gram overlap).

    Fails above contamination.max_share.
    """
    from mosaic.app.config_file import load_config
    from mosaic.app.validation import contaminated, refuse_contaminated
    from mosaic.app.wiring import open_inputs

    resolved = load_config(config, overrides or [])
    found = contaminated(resolved, open_inputs(resolved, say))
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


group.command("build")(build)
group.command("merge")(merge)
group.command("upgrade")(upgrade)
group.command("show")(show_rows)


@group.command()
def stats(pool: Path, as_json: Json = False) -> None:
    """Count rows and tokens by data set and bucket; name sources and licences."""
    from training.data.pool import Pool

    show_stats(Pool.open(pool).stats(), as_json, pool)


@group.command()
def label(
    sources: Annotated[list[Path], typer.Argument(help="JSONL or Parquet files of pool rows.")],
    config: Annotated[
        str,
        typer.Option("--config", help="A config with the judge, the objectives, their data sets."),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="JSONL file of the labelled rows; with --suite a folder.")
    ],
    suite: Annotated[
        str, typer.Option("--suite", help="Label the prompts of this objective's suite folder.")
    ] = "",
    shard: Shard = "",
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Score rows once with a judge: quality, bucket and attributes.

    Says first what it will cost. It may be repeated: what is labelled is not asked again.
    """
    from mosaic.app.judging import label_pool, label_prompts
    from training.data.shards import WHOLE, Part

    if suite and shard:
        raise typer.BadParameter("--shard is for pool rows; a suite is labelled in one go")
    if suite and len(sources) != 1:
        raise typer.BadParameter(
            "with --suite name one folder with steering, selection and audit.jsonl"
        )
    if suite:
        done = label_prompts(sources[0], suite, config, overrides or [], out, say)
        next_ = f"name it as objectives.{suite}.suite"
    else:
        part = Part.parse(shard) if shard else WHOLE
        done = label_pool(sources, config, overrides or [], out, say, part)
        next_ = f"python -m mosaic pool build {out} --model MODEL --out POOL"
    if as_json:
        emit(done)
    else:
        table("labels", ["", ""], [[name, str(value)] for name, value in done.items()])
    say(f"wrote {out}; next: {next_}")


@commands.command(rich_help_panel=MATERIAL)
def curate(
    plan: Annotated[Path, typer.Argument(help="A plan, JSON.")],
    pool: Annotated[Path, typer.Option("--pool")],
    budget: Annotated[int, typer.Option("--budget", min=1, help="Tokens.")],
    out: Annotated[Path, typer.Option("--out", help="Parquet file of the training set.")],
    seed: Annotated[int, typer.Option("--seed")] = 1,
    min_quality: Annotated[int, typer.Option("--min-quality", min=1, max=5)] = 4,
    max_repeat: Annotated[int, typer.Option("--max-repeat", min=1)] = 1,
    as_json: Json = False,
) -> None:
    """Build the training set that a plan asks for; show what was asked and what was delivered."""
    from mosaic.app.files import read_plan
    from mosaic.core.types.plans import Limits
    from training.data.curate import curate as select
    from training.data.curate import mixture_of, write_training_set
    from training.data.pool import Pool

    wanted = read_plan(plan)
    opened = Pool.open(pool)
    if out.resolve() == plan.resolve() or pool.resolve() in out.resolve().parents:
        raise UsageError(
            f"--out {out} would replace the plan or a file of the pool; name another file"
        )
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; name a file")
    limits = Limits(min_quality=min_quality, max_repeat=max_repeat)
    curated = select(opened, mixture_of(wanted, budget, seed, limits))
    write_training_set(opened, curated, out)
    if as_json:
        emit(curated.report.json_data())
    else:
        header = ["data set", "bucket", "requested", "selected", "short", "rows", "focus rows"]
        table("tokens", header, _curation_rows(curated.report))
    say(f"wrote {out}")


def _curation_rows(report: CurationReport) -> list[list[str]]:
    """A row per bucket, and one for the total."""
    counts = []
    for dataset, entry in report.datasets.items():
        for bucket, of_bucket in entry.buckets.items():
            counts.append((dataset, bucket, of_bucket))
    counts.append(("total", "", report.total))
    rows = []
    for dataset, bucket, c in counts:
        tokens = [f"{c.requested:,}", f"{c.selected:,}", f"{c.short:,}"]
        rows.append([dataset, bucket, *tokens, str(c.rows), str(c.focus_rows)])
    return rows


def _command() -> str:
    """The command of this process as it could be typed again, paths shortened to names."""
    shortened = []
    for word in sys.argv[1:]:
        is_path = "/" in word and not word.startswith("hub:")
        shortened.append(Path(word).name if is_path else word)
    return "python -m mosaic " + shlex.join(shortened)
