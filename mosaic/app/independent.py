"""Independent suites of a config: opened, checked, and set beside the suites that decisions read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from eval.objectives.base import Objective
from eval.suite import IndependentSuite, Suite, check_independent
from mosaic.app.config import RunConfig
from mosaic.app.faults import FaultList
from mosaic.app.objectives import open_independent

Objectives = dict[str, Objective]
Suites = dict[str, dict[str, Suite]]


def open_tests(
    config: RunConfig,
    objectives: Mapping[str, Objective],
    suites: Mapping[str, Mapping[str, Suite]],
    practice: Mapping[str, Suite],
) -> dict[str, IndependentSuite]:
    """The independent suites of a config, by name.

    Raises UsageError with all that are missing or broken, or ask what another suite asks.
    """
    others = [suite for roles in suites.values() for suite in roles.values()]
    others += practice.values()
    found = {}
    faults = FaultList()
    for name, folder in config.audit_also.items():
        with faults.kept():
            test = open_independent(name, Path(folder), objectives)
            check_independent(Path(folder) / "audit.jsonl", test.suite, others)
            found[name] = test
    faults.tell()
    return found


def with_tests(
    objectives: Objectives, suites: Suites, tests: Mapping[str, IndependentSuite]
) -> tuple[Objectives, Suites]:
    """Objectives and suites with the independent ones: under their objective, by their names."""
    all_objectives = dict(objectives)
    all_suites = {name: dict(roles) for name, roles in suites.items()}
    for name, test in tests.items():
        all_objectives[test.objective.name] = test.objective
        all_suites.setdefault(test.objective.name, {})[name] = test.suite
    return all_objectives, all_suites
