"""The cases of public reports in ../shared/cases: each is served as its table says, or better."""

from __future__ import annotations

import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from benchmarks.case import Case
from benchmarks.figures import CannotRun, Rows, figure

CASES_FOLDER = Path("../shared/cases/data")
# Each has a list CASES.
MODULES = ("benchmarks.cases_data", "benchmarks.cases_bases")


def cases_folder() -> Path:
    """The folder of the cases' files. Raises CannotRun if it is not there."""
    folder = Path(__file__).resolve().parents[1] / CASES_FOLDER
    if not folder.is_dir():
        raise CannotRun(f"the cases' files are not at {CASES_FOLDER}")
    return folder


def cases(quick: bool) -> Rows:
    """One row a case, and how many went wrong."""
    cases_folder()
    found: list[Case] = []
    for module in MODULES:
        if find_spec(module):
            found += import_module(module).CASES
    rows: Rows = []
    wrong = 0
    for case in found:
        seen = _seen(case)
        wrong += seen is not None
        what = f"case {case.number}, {case.what}"
        if seen is not None:
            what = f"{what}; seen: {seen}"
        rows.append(figure(what, int(seen is None), "right", at_least=1))
    rows.append(figure("cases that went wrong", wrong, f"of {len(found)}", at_most=0))
    return rows


def _seen(case: Case) -> str | None:
    """What a case shows instead of what is right. A crash is something seen too."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return case.run(Path(folder))
        except Exception as error:  # whatever it is, it is what this case shows
            lines = str(error).splitlines() or [""]
            return f"{type(error).__name__}: {lines[0]}"
