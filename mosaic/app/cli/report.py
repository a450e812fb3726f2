"""The commands that read a run: figures, reasons, evidence. They run nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mosaic.app.cli.options import READ, Json, MayCostMoney, RoundOption, Run
from mosaic.app.terminal import columns, emit, number, say, show, table
from mosaic.core.errors import UsageError

commands = typer.Typer()


@commands.command(rich_help_panel=READ)
def status(run: Run, as_json: Json = False) -> None:
    """Show where a run stands."""
    from mosaic.app.runs import find_run
    from mosaic.app.views.report_data import status_data
    from mosaic.app.views.status_text import status_text

    folder = find_run(run)
    found = status_data(folder)
    if as_json:
        emit(found.json_data())
    else:
        show(status_text(found, str(folder)))
    say(f"next: {found.standing.next}")


@commands.command(rich_help_panel=READ)
def report(
    run: Run,
    as_json: Json = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write one self-contained page.")
    ] = None,
) -> None:
    """Show scores, plans, forecasts and budget of a run."""
    from mosaic.app.runs import find_run
    from mosaic.app.views.report_data import report_data
    from mosaic.app.views.text import report_text

    folder = find_run(run)
    found = report_data(folder)
    if as_json:
        emit(found.json_data())
    else:
        print(report_text(found, columns()))
    if html:
        from mosaic.app.views.html import write_html

        write_html(folder, found, html)
        say(f"wrote {html}")


@commands.command(rich_help_panel=READ)
def profile(run: Run, round_: RoundOption = None, as_json: Json = False) -> None:
    """Show the failure profile of a round, worst slices first."""
    from mosaic.app.runs import find_run
    from mosaic.app.views.report_data import profile_data

    found = profile_data(find_run(run), round_)
    if as_json:
        emit(found.json_data())
        return
    rows = []
    for slice_ in found.slices:
        score = slice_.score
        rows.append(
            [
                slice_.objective,
                slice_.slice,
                number(score.mean),
                f"{number(score.low)} to {number(score.high)}",
                number(slice_.failure_rate),
                slice_.reliability,
                number(slice_.change) + ("*" if slice_.significant else ""),
            ]
        )
    header = ["objective", "slice", "mean", "95 %", "failed", "reliability", "change"]
    table(f"round {found.round}", header, rows)
    if any(slice_.significant for slice_ in found.slices):
        show("*: a believable change against the round before")


@commands.command(rich_help_panel=READ)
def trace(
    run: Run,
    round_: RoundOption = None,
    event: Annotated[
        str | None,
        typer.Option("--event", help="One event in full, or one turn of it: 12 or 12.3."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on printing until the run ends.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write one self-contained page to hand on.")
    ] = None,
    without_texts: Annotated[
        bool,
        typer.Option(
            "--without-texts", help="With --html: leave out what models and people wrote."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what was seen, asked, thought, planned, checked, decided and measured."""
    from mosaic.app.runs import find_run
    from mosaic.app.views import trace as events
    from mosaic.app.views.story_text import entry_text, story_text, terminal_width
    from mosaic.app.views.telling import story_of, turn_of

    folder = find_run(run)
    if without_texts and html is None:
        raise UsageError("--without-texts is about the page that --html FILE writes")
    if html is not None:
        from mosaic.app.views.trace_html import write_trace

        write_trace(story_of(folder, round_), html, with_texts=not without_texts)
        say(f"wrote {html}")
    elif follow:
        for found in events.follow(folder, round_):
            print(json.dumps(found) if as_json else found["text"], flush=True)
    elif event is not None:
        told = turn_of(folder, event)
        if as_json:
            emit(events.one_event(folder, told.seq))
        else:
            print(entry_text(told, terminal_width(), full=True))
    elif as_json:
        emit(events.trace_data(folder, round_))
    else:
        print(story_text(story_of(folder, round_), terminal_width(), str(folder)))


@commands.command(rich_help_panel=READ)
def comment(
    run: Run,
    event: Annotated[str, typer.Argument(help="An event or one turn of it: 12 or 12.3.")],
    text: Annotated[str, typer.Argument(help="What you say of it.")],
    by: Annotated[str, typer.Option("--by", help="Your name; the user's by default.")] = "",
    as_json: Json = False,
) -> None:
    """Comment on an event of a run, for people who read its trace. No planner reads it."""
    from mosaic.app.comments import add_comment
    from mosaic.app.runs import find_run
    from mosaic.app.views.telling import turn_of

    folder = find_run(run)
    about = turn_of(folder, event)
    made = add_comment(folder, about.id, text, by)
    if as_json:
        emit(made.json_data())
    else:
        show(f"event {made.event}: commented by {made.by}")


