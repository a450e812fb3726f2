"""IDEAL beside the pools' own proportions and other planners, round by round, at the same tokens.

Two rounds from two mixtures: the pools' proportions, and three times as many benign rows as of any other data set. Each
seed trains the first mixture (joint fine-tuning), then each planner's two rounds; every training has the tokens of one
round. What a planner sees is what it would see in a run whose calibration was that one training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from agent.noise import noise_of
from agent.observe import observation
from agent.pareto import hypervolume
from agent.planners.toolbox import open_toolbox
from agent.state import RunState
from agent.trial import base_spec, plan_spec, run_trial
from benchmarks.figures import Rows, compared, figure
from benchmarks.world import UNLIMITED, World
from mosaic.app.config_file import load_config
from mosaic.app.wiring import build_planner
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Calibration, Round, Trial

SEEDS = (1, 2, 3, 4, 5)
ROUNDS = 2
SKEWED, SKEW = "benign", 3
PLANNERS = {
    "ideal, m 0.15": ("ideal", ("planner.kind=ideal", "planner.step=0.15")),
    "ideal, m 0.3": ("ideal", ("planner.kind=ideal", "planner.step=0.3")),
    "need": ("need", ()),
    "profile": ("profile", ()),
}
# What IDEAL is to be ahead of joint fine-tuning by, in the mean of the objectives with data.
AHEAD = 0.05


def ideal(quick: bool) -> Rows:
    """Audit means and volumes after each round, and each planner against joint fine-tuning."""
    config = load_config("lab", ["influence.tokens_per_bucket=2000", "influence.damping=0.1"])
    world = World(config, Path("runs") / "ideal")
    rows: Rows = []
    for start, ratios in starts(world).items():
        ends: dict[str, list[dict[str, float]]] = {}
        volumes: dict[str, list[list[float]]] = {}
        for seed in SEEDS[:1] if quick else SEEDS:
            first = trial_of(world, ActionPlan(rationale="", ratios=ratios), seed, 0, None)
            ends.setdefault("joint", []).append(audited(world, first))
            for name, (kind, overrides) in PLANNERS.items():
                trials = driven(world, kind, overrides, first, seed)
                ends.setdefault(name, []).append(audited(world, trials[-1]))
                volumes.setdefault(name, []).append([volume(world, t) for t in trials])
        rows += told(start, ends, volumes)
    return rows


def starts(world: World) -> dict[str, dict[str, float]]:
    """The mixtures to begin with, by name."""
    others = len(world.ratios) - 1
    skewed = dict.fromkeys(world.ratios, 1 / (SKEW + others))
    return {
        "proportions": dict(world.ratios),
        "3:1 skew": {**skewed, SKEWED: SKEW / (SKEW + others)},
    }


def trial_of(
    world: World, plan: ActionPlan, seed: int, round_: int, previous: Trial | None
) -> Trial:
    return run_trial(world.context, plan_spec(world.context, plan, seed), round_, previous)


def driven(
    world: World, kind: str, overrides: tuple[str, ...], first: Trial, seed: int
) -> list[Trial]:
    """The trial that all begin with, and those of a planner's rounds."""
    context = world.context
    steps, settings = context.steps, context.settings
    planner = build_planner(kind, load_config("lab", ["influence={}", *overrides]).planner)
    base = run_trial(context, base_spec(context), 0, None)
    state = RunState(
        objectives=tuple(o.name for o in settings.traded),
        rounds=(Round(round=0, trials=[base], counts=base.id, accepted=True),),
    ).calibrated(Calibration(trials=[first], noise=noise_of([first])))
    trials = [first]
    for number in range(1, ROUNDS + 1):
        influence = None
        if kind == "ideal":
            assert context.influence is not None
            influence = context.influence.influence(steps, [trials[-1]], state.first_trials)
        seen = observation(state, settings, context.pool, UNLIMITED, [], influence)
        toolbox = open_toolbox(seen, context.pool, steps.store, trials[-1].files)
        (plan,) = planner.propose(seen, toolbox)
        trial = trial_of(world, plan, seed, number, trials[-1])
        closed = Round(round=number, trials=[trial], counts=trial.id, planner=kind, accepted=True)
        state = state.closed(closed)
        trials.append(trial)
    return trials


def audited(world: World, trial: Trial) -> dict[str, float]:
    """Audit means of the objectives that have data."""
    assert trial.adapter is not None
    means = world.evaluated(trial.adapter.digest, "audit").means
    return {o.name: means[o.name] for o in world.context.settings.traded}


def volume(world: World, trial: Trial) -> float:
    """The hypervolume of one trial's selection means."""
    point = trial.point([o.name for o in world.context.settings.traded])
    return hypervolume([point]) if point else 0.0


def told(
    start: str,
    ends: Mapping[str, list[dict[str, float]]],
    volumes: Mapping[str, list[list[float]]],
) -> Rows:
    rows: Rows = []
    for name, seeds in ends.items():
        for objective in seeds[0]:
            mean = fmean(means[objective] for means in seeds)
            rows.append(figure(f"{start}, {name}, audit: {objective}", mean, "of 5"))
    for name, per_seed in volumes.items():
        for number in range(ROUNDS + 1):
            mean = fmean(values[number] for values in per_seed)
            rows.append(figure(f"{start}, {name}, volume after {number} rounds", mean, "share"))
    joint = [fmean(means.values()) for means in ends["joint"]]
    for name, seeds in ends.items():
        if name == "joint":
            continue
        reached = [fmean(means.values()) for means in seeds]
        shares = [one / before - 1 for one, before in zip(reached, joint, strict=True)]
        row = compared(f"{start}, {name}: mean over joint fine-tuning, less 1", shares)
        least = AHEAD if name.startswith("ideal") else None
        rows.append(figure(str(row["what"]), fmean(shares), "share", at_least=least))
        if not name.startswith("ideal"):
            best = [fmean(means.values()) for means in ends["ideal, m 0.3"]]
            gaps = [a - b for a, b in zip(best, reached, strict=True)]
            rows.append(compared(f"{start}, ideal (m 0.3) less {name}, mean", gaps))
    return rows
