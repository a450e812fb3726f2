"""What single mixtures do on a laboratory, and so whether planners can show anything there.

Only the pools' own proportions, random mixtures, mixtures by hand and a plain search are measured:
the recipe of the laboratory is judged before any planner has been run on it. Everything that was
measured is kept under `runs/landscape`, so that a second call goes on where the first ended.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from agent.pareto import dominates
from agent.weights import normalize
from benchmarks.figures import Rows, figure
from benchmarks.labs import labs
from benchmarks.pairs import pairs
from benchmarks.signal import signal
from benchmarks.world import Measured, World
from mosaic.app.config_file import load_config

# The data set that is declared for each objective and teaches it.
OWN = {"safety": "guard", "over_refusal": "benign", "instruction_following": "tasks"}
GENERAL, DECOY = "talk", "lessons"
# A mixture by hand: shares of data sets, whose buckets are turned to the hard end.
BY_HAND = {"guard": 0.35, "benign": 0.25, "tasks": 0.25, "talk": 0.15}
# The share of a round's tokens in safety data, alone and with other data added.
SAFETY_SHARE = 0.25


@dataclass(frozen=True)
class Point:
    """A mixture: the shares of data sets, and of the buckets within each."""

    ratios: Mapping[str, float]
    buckets: Mapping[str, Mapping[str, float]]


def landscape(quick: bool) -> Rows:
    """Every property of the default laboratory; pull, quiet, room and many sides on two others."""
    rows: Rows = []
    for lab, folder in labs(quick).items():
        world = World(load_config(str(folder / "config.yaml")), Path("runs/landscape") / lab)
        own = Point(world.ratios, world.buckets)
        found = [*pull(world, own), *quiet(world, own, 3 if quick else 5)]
        found += room(world, own, quick)
        found += mixtures(world, own)
        if lab == "default":
            found += [*breadth(world, own), *pairs(world)]
            default = world
        rows += _of_lab(lab, found)
    if not quick:
        rows += _of_lab("default", signal(default, default.ratios, default.buckets))
    return rows


def _of_lab(lab: str, found: Rows) -> Rows:
    return [{**row, "what": f"lab {lab}: {row['what']}"} for row in found]


def only(world: World, own: Point, **ratios: float) -> Point:
    """The named data sets alone, with the pool's own buckets."""
    return Point({name: ratios.get(name, 0.0) for name in world.ratios}, own.buckets)


def trained(world: World, point: Point, **options: int) -> Measured:
    return world.measure(point.ratios, point.buckets, **options)


def mixtures(world: World, own: Point) -> Rows:
    """Every score of the base, of the pools' proportions and of a mixture by hand, on audit."""
    named = {"base": world.base("audit")}
    for name, point in (("static", own), ("by hand", by_hand(own))):
        named[name] = world.measure(point.ratios, point.buckets, role="audit")
    rows: Rows = []
    for name, measured in named.items():
        for objective, mean in measured.means.items():
            rows.append(figure(f"audit of {name}, {objective}", mean, "1-5"))
        rows.append(figure(f"audit of {name}, volume", measured.volume, "share"))
    return rows


def pull(world: World, own: Point) -> Rows:
    """How much each data set costs the objectives that it does not serve."""
    base, static = world.base().means, trained(world, own).means
    rows = [
        figure("base, safety", base["safety"], "1-5", at_least=2.8),
        figure("base, safety, again", base["safety"], "1-5", at_most=3.8),
        figure("base, over-refusal", base["over_refusal"], "1-5", at_most=4.5),
        figure("base, instruction following", base["instruction_following"], "1-5"),
    ]
    alone = {name: trained(world, only(world, own, **{name: 1.0})).means for name in OWN.values()}
    for objective in ("over_refusal", "instruction_following"):
        below = static[objective] - alone["guard"][objective]
        rows.append(figure(f"safety data alone, {objective} below static", below, "", at_least=1))
        below = base[objective] - alone["guard"][objective]
        rows.append(figure(f"safety data alone, {objective} below base", below, "", at_least=0.5))
    for name in ("benign", "tasks"):
        below = base["safety"] - alone[name]["safety"]
        rows.append(figure(f"{name} alone, safety below base", below, "", at_least=0.5))
    for name, means in alone.items():
        rows.append(
            figure(f"{name} alone, retention lost", 5 - means["retention"], "", at_least=0.5)
        )
    budget = round(SAFETY_SHARE * world.config.budget.tokens_per_round)
    few = trained(world, only(world, own, guard=1.0), tokens=budget).means["safety"]
    for name in ("benign", "tasks"):
        added = only(world, own, **{"guard": SAFETY_SHARE, name: 1 - SAFETY_SHARE})
        lost = few - trained(world, added).means["safety"]
        rows.append(figure(f"safety lost where {name} is added", lost, "", at_least=0.3))
    return rows


def quiet(world: World, own: Point, seeds: int) -> Rows:
    """The standard deviation of the pools' proportions over training seeds."""
    results = [trained(world, own, seed=seed).means for seed in range(1, seeds + 1)]
    rows = []
    for name in OWN:
        spread = statistics.stdev(means[name] for means in results)
        rows.append(figure(f"deviation over seeds, {name}", spread, "", at_most=0.1))
    return rows


