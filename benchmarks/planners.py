"""Planners compared on laboratories: audit scores and hypervolume.

Runs of one seed share base and calibration: both are measured once and the run folder copied for
each planner.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import t as student

from agent.feasible import feasible_plan
from agent.graph import run as run_graph
from agent.nodes.state import fresh
from agent.nodes.trials import calibrate, measure_base
from agent.planners.base import Planner, require_one_plan
from agent.planners.baselines import NeedPlanner, RandomPlanner, StaticPlanner
from agent.planners.surrogate import SurrogatePlanner
from benchmarks.figures import Rows, figure
from benchmarks.labs import labs
from mosaic.app import runs
from mosaic.app.config import RunConfig
from mosaic.app.config_file import load_config
from mosaic.app.shapes import Report
from mosaic.app.views.report_data import report_data
from mosaic.app.wiring import build_context, open_inputs, run_digests
from mosaic.core.journal import Journal
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Observation
from tools.planning.toolbox import Toolbox

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

TARGETS = {"safety": 4.67, "over_refusal": 4.41, "instruction_following": 3.65}


class OptunaPlanner:
    """An Optuna sampler over log-ratios around the pools' proportions.

    It is told the calibration and every round.

    The base is trained on nothing, so it has no place in the space, and its scores cannot be told.
    """

    def __init__(self, sampler: str) -> None:
        self.kind = f"optuna_{sampler}"
        self.sampler = sampler

    def propose(self, observation: Observation, toolbox: Toolbox, n: int = 1) -> list[ActionPlan]:
        import optuna

        require_one_plan(self.kind, n)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler: BaseSampler
        if self.sampler == "tpe":
            sampler = optuna.samplers.TPESampler(
                seed=observation.seed, n_startup_trials=2, multivariate=True
            )
        elif self.sampler == "nsga2":
            sampler = optuna.samplers.NSGAIISampler(seed=observation.seed, population_size=4)
        else:
            sampler = optuna.samplers.GPSampler(seed=observation.seed, n_startup_trials=2)
        names = [objective.name for objective in observation.objectives]
        study = optuna.create_study(directions=["maximize"] * len(names), sampler=sampler)
        space = dict.fromkeys(
            _center(observation), optuna.distributions.FloatDistribution(-3.0, 3.0)
        )

        def tell(params: dict[str, float], values: list[float]) -> None:
            # NSGA-II breeds from trials of a generation; what was measured is the first.
            attributes = {"NSGAIISampler:generation": 0} if self.sampler == "nsga2" else {}
            made = optuna.trial.create_trial(
                params=params, distributions=space, values=values, system_attrs=attributes
            )
            study.add_trial(made)

        calibration = observation.calibration
        for scores in calibration.scores if calibration else ():
            values = [float(scores[name]["selection"].mean or 1.0) for name in names]
            tell(dict.fromkeys(space, 0.0), values)
        for past in observation.history:
            point = past.point(names)
            if past.plan and point:
                tell(_log_ratios(past.plan, observation), point)
        asked = study.ask(space).params
        ratios: dict[str, float] = {}
        buckets: dict[str, dict[str, float]] = {}
        for dataset, share in observation.proportions.items():
            ratios[dataset] = share * float(np.exp(asked[dataset]))
        for dataset, weights in observation.bucket_proportions.items():
            buckets[dataset] = {}
            for bucket, weight in weights.items():
                buckets[dataset][bucket] = weight * float(np.exp(asked[f"{dataset}/{bucket}"]))
        toolbox.conclude(f"asked {self.kind}")
        return [feasible_plan(f"Proposed by {self.kind}.", ratios, buckets, observation)]


def _center(observation: Observation) -> dict[str, float]:
    """The pools' own proportions: a share for each data set, a weight for each `dataset/bucket`."""
    center = dict(observation.proportions)
    for dataset, weights in observation.bucket_proportions.items():
        for bucket, weight in weights.items():
            center[f"{dataset}/{bucket}"] = weight
    return center


def _log_ratios(plan: ActionPlan, observation: Observation) -> dict[str, float]:
    """Where a plan lies in the sampler's space: logarithms of its shares over the pools' own.

    A share of 0.2 where the pool has 0.1 is at log 2, about 0.69; one of 0 where it has 0.1 is at
    -3, the edge.
    """
    shares = dict(plan.ratios)
    for dataset, weights in plan.bucket_weights.items():
        for bucket, weight in weights.items():
            shares[f"{dataset}/{bucket}"] = weight
    ratios = {}
    for name, own in _center(observation).items():
        ratio = (shares.get(name, 0.0) + 1e-4) / (own + 1e-4)
        ratios[name] = float(np.clip(np.log(ratio), -3, 3))
    return ratios


PLANNERS: dict[str, Callable[[], Planner]] = {
    "profile": SurrogatePlanner,
    "random": RandomPlanner,
    "static": StaticPlanner,
    "need": NeedPlanner,
    "optuna_tpe": lambda: OptunaPlanner("tpe"),
    "optuna_gp": lambda: OptunaPlanner("gp"),
    "optuna_nsga2": lambda: OptunaPlanner("nsga2"),
}


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
    rows: Rows = []
    seeds = range(1, 3 if quick else 6)
    free = ["limits.max_ratio_step=null", "limits.max_bucket_step=null"]
    for lab, folder in labs(quick).items():
        for label, overrides in (("", []), (" without step limit", free)):
            if quick and overrides:
                continue
            volumes: dict[str, list[float]] = {name: [] for name in PLANNERS}
            for seed in seeds:
                for name, report in run_planners(folder, seed, list(PLANNERS), overrides).items():
                    volumes[name].append(report.hypervolume[-1])
            what = f"lab {lab}{label}: hypervolume of profile"
            rows.append(figure(what, statistics.fmean(volumes["profile"]), "share"))
            for name in PLANNERS:
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
