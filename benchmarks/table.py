"""Planners on a landscape that they were not made for: a public table of mixtures and losses.

The constants of `profile` were chosen on other pools of the table (seeds from 100 on), on recorded
observations and by reasoning; pools 1 to 20 are only measured on.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from agent.fidelity import ExpertsConfig
from agent.pareto import hypervolume
from agent.planners.base import LlmPlannerConfig, Planner, require_one_plan
from agent.planners.baselines import NeedPlanner
from agent.planners.surrogate import SurrogatePlanner
from benchmarks.directions import TRUTH, WithInfluence
from benchmarks.drive import FREE, ROUNDS, Drive, Driven
from benchmarks.figures import Rows, figure
from benchmarks.landscapes import TableLandscape, table_landscapes
from benchmarks.planners import available, half_width
from benchmarks.scripted import Adversary, ScriptedPlanner, takes_the_first_suggestion
from benchmarks.surface import Surface, explained, read_table
from mosaic.core.types.evaluation import FailureProfile, Score, SliceProfile
from mosaic.core.types.plans import ActionPlan, Limits
from mosaic.core.types.runs import Observation, Trial
from tools.planning.toolbox import Toolbox

POOLS = 20
# Planners of which a run takes seconds of processor time.
SLOW = ("botorch_qnehvi",)
# Ends of a 90 % interval, in standard deviations.
HALF_90 = 1.645


class ThenPlanner:
    """`need` in the first two rounds, the surrogate after them."""

    kind = "need_then_profile"

    def propose(self, observation: Observation, toolbox: Toolbox, n: int = 1) -> list[ActionPlan]:
        planner = NeedPlanner() if observation.round <= 2 else SurrogatePlanner()
        return planner.propose(observation, toolbox, n)


class Ablated:
    """`profile` that is told less, or whose plans say less."""

    def __init__(
        self,
        kind: str,
        told: Callable[[Observation], Observation] = lambda seen: seen,
        said: Callable[[ActionPlan, Observation], ActionPlan] = lambda plan, seen: plan,
    ) -> None:
        self.kind = kind
        self._told, self._said = told, said

    def propose(self, observation: Observation, toolbox: Toolbox, n: int = 1) -> list[ActionPlan]:
        require_one_plan(self.kind, n)
        told = self._told(observation)
        # Its tools know no more than what it is told.
        own = Toolbox(told, lambda *wanted: [], lambda draft: [])
        plans = SurrogatePlanner().propose(told, own)
        return [self._said(plan, observation) for plan in plans]


def without_slices(seen: Observation) -> Observation:
    """One slice for each objective, at the mean of all."""
    history = []
    for past in seen.history:
        trials = [_one_slice(trial) for trial in past.trials]
        history.append(past.model_copy(update={"trials": trials}))
    calibration = seen.calibration
    if calibration is not None:
        trials = [_one_slice(trial) for trial in calibration.trials]
        calibration = calibration.model_copy(update={"trials": trials})
    changes = {"history": history, "calibration": calibration, "profile": _merged(seen.profile)}
    return seen.model_copy(update=changes)


def _one_slice(trial: Trial) -> Trial:
    return trial.model_copy(update={"profile": _merged(trial.profile)})


def _merged(profile: FailureProfile) -> FailureProfile:
    means: dict[str, list[float]] = {}
    for one in profile.slices:
        means.setdefault(one.objective, []).append(one.score.mean or 1.0)
    slices = []
    for name, each in sorted(means.items()):
        mean = statistics.fmean(each)
        score = Score(mean=mean, low=mean, high=mean, n_scored=40 * len(each))
        slices.append(SliceProfile(objective=name, slice="all", score=score, reliability="high"))
    return FailureProfile(round=profile.round, slices=slices)


def without_buckets(plan: ActionPlan, seen: Observation) -> ActionPlan:
    """The pools' own buckets within each data set."""
    return plan.model_copy(update={"bucket_weights": seen.bucket_proportions})


def without_rounds(seen: Observation) -> Observation:
    """Only the base and the calibration: nothing is learned from the rounds."""
    return seen.model_copy(update={"history": [r for r in seen.history if r.plan is None]})


