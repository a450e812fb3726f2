"""The command line. Results go to stdout, logs and progress to stderr; exit codes are those of `mosaic.core.errors`.

Commands import what they need when they run, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from mosaic.app.cli import pool as pool_commands
from mosaic.app.terminal import emit, say, show
from mosaic.app.terminal import table as _table
from mosaic.core.errors import DamageError, MosaicError, StopRequested, UsageError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)
lab_app = typer.Typer(
    no_args_is_help=True, help="The built-in laboratory: a small base model, pools and suites."
)
pool_app = typer.Typer(
    no_args_is_help=True, help="Pools: build them from files of chats, count what they hold."
)
app.add_typer(lab_app, name="lab")
app.add_typer(pool_app, name="pool")
pool_commands.register(pool_app)
judge_app = typer.Typer(
    no_args_is_help=True, help="Judges: check one on known answers, compare two."
)
app.add_typer(judge_app, name="judge")

FULL = (errno.ENOSPC, errno.EDQUOT)
PATHS = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
Run = Annotated[str, typer.Argument(help="A run: a path, a name under runs/, or `last`.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RoundOption = Annotated[int | None, typer.Option("--round", help="Only this round.")]
Request = Annotated[
    str, typer.Option("--request", help="The question you saw: its id, as `pending` shows it.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a config value: a.b=c.")
]


def run() -> None:
    """Run the command line; expected failures print one message and leave with their exit code."""
    try:
        app(standalone_mode=True)
    except MosaicError as error:
        more = isinstance(error, DamageError) and "mosaic verify" not in str(error)
        say(f"error: {error}" + ("; see all: python -m mosaic verify RUN" if more else ""))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        full = error.errno in FULL
        if not full and not isinstance(error, PATHS) and error.errno != errno.ENAMETOOLONG:
            raise
        what = "make room, then give the same command again" if full else "give another path"
        where = (
            f"{error.filename}: {error.strerror}" if error.filename else str(error).splitlines()[0]
        )
        say(f"error: {where}; {what}")
        sys.exit(6 if full else 2)
    except SystemExit as end:
        # A second Ctrl-C, which typer has made an exit of. Requests of other threads may take minutes, and an ordinary
        # exit would wait for them.
        if end.code == StopRequested.exit_code:
            with suppress(OSError):  # whoever read this may be gone
                say("interrupted; nothing that was finished is lost")
                sys.stdout.flush()
            os._exit(StopRequested.exit_code)
        raise


@app.command()
def init(force: Annotated[bool, typer.Option(help="Overwrite an existing file.")] = False) -> None:
    """Write a commented config, mosaic.yaml, into the current folder."""
    from mosaic.app.config import write_template

    path = write_template(Path("mosaic.yaml"), force)
    print(path)
    say(f"edit it, then: python -m mosaic validate {path}")


@lab_app.command("build")
def lab_build(
    out: Annotated[Path, typer.Option(help="Folder for the laboratory.")] = Path("lab"),
    seed: Annotated[int, typer.Option(help="Another seed makes another laboratory.")] = 0,
) -> None:
    """Make the laboratory from nothing: pre-train the base model, generate pools and suites."""
    from mosaic.lab.build import build

    manifest = build(out, seed, progress=say)
    emit(manifest)
    say(f"run it with: python -m mosaic run {out / 'config.yaml'}")


@lab_app.command("serve")
def lab_serve(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 8000,
    faults: Annotated[
        float, typer.Option(min=0, max=1, help="Share of requests that get a fault.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Chooses which requests get which fault.")] = 1,
) -> None:
    """Serve a scripted chat model: it plays the planner's conversations and, on demand, every fault of a bad day."""
    from mosaic.lab.server import ScriptedServer

    server = ScriptedServer(port, faults, seed)
    print(server.url, flush=True)
    say(
        f"try it: python -m mosaic run lab --set planner.kind=llm --set planner.chat.base_url={server.url}"
    )
    server.forever()


