"""Run directories: finding them, starting and resuming the loop in them."""

from __future__ import annotations

import itertools
import json
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from mosaic.app.bases import pinned
from mosaic.app.config import RunConfig
from mosaic.app.config_file import differences, load_config, parse_config
from mosaic.core.errors import BudgetError, UsageError
from mosaic.core.journal import Journal
from mosaic.core.tables import FILE, UNFINISHED
from mosaic.core.types.events import ChangedEvent
from mosaic.core.types.inputs import InputDigests, RunRecord

RUNS = Path("runs")
CONFIG = "config.json"


def find_run(name: str) -> Path:
    """A run directory by path, by name under `runs/`, or `last`: the one made last."""
    if name == "last":
        found = [p.parent for p in RUNS.glob(f"*/{FILE}")]
        if not found:
            raise UsageError(f"no run under {RUNS}/ yet; `python -m mosaic run lab` makes one")
        return max(found, key=_made)
    for candidate in (Path(name), RUNS / name):
        if (candidate / FILE).is_file():
            return candidate
    raise UsageError(f"{name}: no run directory (neither {name} nor {RUNS / name} holds a {FILE})")


def _made(folder: Path) -> int:
    """When a run was made. A kill at its very start may leave it without its config file."""
    path = folder / CONFIG
    return (path if path.is_file() else folder / FILE).stat().st_mtime_ns


def new_run(config: RunConfig) -> Path:
    """The first free `runs/<name>-<n>`, taken by making the folder.

    Two runs that start at once get two folders.
    """
    RUNS.mkdir(exist_ok=True)
    for number in itertools.count(1):
        folder = RUNS / f"{config.name}-{number}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            pass
    raise AssertionError


def run_config(folder: Path) -> RunConfig:
    """The resolved config that a run was started with."""
    journal = Journal.open(folder)
    try:
        return config_of(journal)
    finally:
        journal.close()


def config_of(journal: Journal) -> RunConfig:
    """The resolved config that the run of an open journal was started with."""
    return parse_config(journal.recorded.run, str(journal.folder / FILE))


def start(
    source: str,
    overrides: Sequence[str],
    run_dir: Path | None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Path, RunConfig, bool]:
    """Prepare a run: (folder, config, whether it is new).

    Raises UsageError if the folder exists and is not a run with the same config.
    """
    config = pinned(load_config(source, overrides), say)
    folder = run_dir or new_run(config)
    if (folder / FILE).is_file():
        old = run_config(folder)
        changed = differences(old.json_data(), config.json_data())
        if changed:
            lines = "\n".join(f"  {line}" for line in changed)
            raise UsageError(
                f"{folder} is a run with another config:\n{lines}\n"
                f"resume it as it is with `python -m mosaic resume {folder}`, change it under way "
                f"with `python -m mosaic resume {folder} --set ... --accept-changes`, or give "
                "another --run-dir"
            )
        return folder, config, False
    if folder.exists() and any(not p.name.startswith(UNFINISHED) for p in folder.iterdir()):
        raise UsageError(f"{folder} is not empty and not a run directory; give another --run-dir")
    return folder, config, True


def check_budget(config: RunConfig) -> None:
    """Raise BudgetError if the total cannot pay for the calibration and one round."""
    settings = config.settings()
    repeats, cost = settings.calibration.repeats, settings.cost_per_round
    least = cost * (repeats + config.candidates) + settings.cost_of_experts
    if config.tokens_total < least:
        trials = f", {config.candidates} candidates" if config.candidates > 1 else ""
        raise BudgetError(
            f"budget.tokens_total: {config.tokens_total:,} tokens cannot pay calibration and the "
            f"first planned round, which take {least:,} ({repeats} repeats + 1 round{trials} of "
            f"{cost:,}{_experts_text(settings.cost_of_experts)})"
        )


def _experts_text(cost: int) -> str:
    return f", experts {cost:,}" if cost else ""


def create(folder: Path, config: RunConfig, digests: InputDigests) -> None:
    """Make the run directory with its journal. `digests` identify what the config names."""
    check_budget(config)
    run = f"{folder.name}-{uuid.uuid4().hex[:12]}"
    Journal.create(folder, run, _record(config, digests), config.tokens_total).close()
    write_config(folder, config)


def _record(config: RunConfig, digests: InputDigests) -> RunRecord:
    return RunRecord(run=config.json_data(), inputs=digests)


def changes(journal: Journal, config: RunConfig, digests: InputDigests) -> list[str]:
    """Field-level difference from what the run began with, a line `path: old -> new` each."""
    return differences(journal.recorded.json_data(), _record(config, digests).json_data())


def same_inputs(folder: Path, config: RunConfig, digests: InputDigests) -> None:
    """Raise UsageError with the difference if what the run depends on changed since it began."""
    journal = Journal.open(folder)
    changed = changes(journal, config, digests)
    journal.close()
    if changed:
        raise UsageError(refused_changes(folder, changed))


def accept_changes(
    journal: Journal, config: RunConfig, digests: InputDigests, changed: list[str]
) -> None:
    """Record that a person accepted a difference.

    Raises UsageError if objectives were added or left out: rounds measured on others cannot be
    compared.
    """
    before = journal.recorded.run.get("objectives")
    if not isinstance(before, dict) or sorted(before) != sorted(config.objectives):
        raise UsageError("objectives cannot be added or left out under way; start another run")
    event = ChangedEvent(changes=changed)
    journal.change(_record(config, digests), event, config.tokens_total)
    write_config(journal.folder, config)


def refused_changes(folder: Path, changed: list[str]) -> str:
    """What a person is told who resumes a run whose config or inputs changed."""
    lines = "\n".join(f"  {line}" for line in changed)
    return (
        f"what {folder} depends on changed since it began:\n{lines}\n"
        "restore it, start another run, or go on with it by the same command with "
        f"--accept-changes (python -m mosaic resume {folder} [--set ...] --accept-changes)"
    )


def write_config(folder: Path, config: RunConfig) -> None:
    """The config for people; code reads it from the journal."""
    temporary = folder / f".{CONFIG}"
    temporary.write_text(json.dumps(config.json_data(), indent=2) + "\n")
    os.replace(temporary, folder / CONFIG)