@commands.command(rich_help_panel=READ)
def diff(
    run: Run,
    first: Annotated[int, typer.Argument(help="A round.")],
    second: Annotated[int, typer.Argument(help="Another round.")],
    as_json: Json = False,
) -> None:
    """Show two rounds side by side: plan, scores, slices."""
    from mosaic.app.runs import find_run
    from mosaic.app.views.diff import diff_data

    found = diff_data(find_run(run), first, second)
    if as_json:
        emit(found.json_data())
        return
    header = ["", f"round {first}", f"round {second}", "change"]
    parts = (("scores", found.scores), ("slices", found.slices), ("plan", found.plan))
    for title, pairs in parts:
        rows = []
        for pair in pairs:
            rows.append([pair.what, number(pair.first), number(pair.second), number(pair.change)])
        table(title, header, rows)


@commands.command(rich_help_panel=READ)
def compare(
    runs: Annotated[list[str], typer.Argument(help="Two runs or more; each against the first.")],
    as_json: Json = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write one self-contained page.")
    ] = None,
) -> None:
    """Show runs side by side: audit scores with differences, plans, cost, time."""
    from mosaic.app.runs import find_run
    from mosaic.app.views.compare import compare as compared
    from mosaic.app.views.compare_text import compare_text

    found = compared([find_run(run) for run in runs])
    if as_json:
        emit(found.json_data())
    else:
        show(compare_text(found))
    if html:
        from mosaic.app.views.html import write_comparison

        write_comparison(found, html)
        say(f"wrote {html}")


@commands.command(rich_help_panel=READ)
def why(
    run: Run,
    row: Annotated[str, typer.Argument(help="The id of a pool row.")],
    round_: RoundOption = None,
    as_json: Json = False,
) -> None:
    """Explain why a row was trained on: its bucket, the plan, and the evidence for it."""
    from mosaic.app.runs import find_run
    from mosaic.app.views.provenance import why_data, why_text

    found = why_data(find_run(run), row, round_)
    if as_json:
        emit(found.json_data())
    else:
        print(why_text(found))


@commands.command(rich_help_panel=READ)
def replay(
    run: Run,
    planner: Annotated[
        str,
        typer.Option("--planner", help="profile, static, random, need; llm if the config has one."),
    ],
    may_cost_money: MayCostMoney = False,
    as_json: Json = False,
) -> None:
    """Show what another planner would have proposed each round; executes nothing."""
    from mosaic.app.replay import replay as replayed
    from mosaic.app.runs import find_run, run_config
    from mosaic.app.uncounted import check_consent

    folder = find_run(run)
    if planner == "llm":
        check_consent(run_config(folder), may_cost_money, say)
    lines = replayed(folder, planner)
    if as_json:
        emit([line.json_data() for line in lines])
        return
    rows = []
    for line in lines:
        shares = [f"{dataset} {100 * share:.0f} %" for dataset, share in line.plan.ratios.items()]
        rows.append(
            [
                str(line.round),
                ", ".join(shares),
                number(line.distance),
                str(len(line.violations)),
            ]
        )
    table(f"plans of {planner}", ["round", "ratios", "L1 from what ran", "violations"], rows)


@commands.command(rich_help_panel=READ)
def verify(run: Run, as_json: Json = False) -> None:
    """Check every digest of a run; say what is broken, and where. Exits with 1 if anything is."""
    from mosaic.app.runs import find_run
    from mosaic.app.verify import verify as check

    folder = find_run(run)
    found = check(folder)
    if as_json:
        emit([damage.json_data() for damage in found])
    else:
        for damage in found:
            show(f"{damage.where}: {damage.what}")
    say(f"{folder}: " + (f"{len(found)} problems" if found else "everything matches its digest"))
    if found:
        raise typer.Exit(1)


@commands.command(rich_help_panel=READ)
def view(
    folder: Annotated[Path, typer.Argument(help="A folder of runs.")] = Path("runs"),
    port: Annotated[int, typer.Option(help="0 takes any free port.")] = 8765,
    control: Annotated[
        bool, typer.Option("--control", help="Let the page start `resume`.")
    ] = False,
) -> None:
    """Show runs in a browser on this machine: progress, reasons, and plans that wait."""
    try:
        from mosaic.app.web.server import serve
    except ImportError as error:
        raise UsageError(
            f"the page needs {error.name}; install it with: pip install 'mosaic-curation[web]'"
        ) from None
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; `python -m mosaic run lab` makes runs/")
    serve(folder.resolve(), port, control, say)


@commands.command(rich_help_panel=READ)
def export(
    run: Run,
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    round_: RoundOption = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Also write base and adapter merged into one model.")
    ] = False,
) -> None:
    """Copy out a round's adapter, training set, plan and cards: the chosen round by default."""
    from mosaic.app.export import export_round
    from mosaic.app.runs import find_run

    for path in export_round(find_run(run), round_, out, merge):
        print(path)
    say(f"load it: peft.AutoPeftModelForCausalLM.from_pretrained('{out / 'adapter'}')")
    if merge:
        say(f"or: transformers.AutoModelForCausalLM.from_pretrained('{out / 'model'}')")
