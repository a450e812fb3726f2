"""The command line: every group of commands in one application, and what a failure prints.

Results go to stdout, logs and progress to stderr; exit codes are those of `mosaic.core.errors`.
Commands import what they need when they run, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Annotated

import typer

from mosaic import __version__
from mosaic.app.cli import approval, hand_on, judge, lab, pool, report, run, setup
from mosaic.app.cli.options import MATERIAL
from mosaic.app.terminal import say
from mosaic.core.errors import (
    DamageError,
    MosaicError,
    PausedError,
    StopRequested,
    UsageError,
)

ABOUT = """\
MOSAIC fine-tunes a model round by round: it measures where the model fails, plans which data to
train on next under a fixed token budget, trains, and measures again. Every step is journalled, so
a run can be stopped, resumed, explained and checked, and a person can approve each plan.
"""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
BAD_PATHS = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (setup, run, approval, report, hand_on):
    app.add_typer(module.commands)
for name, group in (("pool", pool.group), ("judge", judge.group), ("lab", lab.group)):
    app.add_typer(group, name=name, rich_help_panel=MATERIAL)
for commands in (pool.commands, judge.commands):
    app.add_typer(commands)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"mosaic {__version__}")
        raise typer.Exit


@app.callback(help=ABOUT)
def about(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """What stands before any command."""


def main() -> None:
    """Run the command line; an expected failure prints one message and leaves with its exit code."""
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
        sys.exit(_explain(error))
    except SystemExit as end:
        # A second Ctrl-C, which typer turned into an exit. Requests in other threads may take
        # minutes, and an ordinary exit would wait for them.
        if end.code == StopRequested.exit_code:
            with suppress(OSError):  # whoever read this may be gone
                say("interrupted; nothing that was finished is lost")
                sys.stdout.flush()
            os._exit(StopRequested.exit_code)
        raise


def _explain(error: OSError) -> int:
    """Say what a full disk or a bad path means; the exit code. Anything else is raised again."""
    full = error.errno in FULL_DISK
    if not full and not isinstance(error, BAD_PATHS) and error.errno != errno.ENAMETOOLONG:
        raise error
    where = str(error).splitlines()[0]
    if error.filename:
        where = f"{error.filename}: {error.strerror}"
    if full:
        say(f"error: {where}; make room, then give the same command again")
        return PausedError.exit_code
    say(f"error: {where}; give another path")
    return UsageError.exit_code