def without_archive(seen: Observation) -> Observation:
    """Nothing counts as reached: a mixture is worth its own result, whatever was measured before."""
    history = [past.model_copy(update={"accepted": False}) for past in seen.history]
    return seen.model_copy(update={"history": history})


# Left out: focus, which `profile` never sets, and reliability, which a landscape has no doubts of.
ABLATIONS: dict[str, Callable[[], Planner]] = {
    "without slices": lambda: Ablated("slices", without_slices),
    "without archive": lambda: Ablated("archive", without_archive),
    "without bucket weights": lambda: Ablated("buckets", said=without_buckets),
    "without earlier rounds": lambda: Ablated("rounds", without_rounds),
    "without calibration": lambda: Ablated(
        "calibration", lambda seen: seen.model_copy(update={"calibration": None})
    ),
    "need in rounds 1 and 2": ThenPlanner,
}


class Setting(NamedTuple):
    """A landscape with limits on steps, and what `profile` did there on each pool."""

    what: str
    landscape: TableLandscape
    limits: Limits | None
    own: list[Driven]


def table(folder: Path, quick: bool) -> Rows:
    """Hypervolume after five rounds over 20 pools, `profile` less each other planner, paired."""
    pools = range(1, 4 if quick else POOLS + 1)
    found = read_table(folder)
    surface = Surface(found.shares, found.losses)
    known = float(explained(found, surface.lengths).mean())
    rows = [figure("the surface explains, of the variance of losses left out", known, "share")]
    others, missing = available()
    del others["profile"]
    rows += missing
    _say(rows)
    (right_name, right), (wrong_name, wrong) = table_landscapes(found, surface).items()
    settings = []
    for what, landscape, limits in (
        (right_name, right, None),
        (wrong_name, wrong, None),
        (f"{right_name}, limits off", right, FREE),
    ):
        own = _driven(landscape, pools, SurrogatePlanner, limits, foresee=True)
        settings.append(Setting(what, landscape, limits, own))
        rows += _own_rows(what, own)
    # What takes longest comes last: every row is printed when it is known.
    slow = {name: others.pop(name) for name in SLOW if name in others}
    for name, make in {**others, **ABLATIONS, **slow}.items():
        for setting in settings:
            if name not in ABLATIONS or setting.landscape is right:
                rows += _ahead_of(name, make, setting, pools)
    for setting in settings[:2]:
        rows += _with_influence(setting, pools)
    rows += _with_scripts(settings[0], pools)
    for setting in settings[:2]:
        rows += _with_looks(setting, pools)
    return rows


def _driven(
    landscape: TableLandscape,
    pools: range,
    make: Callable[[], Planner],
    limits: Limits | None = None,
    foresee: bool = False,
) -> list[Driven]:
    """One run on each pool."""
    return [Drive(landscape, pool, limits, foresee).run(make()) for pool in pools]


def _own_rows(what: str, own: list[Driven]) -> Rows:
    volumes = [run.volume for run in own]
    rows = [
        figure(f"{what}: hypervolume of profile", statistics.fmean(volumes), "share"),
        figure(f"{what}: all targets met by profile", _met(own), "share of pools"),
        *_forecasts(what, own),
    ]
    _say(rows)
    return rows


def _ahead_of(name: str, make: Callable[[], Planner], setting: Setting, pools: range) -> Rows:
    """How far `profile` is ahead of another planner, paired over pools."""
    runs = _driven(setting.landscape, pools, make, setting.limits)
    volumes = [run.volume for run in setting.own]
    ahead = np.subtract(volumes, [run.volume for run in runs]).tolist()
    half = half_width(ahead)
    label = (
        f"{setting.what}: profile ahead of {name} (95 % +- {half:.3f}, targets {_met(runs):.2f})"
    )
    goal = None if name in ABLATIONS else 0.0
    rows = [figure(label, statistics.fmean(ahead), "share", at_least=goal)]
    _say(rows)
    return rows


