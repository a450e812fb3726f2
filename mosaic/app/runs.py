"""Run directories: finding them, starting and resuming the loop in them."""

from __future__ import annotations

import itertools
import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

from mosaic.app.config import RunConfig, differences, load_config, parse_config
from mosaic.core.errors import BudgetError, UsageError
from mosaic.core.journal import FILE, UNFINISHED, Journal

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
    """The first free `runs/<name>-<n>`, taken by making the folder: two that start at once get two."""
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
    """The resolved config a run was started with."""
    journal = Journal.open(folder)
    try:
        return parse_config(journal.config["run"], str(folder / FILE))
    finally:
        journal.close()


def start(
    source: str, overrides: Sequence[str], run_dir: Path | None
) -> tuple[Path, RunConfig, bool]:
    """Prepare a run: (folder, config, whether it is new). An existing folder must have been made with the same config."""
    config = load_config(source, overrides)
    folder = run_dir or new_run(config)
    if (folder / FILE).is_file():
        old = run_config(folder)
        changed = differences(old.json_data(), config.json_data())
        if changed:
            lines = "\n".join(f"  {line}" for line in changed)
            raise UsageError(
                f"{folder} is a run with another config:\n{lines}\n"
                f"resume it as it is with `python -m mosaic resume {folder}`, change it under way with "
                f"`python -m mosaic resume {folder} --set ... --accept-changes`, or give another --run-dir"
            )
        return folder, config, False
    if folder.exists() and any(not p.name.startswith(UNFINISHED) for p in folder.iterdir()):
        raise UsageError(f"{folder} is not empty and no run directory; give another --run-dir")
    return folder, config, True


def check_budget(config: RunConfig) -> None:
    """BudgetError where the total cannot pay calibration and one round."""
    repeats, cost = config.settings().calibration.repeats, config.settings().cost_per_round
    if config.tokens_total < cost * (repeats + 1):
        raise BudgetError(
            f"budget.tokens_total: {config.tokens_total:,} tokens cannot pay calibration and the first planned round, "
            f"which take {cost * (repeats + 1):,} ({repeats} repeats + 1 round of {cost:,})"
        )


def create(folder: Path, config: RunConfig, digests: dict[str, object]) -> None:
    """Make the run directory with its journal. `digests` identify pool, base and suites."""
    check_budget(config)
    run = f"{folder.name}-{uuid.uuid4().hex[:12]}"
    Journal.create(
        folder, run, {"run": config.json_data(), "inputs": digests}, config.tokens_total
    ).close()
    _write_config(folder, config)


def same_inputs(folder: Path, digests: dict[str, object]) -> None:
    """UsageError with the field-level difference where what the run depends on changed since it began."""
    journal = Journal.open(folder)
    old = journal.config["inputs"]
    journal.close()
    changed = differences(old, digests)
    if changed:
        raise UsageError(_changed(folder, changed))


def accept_inputs(
    journal: Journal, config: RunConfig, digests: dict[str, object], accept: bool
) -> None:
    """Go on only with the recorded config and inputs, or where the person accepts the difference, which is recorded.

    Objectives cannot change under way: rounds measured on others cannot be compared.
    """
    old, new = journal.config, {"run": config.json_data(), "inputs": digests}
    changed = differences(old, new)
    if not changed:
        if not (journal.folder / CONFIG).is_file():
            _write_config(journal.folder, config)
        return
    if not accept:
        raise UsageError(_changed(journal.folder, changed))
    if sorted(old["run"]["objectives"]) != sorted(new["run"]["objectives"]):
        raise UsageError("objectives cannot be added or left out under way; start another run")
    journal.change(new, {"changes": changed}, config.tokens_total)
    _write_config(journal.folder, config)


def _changed(folder: Path, changed: list[str]) -> str:
    lines = "\n".join(f"  {line}" for line in changed)
    return (
        f"what {folder} depends on changed since it began:\n{lines}\n"
        "restore it, start another run, or go on with it by the same command with --accept-changes "
        f"(python -m mosaic resume {folder} [--set ...] --accept-changes)"
    )


def _write_config(folder: Path, config: RunConfig) -> None:
    """The config for people; code reads it from the journal."""
    temporary = folder / f".{CONFIG}"
    temporary.write_text(json.dumps(config.json_data(), indent=2) + "\n")
    os.replace(temporary, folder / CONFIG)
