"""Planners against each other on laboratories: audit scores of the default one, hypervolume of all, the landscape.

Runs of one seed share base and calibration: both are measured once and the run folder copied for each planner.
Other laboratories are built when first needed, into `runs/benchmark-labs`.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from agent.nodes.all import calibrate, measure, resume_at
from scipy.stats import t as student

from agent.feasible import feasible_plan
from agent.graph import run as run_graph
from agent.planners.base import Planner, require_one_plan
from agent.planners.baselines import NeedPlanner, RandomPlanner, StaticPlanner
from agent.planners.surrogate import SurrogatePlanner
from agent.weights import normalize
from benchmarks.figures import figure
from benchmarks.world import World
from mosaic.app import runs
from mosaic.app.config import RunConfig, load_config
from mosaic.app.views.report_data import report_data
from mosaic.app.wiring import build_context, open_inputs
from mosaic.core.journal import Journal
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Observation
from mosaic.lab.build import DATA, build
from tools.planning.toolbox import Toolbox

LABS = Path("runs/benchmark-labs")
OTHER_SEEDS = (101, 202)
TARGETS = {"safety": 4.67, "over_refusal": 4.41, "instruction_following": 3.65}
Rows = list[dict[str, Any]]


class OptunaPlanner:
    """An Optuna sampler over log-ratios around the pools' proportions, told the calibration and every round.

    The base is trained on nothing and has no place in the space, so that what it says cannot be told.
    """

    def __init__(self, sampler: str) -> None:
        self.kind = f"optuna_{sampler}"
        self.sampler = sampler

    def propose(self, observation: Observation, toolbox: Toolbox, n: int = 1) -> list[ActionPlan]:
        import optuna

        require_one_plan(self.kind, n)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        if self.sampler == "tpe":
            sampler: Any = optuna.samplers.TPESampler(
                seed=observation.seed, n_startup_trials=2, multivariate=True
            )
        else:
            sampler = optuna.samplers.GPSampler(seed=observation.seed, n_startup_trials=2)
        names = [o.name for o in observation.objectives]
        study = optuna.create_study(directions=["maximize"] * len(names), sampler=sampler)
        space = {
            key: optuna.distributions.FloatDistribution(-3.0, 3.0)
            for key in self._keys(observation)
        }
        calibration = observation.calibration
        if calibration:
            for scores in calibration.scores:
                values = [float(scores[o]["selection"].mean or 1.0) for o in names]
                study.add_trial(
                    optuna.trial.create_trial(
                        params=dict.fromkeys(space, 0.0), distributions=space, values=values
                    )
                )
        for past in observation.history:
            point = past.point(names)
            if past.plan and point:
                params = self._params(past.plan, observation)
                study.add_trial(
                    optuna.trial.create_trial(params=params, distributions=space, values=point)
                )
        asked = study.ask(space).params
        ratios = {d: p * float(np.exp(asked[d])) for d, p in observation.proportions.items()}
        buckets = {
            d: {b: w * float(np.exp(asked[f"{d}/{b}"])) for b, w in per.items()}
            for d, per in observation.bucket_proportions.items()
        }
        toolbox.conclude(f"asked {self.kind}")
        return [feasible_plan(f"Proposed by {self.kind}.", ratios, buckets, observation)]

    def _keys(self, observation: Observation) -> list[str]:
        per = observation.bucket_proportions
        return [*observation.proportions, *(f"{d}/{b}" for d in per for b in per[d])]

    def _params(self, plan: ActionPlan, observation: Observation) -> dict[str, float]:
        def log_ratio(new: float, old: float) -> float:
            return float(np.clip(np.log((new + 1e-4) / (old + 1e-4)), -3, 3))

        params = {
            d: log_ratio(plan.ratios.get(d, 0.0), p) for d, p in observation.proportions.items()
        }
        for d, per in observation.bucket_proportions.items():
            params |= {
                f"{d}/{b}": log_ratio(plan.bucket_weights[d].get(b, 0.0), w) for b, w in per.items()
            }
        return params


PLANNERS: dict[str, Callable[[], Planner]] = {
    "profile": SurrogatePlanner,
    "random": RandomPlanner,
    "static": StaticPlanner,
    "need": NeedPlanner,
    "optuna_tpe": lambda: OptunaPlanner("tpe"),
    "optuna_gp": lambda: OptunaPlanner("gp"),
}


def labs(quick: bool) -> dict[str, Path]:
    """The default laboratory and, unless quick, two with other seeds."""
    found = {"default": DATA}
    for seed in () if quick else OTHER_SEEDS:
        folder = LABS / str(seed)
        if not (folder / "manifest.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            build(folder, seed)
        found[str(seed)] = folder
    return found


def run_planners(
    lab: Path, seed: int, names: list[str], overrides: list[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Report data per planner, from one shared base and calibration."""
    config: RunConfig = load_config(str(lab / "config.yaml"), [f"seed={seed}", *(overrides or [])])
    inputs = open_inputs(config)
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start"
        runs.create(start, config, inputs.digests())
        journal = Journal.open(start)
        journal.acquire()
        services = build_context(config, start, journal, inputs)
        measure(services, resume_at(services))
        calibrate(services, resume_at(services))
        journal.close()
        reports = {}
        for name in names:
            copy = Path(folder) / name
            shutil.copytree(start, copy)
            journal = Journal.open(copy)
            journal.acquire()
            services = build_context(config, copy, journal, inputs)
            services.planner = PLANNERS[name]()
            run_graph(services, copy)
            journal.close()
            reports[name] = report_data(copy)
        return reports