def breadth(world: World, own: Point) -> Rows:
    """General data help more than one objective, and the decoy none more than they do."""
    budget = SAFETY_SHARE
    rows: Rows = []
    general = trained(world, only(world, own, **{"guard": budget, GENERAL: 1 - budget})).means
    decoy = trained(world, only(world, own, **{"guard": budget, DECOY: 1 - budget})).means
    ahead = general["safety"] - decoy["safety"]
    rows.append(figure("general data ahead of the decoy in safety", ahead, "", at_least=0))
    base, alone = world.base().means, trained(world, only(world, own, **{GENERAL: 1.0})).means
    helped = sum(alone[name] > base[name] for name in OWN)
    rows.append(figure("objectives that general data help", helped, "", at_least=2))
    return rows


def room(world: World, own: Point, quick: bool) -> Rows:
    """Random mixtures and a long search: how much is to be found, and whether one share finds it."""
    generator = np.random.default_rng(5)
    static = trained(world, own)
    points = [around(generator, own, 1.0) for _ in range(6 if quick else 40)]
    drawn = [trained(world, point) for point in points]
    tried = [(trained(world, point).volume, point) for point in (own, by_hand(own))]
    for point, measured in zip(points, drawn, strict=True):
        tried.append((measured.volume, point))
    best_volume, best = max(tried, key=lambda one: one[0])
    for step in range(6 if quick else 30):
        point = around(generator, best, 0.6 if step % 2 else 0.3)
        volume = trained(world, point).volume
        if volume > best_volume:
            best_volume, best = volume, point
    audit = world.measure(best.ratios, best.buckets, role="audit")
    selection = trained(world, best)
    rows = [
        figure("volume of static", static.volume, "share"),
        figure("volume of the best mixture found", best_volume, "share"),
        figure("best less static", best_volume - static.volume, "share", at_least=0.15),
        figure(
            "random, in the mean, over best",
            statistics.fmean(one.volume for one in drawn) / best_volume,
            "ratio",
            at_most=0.75,
        ),
        figure("objectives of the best above 4.8 on audit", _above(audit), "", at_most=1),
    ]
    for name in OWN:
        gap = selection.means[name] - audit.means[name]
        rows.append(figure(f"audit of the best, {name}", audit.means[name], "1-5"))
        rows.append(figure(f"selection less audit, {name}", abs(gap), "", at_most=0.3))
    for name, point in (("even buckets", even(own)), ("need, one step", need(world, own))):
        share = trained(world, point).volume / best_volume
        rows.append(figure(f"{name}, over best", share, "ratio", at_most=0.9))
    rows.append(figure("static over best", static.volume / best_volume, "ratio", at_most=0.9))
    return [*rows, *many_sided(points, drawn)]


def many_sided(points: list[Point], drawn: list[Measured]) -> Rows:
    """Whether a single share ranks random mixtures, and how many are dominated by none."""
    volumes = [one.volume for one in drawn]
    ranks = {}
    for name in points[0].ratios:
        ranks[name] = abs(float(spearmanr([p.ratios[name] for p in points], volumes).statistic))
    name = max(ranks, key=lambda each: ranks[each])
    noise = [0.1] * len(drawn[0].point)
    kept = 0
    for one in drawn:
        kept += not any(dominates(other.point, one.point, noise) for other in drawn)
    return [
        figure(f"rank correlation of volume and a share, {name}", ranks[name], "", at_most=0.6),
        figure("random mixtures that none dominates", kept, "", at_least=6),
    ]


def around(generator: np.random.Generator, point: Point, spread: float) -> Point:
    """A random point near another one: log-normal factors of that spread on every weight."""

    def draw(weights: Mapping[str, float]) -> dict[str, float]:
        factors = np.exp(spread * generator.standard_normal(len(weights)))
        drawn = zip(weights.items(), factors, strict=True)
        return normalize({name: weight * float(factor) for (name, weight), factor in drawn})

    ratios = draw(point.ratios)
    return Point(ratios, {dataset: draw(weights) for dataset, weights in point.buckets.items()})


def by_hand(own: Point) -> Point:
    """`BY_HAND`, a bucket's weight within its data set being its level; general data as they are."""
    buckets = dict(own.buckets)
    for dataset in OWN.values():
        levels = enumerate(sorted(own.buckets[dataset]), start=1)
        buckets[dataset] = normalize({bucket: float(level) for level, bucket in levels})
    return Point({name: BY_HAND.get(name, 0.0) for name in own.ratios}, buckets)


def even(own: Point) -> Point:
    """The pools' proportions of data sets, their buckets in equal parts."""
    buckets = {}
    for dataset, weights in own.buckets.items():
        buckets[dataset] = normalize(dict.fromkeys(weights, 1.0))
    return Point(own.ratios, buckets)


def need(world: World, own: Point) -> Point:
    """What the published need rule gives from the base's profile, in one step, by hand.

    A slice's need is 6 less its mean, times its complexity. Data sets that are declared for the
    same objective share its need, the decoy too; general data keep their share.
    """
    slices, total = world.base().slices, {}
    buckets = dict(own.buckets)
    for objective, settings in world.config.objectives.items():
        for dataset in settings.datasets:
            needs = {}
            for bucket in sorted(own.buckets[dataset]):
                level = int(bucket.rpartition("_")[2])
                needs[bucket] = (6 - slices[objective][level - 1]) * level
            buckets[dataset] = normalize(needs)
            total[dataset] = sum(needs.values()) / len(settings.datasets)
    general = own.ratios[GENERAL]
    ratios = dict.fromkeys(own.ratios, 0.0) | {GENERAL: general}
    for dataset, share in normalize(total).items():
        ratios[dataset] = share * (1 - general)
    return Point(normalize(ratios), buckets)


def _above(measured: Measured) -> int:
    return sum(value > 4.8 for value in measured.point)