def _with_influence(setting: Setting, pools: range) -> Rows:
    """`profile` that is told of influence, ahead of the one that is not: `benchmarks.directions`."""
    plain = [run.volume for run in setting.own]
    rows: Rows = []
    for told in TRUTH:
        planner = WithInfluence(setting.landscape, told)
        volumes = [Drive(setting.landscape, pool).run(planner).volume for pool in pools]
        ahead = np.subtract(volumes, plain).tolist()
        half = half_width(ahead)
        text = (
            f"{setting.what}: with influence that is {told}, ahead of without (95 % +- {half:.3f})"
        )
        rows.append(figure(text, statistics.fmean(ahead), "share", at_least=-half))
        _say(rows[-1:])
    return rows


def _with_scripts(setting: Setting, pools: range) -> Rows:
    """A model that takes every suggestion equals `profile`; one that does harm is held by the limits."""
    apart, lost, behind, explored = [], [], [], []
    for pool, own in zip(pools, setting.own, strict=True):
        suggested = ScriptedPlanner(takes_the_first_suggestion)
        points = Drive(setting.landscape, pool).run(suggested).points
        apart.append(float(np.abs(np.subtract(points, own.points)).max()))
        drive = Drive(setting.landscape, pool)
        harm = ScriptedPlanner(Adversary(drive))
        volume = drive.run(harm).volume
        explored.append(harm.explored)
        lost.append(1 - volume / own.volume)
        behind.append(hypervolume(own.points[: ROUNDS - harm.explored]) - volume)
    share = LlmPlannerConfig().explore_share
    worse = "rounds clearly worse than the best suggestion, the most of any run"
    less = f"share of profile's volume lost (95 % +- {half_width(lost):.3f})"
    half = half_width(behind)
    more = f"behind profile after the rounds that are left (95 % +- {half:.3f})"
    rows = [
        figure(
            f"{setting.what}: first suggestions, largest difference to profile in a true mean",
            max(apart),
            "points",
            at_most=1e-9,
        ),
        figure(f"{setting.what}: adversary, {worse}", max(explored), "", at_most=share * ROUNDS),
        figure(f"{setting.what}: adversary, {less}", statistics.fmean(lost), "", at_most=share),
        figure(f"{setting.what}: adversary, {more}", statistics.fmean(behind), "", at_most=half),
    ]
    _say(rows)
    return rows


def _with_looks(setting: Setting, pools: range) -> Rows:
    """Experts in place of two repeats of the calibration, at equal tokens: how far ahead of without.

    How far looks lie off is drawn (`benchmarks.drive`), since no landscape knows it.
    """
    plain = [run.volume for run in setting.own]
    rows: Rows = []
    for label, looks in (("experts alone", 0), ("experts and looks", 6)):
        fidelity, volumes = ExpertsConfig(looks=looks), []
        for pool in pools:
            drive = Drive(setting.landscape, pool, fidelity=fidelity, repeats=1)
            volumes.append(drive.run(SurrogatePlanner()).volume)
        ahead = np.subtract(volumes, plain).tolist()
        half = half_width(ahead)
        text = f"{setting.what}: {label} ahead of three repeats (95 % +- {half:.3f})"
        rows.append(figure(text, statistics.fmean(ahead), "share", at_least=-half))
        _say(rows[-1:])
    return rows


def _met(runs: list[Driven]) -> float:
    return statistics.fmean(run.targets_met for run in runs)


def _forecasts(what: str, runs: list[Driven]) -> Rows:
    """Errors of forecasts against those of `no change`, and how many 90 % intervals cover."""
    lines = np.array([line for run in runs for line in run.forecasts])
    error = float(np.abs(lines[:, 0] - lines[:, 2]).mean())
    still = float(np.abs(lines[:, 2]).mean())
    inside = np.abs(lines[:, 0] - lines[:, 2]) <= HALF_90 * lines[:, 1]
    return [
        figure(
            f"{what}: error of forecasts over that of no change", error / still, "", at_most=0.7
        ),
        figure(f"{what}: 90 % intervals that cover", float(inside.mean()), "", at_least=0.85),
    ]


def _say(rows: Rows) -> None:
    """Rows as they come, for whoever waits: all of them take minutes of processor time."""
    for row in rows:
        print(f"{row['what']}: {row['figure']}", file=sys.stderr, flush=True)