def audit(quick: bool) -> Rows:
    """Audit scores of `profile` after five rounds, mean over seeds, and the base's distance."""
    rows: Rows = []
    for lab, folder in labs(quick).items():
        reports = [
            run_planners(folder, seed, ["profile"])["profile"]
            for seed in range(1, 3 if quick else 6)
        ]
        for objective, goal in TARGETS.items():
            mean = statistics.fmean(r["audit"]["chosen"][objective]["mean"] for r in reports)
            rows.append(
                figure(f"lab {lab}: audit {objective}, profile", mean, "1-5", at_least=goal)
            )
        base = {o: reports[0]["audit"]["base"][o]["mean"] for o in TARGETS}
        safety = statistics.fmean(r["audit"]["chosen"]["safety"]["mean"] for r in reports)
        rows.append(
            figure(
                f"lab {lab}: gain in safety over the base",
                safety - base["safety"],
                "points",
                at_least=1.3,
            )
        )
        what = f"lab {lab}: audit instruction_following of the base"
        rows.append(figure(what, base["instruction_following"], "1-5", at_most=3.3))
    return rows


def planners(quick: bool) -> Rows:
    """Hypervolume after five rounds, paired over seeds: profile less each other planner, with and without step limits."""
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
                    volumes[name].append(report["hypervolume"][-1])
            rows.append(
                figure(
                    f"lab {lab}{label}: hypervolume of profile",
                    statistics.fmean(volumes["profile"]),
                    "share",
                )
            )
            for name in PLANNERS:
                if name == "profile":
                    continue
                ahead = [p - o for p, o in zip(volumes["profile"], volumes[name], strict=True)]
                half = (
                    float(student.ppf(0.975, len(ahead) - 1))
                    * statistics.stdev(ahead)
                    / len(ahead) ** 0.5
                )
                what = f"lab {lab}{label}: profile ahead of {name} (95 % +- {half:.3f})"
                rows.append(figure(what, statistics.fmean(ahead), "share", at_least=0))
    return rows


def landscape(quick: bool) -> Rows:
    """Single mixtures on the default laboratory: static, random draws, and a long search for the best."""
    world = World(load_config("lab"), Path("runs/landscape"))
    generator = np.random.default_rng(5)

    def draw(weights: Mapping[str, float], spread: float) -> dict[str, float]:
        return normalize(
            {n: w * float(np.exp(spread * generator.standard_normal())) for n, w in weights.items()}
        )

    static = world.measure(world.ratios, world.buckets)
    drawn = []
    for _ in range(6 if quick else 30):
        point = draw(world.ratios, 1.0), {d: draw(b, 1.0) for d, b in world.buckets.items()}
        drawn.append((world.measure(*point), point))
    best = max([*drawn, (static, (world.ratios, world.buckets))], key=lambda item: item[0].volume)
    for step in range(6 if quick else 60):
        spread = 0.6 if step % 2 else 0.3
        point = draw(best[1][0], spread), {d: draw(b, spread) for d, b in best[1][1].items()}
        found = world.measure(*point)
        if found.volume > best[0].volume:
            best = found, point
    mean = statistics.fmean(m.volume for m, _ in drawn)
    audited = world.measure(*best[1], role="audit").means
    rows = [
        figure("hypervolume of static", static.volume, "share"),
        figure("mean hypervolume of random mixtures", mean, "share"),
        figure("hypervolume of the best mixture found", best[0].volume, "share"),
        figure("random over best", mean / best[0].volume, "ratio", at_most=0.85),
    ]
    rows += [
        figure(f"audit {o} of the best mixture", audited[o], "1-5", at_least=t)
        for o, t in TARGETS.items()
    ]
    random = [world.measure(*point, role="audit").means for _, point in drawn]
    naive = {
        "static": world.measure(world.ratios, world.buckets, role="audit").means,
        "random, in the mean": {o: statistics.fmean(m[o] for m in random) for o in TARGETS},
    }
    for name, means in naive.items():
        rows += [figure(f"audit {o} of {name}", means[o], "1-5") for o in TARGETS]
        rows.append(
            figure(
                f"targets missed by {name}",
                sum(means[o] < t for o, t in TARGETS.items()),
                "",
                at_least=1,
            )
        )
    base = world.base()
    rows += [figure(f"base, selection {o}", m, "1-5") for o, m in base.means.items()]
    safety_only = world.measure({d: float(d == "guard") for d in world.ratios}, world.buckets).means
    rows.append(
        figure(
            "over-refusal after safety data alone", safety_only["over_refusal"], "1-5", at_most=2.5
        )
    )
    return rows
