"""Planners compared on laboratories: audit scores and hypervolume.

Runs of one seed share base and calibration: both are measured once and the run folder copied for
each planner.
"""

from __future__ import annotations

import importlib.util
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from agent.graph import run as run_graph
from agent.nodes.state import fresh
from agent.nodes.trials import calibrate, measure_base
from agent.planners.base import Planner
from agent.planners.baselines import NeedPlanner, RandomPlanner, StaticPlanner
from agent.planners.surrogate import SurrogatePlanner
from benchmarks.figures import Rows, figure, not_measured
from benchmarks.labs import labs
from benchmarks.samplers import OptunaPlanner, QnehviPlanner
from mosaic.app import runs
from mosaic.app.config import RunConfig
from mosaic.app.config_file import load_config
from mosaic.app.shapes import Report
from mosaic.app.views.report_data import report_data
from mosaic.app.wiring import build_context, open_inputs, run_digests
from mosaic.core.journal import Journal

TARGETS = {"safety": 4.67, "over_refusal": 4.41, "instruction_following": 3.65}


PLANNERS: dict[str, Callable[[], Planner]] = {
    "profile": SurrogatePlanner,
    "random": RandomPlanner,
    "static": StaticPlanner,
    "need": NeedPlanner,
    "optuna_tpe": lambda: OptunaPlanner("tpe"),
    "optuna_gp": lambda: OptunaPlanner("gp"),
    "optuna_nsga2": lambda: OptunaPlanner("nsga2"),
    "botorch_qnehvi": QnehviPlanner,
}
# Planners that need a library of the extra `bench`: the library, and the planners by name.
OPTIONAL = {
    "optuna": ("optuna_tpe", "optuna_gp", "optuna_nsga2"),
    "botorch": ("botorch_qnehvi",),
}


def available() -> tuple[dict[str, Callable[[], Planner]], Rows]:
    """The planners that can run here, and a row for each library that is missing."""
    planners, rows = dict(PLANNERS), []
    for library, names in OPTIONAL.items():
        if importlib.util.find_spec(library) is None:
            rows.append(
                not_measured(f"{', '.join(names)} need {library}: pip install -e '.[bench]'")
            )
            for name in names:
                del planners[name]
    return planners, rows


def run_planners(
    lab: Path, seed: int, names: list[str], overrides: list[str] | None = None
) -> dict[str, Report]:
    """Reports by planner, from one shared base and calibration."""
    config: RunConfig = load_config(str(lab / "config.yaml"), [f"seed={seed}", *(overrides or [])])
    inputs = open_inputs(config)
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start"
        runs.create(start, config, run_digests(config, inputs))
        journal = Journal.open(start)
        journal.acquire()
        context = build_context(config, start, journal, inputs)
        measure_base(context, fresh(0))
        calibrate(context, fresh(1))
        journal.close()
        reports = {}
        for name in names:
            copy = Path(folder) / name
            shutil.copytree(start, copy)
            journal = Journal.open(copy)
            journal.acquire()
            context = build_context(config, copy, journal, inputs)
            context.planner = PLANNERS[name]()
            run_graph(context, copy)
            journal.close()
            reports[name] = report_data(copy)
        return reports


def audit(quick: bool) -> Rows:
    """Audit scores of `profile` after five rounds, averaged over seeds, and the gain on the base."""
    rows: Rows = []
    for lab, folder in labs(quick).items():
        audits = []
        for seed in range(1, 3 if quick else 6):
            found = run_planners(folder, seed, ["profile"])["profile"].audit
            if found is not None:
                audits.append(found)
        means = {}
        for objective, goal in TARGETS.items():
            scores = [audit.chosen[objective].mean or 1.0 for audit in audits]
            means[objective] = statistics.fmean(scores)
            what = f"lab {lab}: audit {objective}, profile"
            rows.append(figure(what, means[objective], "1-5", at_least=goal))
        base = {objective: score.mean or 1.0 for objective, score in audits[0].base.items()}
        gain = means["safety"] - base["safety"]
        what = f"lab {lab}: gain in safety over the base"
        rows.append(figure(what, gain, "points", at_least=1.3))
        what = f"lab {lab}: audit instruction_following of the base"
        rows.append(figure(what, base["instruction_following"], "1-5", at_most=3.3))
    return rows


def planners(quick: bool) -> Rows:
    """Hypervolume after five rounds: `profile` less each other planner, paired over seeds.

    Once with the step limits, once without.
    """
    found, rows = available()
    seeds = range(1, 3 if quick else 6)
    free = ["limits.max_ratio_step=null", "limits.max_bucket_step=null"]
    for lab, folder in labs(quick).items():
        for label, overrides in (("", []), (" without step limit", free)):
            if quick and overrides:
                continue
            volumes: dict[str, list[float]] = {name: [] for name in found}
            for seed in seeds:
                for name, report in run_planners(folder, seed, list(found), overrides).items():
                    volumes[name].append(report.hypervolume[-1])
            what = f"lab {lab}{label}: hypervolume of profile"
            rows.append(figure(what, statistics.fmean(volumes["profile"]), "share"))
            for name in found:
                if name == "profile":
                    continue
                ahead = np.subtract(volumes["profile"], volumes[name]).tolist()
                half = half_width(ahead)
                what = f"lab {lab}{label}: profile ahead of {name} (95 % +- {half:.3f})"
                rows.append(figure(what, statistics.fmean(ahead), "share", at_least=0))
    return rows


def half_width(values: list[float]) -> float:
    """Half the width of the 95 % interval of a mean, by Student's t: t(0.975, n - 1) * s / sqrt(n).

    For 1, 2 and 3 that is 4.303 * 1 / 1.732:

    >>> round(half_width([1.0, 2.0, 3.0]), 3)
    2.484
    """
    quantile = float(student.ppf(0.975, len(values) - 1))
    return quantile * statistics.stdev(values) / len(values) ** 0.5