@app.command()
def validate(
    config: Annotated[str, typer.Argument(help="A config file, or `lab`.")],
    full: Annotated[
        bool, typer.Option("--full", help="Also two training steps and eight prompts, timed.")
    ] = False,
    training_speed: Annotated[
        float | None, typer.Option(min=1, help="Training tokens per second.")
    ] = None,
    generation_speed: Annotated[
        float | None, typer.Option(min=1, help="Generated tokens per second.")
    ] = None,
    judge_speed: Annotated[
        float | None, typer.Option(min=0.01, help="Judge calls per second.")
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Check a config before it costs anything: pool, suites, judges, adapter recipe, dry mixture, what a run takes."""
    from mosaic.app.config import load_config
    from mosaic.app.estimate import Given
    from mosaic.app.validation import validate as check

    given = Given(training_speed, generation_speed, judge_speed)
    findings = check(load_config(config, overrides or []), full, say, given)
    emit(findings) if as_json else _table(
        "checks", ["check", "result"], [[f["check"], f["result"]] for f in findings]
    )
    say(f"next: python -m mosaic run {config}")


@app.command("run")
def run_command(
    config: Annotated[str, typer.Argument(help="A config file, or `lab`.")],
    run_dir: Annotated[
        Path | None, typer.Option(help="Where the run lives; default runs/<name>-<n>.")
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Run the loop: measure, plan, curate, train, measure again, round by round, and audit at the end."""
    from mosaic.app import runs
    from mosaic.app.loop import execute

    folder, resolved, new = runs.start(config, overrides or [], run_dir)
    execute(folder, resolved, new, say)
    _finish(folder, as_json)


@app.command()
def resume(
    run: Run,
    overrides: Overrides = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay and wait for a person's decision.")
    ] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on with changed inputs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Continue a run where its journal ends."""
    from mosaic.app import runs
    from mosaic.app.config import with_overrides
    from mosaic.app.loop import execute

    folder = runs.find_run(run)
    config = with_overrides(runs.run_config(folder), overrides or [])
    execute(folder, config, False, say, wait=wait, accept_changes=accept_changes)
    _finish(folder, as_json)


def _finish(folder: Path, as_json: bool) -> None:
    from agent.nodes.planning import NO_PLAN
    from mosaic.app.views.report_data import report_data
    from mosaic.app.views.text import report_text
    from mosaic.core.errors import BoundaryError

    data = report_data(folder)
    emit(data.json_data()) if as_json else print(report_text(data))
    say(f"wrote {folder}; read more: python -m mosaic report {folder} --html report.html")
    if str(data.stop).startswith(NO_PLAN):
        raise BoundaryError(f"ended early: {data.stop}; what was measured stands")


@app.command()
def plan(run: Run) -> None:
    """Propose and check the next plan of a run; execute and record nothing."""
    from mosaic.app import runs
    from mosaic.app.loop import propose

    folder = runs.find_run(run)
    emit(propose(folder, runs.run_config(folder)))
    say(f"to execute plans: python -m mosaic resume {folder}")


@app.command()
def status(run: Run, as_json: Json = False) -> None:
    """Where a run stands."""
    from mosaic.app.runs import find_run
    from mosaic.app.views.report_data import status_data

    folder = find_run(run)
    status = status_data(folder)
    data = status.json_data()
    emit(data) if as_json else _table(str(folder), ["", ""], [[k, str(v)] for k, v in data.items()])
    if status.state != "finished":
        command = "pending" if status.state == "waiting for approval" else "resume"
        say(f"continue: python -m mosaic {command} {folder}")


@app.command()
def report(
    run: Run,
    as_json: Json = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write one self-contained page.")
    ] = None,
) -> None:
    """Scores, plans, forecasts and budget of a run."""
    from mosaic.app.runs import find_run
    from mosaic.app.views.report_data import report_data
    from mosaic.app.views.text import report_text

    folder = find_run(run)
    data = report_data(folder)
    emit(data.json_data()) if as_json else print(report_text(data))
    if html:
        from mosaic.app.views.html import write_html

        write_html(folder, data, html)
        say(f"wrote {html}")


@app.command()
def profile(run: Run, round_: RoundOption = None, as_json: Json = False) -> None:
    """The failure profile of a round, worst slices first."""
    from mosaic.app.runs import find_run
    from mosaic.app.views.report_data import profile_data

    data = profile_data(find_run(run), round_).json_data()
    if as_json:
        emit(data)
        return
    rows = [
        [s["objective"], s["slice"], _number(s["score"]["mean"]), _interval(s["score"]), _number(s["failure_rate"]),
         s["reliability"], _number(s["change"]) + ("*" if s["significant"] else "")]
        for s in data["slices"]
    ]  # fmt: skip
    header = ["objective", "slice", "mean", "95 %", "failed", "reliability", "change"]
    _table(f"round {data['round']}", header, rows)


@app.command()
def trace(
    run: Run,
    round_: RoundOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on printing until the run ends.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What was seen, asked, concluded, planned, checked, decided and measured."""
    from mosaic.app.runs import find_run
    from mosaic.app.views import trace_tree as traces

    folder = find_run(run)
    if follow:
        for event in traces.follow(folder, round_):
            print(json.dumps(event) if as_json else event["text"], flush=True)
    elif as_json:
        emit(traces.trace_data(folder, round_))
    else:
        print(traces.tree_text(traces.tree(folder, round_)))


@app.command()
def diff(
    run: Run,
    first: Annotated[int, typer.Argument(help="A round.")],
    second: Annotated[int, typer.Argument(help="Another round.")],
    as_json: Json = False,
) -> None:
    """Two rounds side by side: plan, scores, slices."""
    from mosaic.app.runs import find_run
    from mosaic.app.views.diff import diff_data

    data = diff_data(find_run(run), first, second)
    if as_json:
        emit(data)
        return
    for part in ("scores", "slices", "plan"):
        rows = [
            [e["what"], *(_number(e[k]) for k in ("first", "second", "change"))] for e in data[part]
        ]
        _table(part, ["", f"round {first}", f"round {second}", "change"], rows)


@app.command()
def why(
    run: Run,
    row: Annotated[str, typer.Argument(help="The id of a pool row.")],
    round_: RoundOption = None,
    as_json: Json = False,
) -> None:
    """Why a row was trained on: its bucket, the plan, and the evidence that asked for it."""
    from mosaic.app.runs import find_run
    from mosaic.app.views.provenance import why_data, why_text

    data = why_data(find_run(run), row, round_)
    emit(data) if as_json else print(why_text(data))


@app.command()
def replay(
    run: Run,
    planner: Annotated[
        str,
        typer.Option("--planner", help="profile, static, random, need; llm if the config has one."),
    ],
    as_json: Json = False,
) -> None:
    """What another planner would have proposed at each recorded observation; executes nothing."""
    from mosaic.app.replay import replay as replayed
    from mosaic.app.runs import find_run

    data = [line.json_data() for line in replayed(find_run(run), planner)]
    if as_json:
        emit(data)
        return
    rows = [
        [str(e["round"]), ", ".join(f"{d} {100 * w:.0f} %" for d, w in e["plan"]["ratios"].items()),
         _number(e["distance"]), str(len(e["violations"]))]
        for e in data
    ]  # fmt: skip
    _table(f"plans of {planner}", ["round", "ratios", "L1 from what ran", "violations"], rows)


@app.command()
def pending(run: Run, as_json: Json = False) -> None:
    """What waits for a person's approval."""
    from mosaic.app.decisions import pending as waiting
    from mosaic.app.runs import find_run
    from mosaic.app.views.text import request_text

    folder = find_run(run)
    request = waiting(folder)
    emit(request.json_data()) if as_json else print(request_text(request))
    name = f"--request {request.request[:12]}"
    say(f"decide: python -m mosaic approve {folder} {name}")
    say(f"    or: python -m mosaic reject {folder} {name} --reason ...")


@app.command()
def approve(
    run: Run,
    request: Request = "",
    edit: Annotated[
        Path | None, typer.Option("--edit", help="A plan to run instead, JSON.")
    ] = None,
    comment: Annotated[str, typer.Option("--comment")] = "",
) -> None:
    """Approve the plan that waits, as it is or edited. Records the decision; runs nothing."""
    from mosaic.app import decisions
    from mosaic.app.files import read_plan
    from mosaic.app.runs import find_run

    folder = find_run(run)
    edited = read_plan(edit) if edit else None
    made = decisions.approve(folder, request, edited=edited, reason=comment)
    print(f"round {made.round}: {made.kind} by {made.by}")
    say(f"continue: python -m mosaic resume {folder}")


@app.command()
def reject(
    run: Run,
    reason: Annotated[str, typer.Option("--reason", help="What the planner should hear.")],
    request: Request = "",
) -> None:
    """Refuse the plan that waits; the reason reaches the planner. Runs nothing."""
    from mosaic.app import decisions
    from mosaic.app.runs import find_run

    folder = find_run(run)
    made = decisions.reject(folder, request, reason=reason)
    print(f"round {made.round}: reject by {made.by}")
    say(f"continue: python -m mosaic resume {folder}")


@app.command()
def verify(run: Run, as_json: Json = False) -> None:
    """Check every digest of a run; say what is broken, and where. Exit 1 where damage is found."""
    from mosaic.app.runs import find_run
    from mosaic.app.verify import verify as check

    folder = find_run(run)
    found = check(folder)
    if as_json:
        emit(found)
    else:
        for entry in found:
            show(f"{entry['where']}: {entry['what']}")
    say(f"{folder}: " + (f"{len(found)} problems" if found else "everything matches its digest"))
    if found:
        raise typer.Exit(1)


@app.command()
def view(
    folder: Annotated[Path, typer.Argument(help="A folder of runs.")] = Path("runs"),
    port: Annotated[int, typer.Option(help="0 takes any free port.")] = 8765,
    control: Annotated[
        bool, typer.Option("--control", help="Let the page start `resume`.")
    ] = False,
) -> None:
    """Show runs in a browser on this machine: progress, reasons, and the plans that wait for approval."""
    try:
        from mosaic.app.web.server import serve
    except ImportError as error:
        raise UsageError(
            f"the page needs {error.name}; install it with: pip install 'mosaic-curation[web]'"
        ) from None
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; `python -m mosaic run lab` makes runs/")
    serve(folder.resolve(), port, control, say)


@app.command()
def export(
    run: Run,
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    round_: RoundOption = None,
) -> None:
    """Copy out a round's adapter, training set, plan and cards; the chosen round unless one is named."""
    from mosaic.app.export import export_round
    from mosaic.app.runs import find_run

    for path in export_round(find_run(run), round_, out):
        print(path)
    say("load it: peft.PeftModel.from_pretrained(base, '" + str(out / "adapter") + "')")


@pool_app.command("label")
def pool_label(
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
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Score rows once with a judge: quality, bucket and attributes. Says first what it will cost; may be repeated."""
    from mosaic.app.judging import label_pool, label_prompts

    if suite and len(sources) != 1:
        raise typer.BadParameter(
            "with --suite name one folder with steering, selection and audit.jsonl"
        )
    if suite:
        done = label_prompts(sources[0], suite, config, overrides or [], out, say)
    else:
        done = label_pool(sources, config, overrides or [], out, say)
    emit(done) if as_json else _table("labels", ["", ""], [[k, str(v)] for k, v in done.items()])
    nxt = (
        f"name it as objectives.{suite}.suite"
        if suite
        else f"python -m mosaic pool build {out} --model MODEL --out POOL"
    )
    say(f"wrote {out}; next: {nxt}")


@judge_app.command("check")
def judge_check(
    config: Annotated[str, typer.Argument(help="A config file, or `lab`.")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Known-good answers must come out best and known-bad ones worse; exit 2 where they do not."""
    from mosaic.app.judging import check

    findings = check(config, overrides or [])
    emit(findings) if as_json else _table(
        "judge", ["check", "result"], [[f["check"], f["result"]] for f in findings]
    )


@judge_app.command("compare")
def judge_compare(
    run: Run,
    first: Annotated[str, typer.Argument(help="A config; its judge is used.")],
    second: Annotated[str, typer.Argument(help="Another config.")],
    as_json: Json = False,
) -> None:
    """Two judges on the stored answers of a run: Cohen's kappa per item, with prevalence."""
    from mosaic.app.judging import compare_judges
    from mosaic.app.runs import find_run

    data = compare_judges(find_run(run), first, second, say)
    if as_json:
        emit(data)
        return
    for name, part in data["objectives"].items():
        rows = [
            [
                r["item"],
                str(r["n"]),
                _number(r["agreement"]),
                _number(r["kappa"]),
                *map(_number, r["prevalence"]),
            ]
            for r in part["items"]
        ]
        title = f"{name}: {part['conversations']} conversations, unscored {part['unscored'][0]} and {part['unscored'][1]}"
        _table(title, ["item", "n", "agreement", "kappa", "prevalence", "prevalence 2"], rows)


@app.command()
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
    """Build the training set that a plan asks for; say what was asked and what was delivered."""
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
        rows = [
            [
                dataset,
                bucket,
                f"{b.requested:,}",
                f"{b.selected:,}",
                f"{b.short:,}",
                str(b.rows),
                str(b.focus_rows),
            ]
            for dataset, entry in curated.report.datasets.items()
            for bucket, b in entry.buckets.items()
        ]
        total = curated.report.total
        rows.append(["total", "", f"{total.requested:,}", f"{total.selected:,}", f"{total.short:,}", str(total.rows),
                     str(total.focus_rows)])  # fmt: skip
        _table(
            "tokens",
            ["data set", "bucket", "requested", "selected", "short", "rows", "focus rows"],
            rows,
        )
    say(f"wrote {out}")


@app.command()
def score(
    objective: Annotated[
        str, typer.Argument(help="safety, over_refusal or instruction_following.")
    ],
    items: Annotated[Path, typer.Argument(help="JSONL of stored L3 items.")],
) -> None:
    """Stored L3 items to L2, L1, slice, weight and need, a JSON line each; no judge is asked."""
    from mosaic.app.files import score_lines

    for line in score_lines(objective, items):
        print(json.dumps(line))


@app.command()
def schema(
    name: Annotated[str, typer.Argument(help="A file shape; leave it out for the names.")] = "",
) -> None:
    """The JSON Schema of a file shape."""
    from mosaic.app.files import schema_names, schema_of

    if name:
        emit(schema_of(name))
    else:
        print("\n".join(schema_names()))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Versions, threads, memory, disk, and whether the six packages are this checkout's."""
    from mosaic.app.doctor import examine

    findings = examine()
    emit(findings) if as_json else _table(
        "doctor", ["check", "found", "verdict"], [list(f.values()) for f in findings]
    )
    if any(f["verdict"].startswith("broken") for f in findings):
        raise typer.Exit(1)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _interval(score: dict[str, Any]) -> str:
    return f"{_number(score['low'])} to {_number(score['high'])}"
