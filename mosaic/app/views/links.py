"""Relative links under rounds/ for people; code reads the journal, never these."""

from __future__ import annotations

import json
import os
from pathlib import Path

from mosaic.app.views.report_data import load
from mosaic.core.store import Store
from mosaic.core.types.runs import each_trial


def link_rounds(folder: Path) -> None:
    """A folder per round with its plan, and links to its adapter and scores.

    A round of several trials has a folder for each in it.
    """
    journal, state = load(folder)
    journal.close()
    store = Store(folder)
    for round_ in each_trial(state.rounds):
        target = folder / "rounds" / f"{round_.round:02d}"
        ids = [trial.id for trial in state.rounds[round_.round].trials]
        if len(ids) > 1:
            target /= str(ids.index(round_.trial.id) + 1)
        target.mkdir(parents=True, exist_ok=True)
        if round_.plan:
            text = json.dumps(round_.plan.json_data(), indent=2)
            (target / "plan.json").write_text(text + "\n")
        if round_.adapter:
            _link(target / "adapter", store.root / round_.adapter)
        for objective, roles in round_.trial.files.items():
            for role, files in roles.items():
                _link(target / f"{objective}.{role}.scored.json", store.root / files.scored)


def _link(link: Path, target: Path) -> None:
    """A link to what is there; one to an artifact that was not kept is removed."""
    if not target.exists():
        link.unlink(missing_ok=True)
    elif not link.is_symlink():
        link.symlink_to(os.path.relpath(target, link.parent))
