"""Moves every domain by its influence on the mean steering loss: IDEAL's published update.

What each domain's size is multiplied by is 1 + beta (`training.influence.ideal`), counted from the
plan executed last; the whole keeps its size. Nothing is moved if the direction is lost in the noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from agent.feasible import feasible_plan
from agent.planners.base import Planner, PlannerSettings
from agent.planners.siblings import spread_around
from agent.weights import Cell, plan_shares
from mosaic.core.errors import UsageError
from mosaic.core.types.influence import Influence
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Observation
from tools.planning.toolbox import Toolbox
from training.influence.ideal import at_equilibrium, resized, steps

Domains = Literal["buckets", "datasets"]
MAX_NAMED = 3
# Shares are resized as whole millionths.
UNIT = 1_000_000


@dataclass(frozen=True)
class _Alpha:
    """How the mean steering loss changes as a domain grows, and the standard error of that.

    Per doubling of the domain: 100 times the effect per percent, times the domain's share.
    """

    value: float
    error: float


class IdealPlanner:
    """The published update with the largest step `step`; domains are data sets or buckets.

    Further plans of a round are draws around that one.
    """

    kind = "ideal"

    def __init__(self, step: float = 0.15, domains: Domains = "datasets") -> None:
        self.step = step
        self.domains = domains

    def propose(self, observation: Observation, toolbox: Toolbox, n: int = 1) -> list[ActionPlan]:
        influence = observation.influence
        if influence is None:
            raise UsageError(
                "planner ideal: no influence was estimated before this round; "
                "add `influence: {}` to the config and start a new run"
            )
        for dataset in sorted({found.dataset for found in influence.buckets}):
            toolbox.estimate_influence(dataset)
        shares = plan_shares(observation.last_plan, observation.bucket_proportions)
        members = self._members(shares)
        alphas = _alphas(influence, members, shares)
        values = {domain: alpha.value for domain, alpha in alphas.items()}
        if at_equilibrium(list(values.values()), [alpha.error for alpha in alphas.values()]):
            why = "The influence of domains is lost in the noise, so nothing is moved."
            toolbox.conclude(why)
            still = feasible_plan(why, *_nested(shares), observation)
            return spread_around(self.kind, still, n, observation, toolbox)
        beta = steps(values, self.step)
        why = _rationale(beta, _left_out(influence, observation))
        toolbox.conclude(why)
        moved = _resize(shares, members, beta)
        first = feasible_plan(why, *_nested(moved), observation)
        return spread_around(self.kind, first, n, observation, toolbox)

    def _members(self, shares: Mapping[Cell, float]) -> dict[str, list[Cell]]:
        """Domain -> its buckets, in the order of names."""
        members: dict[str, list[Cell]] = {}
        for dataset, bucket in sorted(shares):
            name = dataset if self.domains == "datasets" else f"{dataset} {bucket}"
            members.setdefault(name, []).append((dataset, bucket))
        return members


class IdealPlannerConfig(PlannerSettings):
    """IDEAL's update: the domain that matters most grows or shrinks by `step` of its size a round.

    `domains` are data sets, whose buckets keep their weights, or single buckets.
    """

    kind: Literal["ideal"] = "ideal"
    step: float = Field(default=0.15, gt=0, le=1)
    domains: Domains = "datasets"

    def build(self) -> Planner:
        return IdealPlanner(self.step, self.domains)


def _alphas(
    influence: Influence, members: Mapping[str, list[Cell]], shares: Mapping[Cell, float]
) -> dict[str, _Alpha]:
    """The alpha of every domain with an estimate: those of its buckets add up.

    Errors add up too, which is more than they can be: the buckets share the prompts.
    """
    effects = {(found.dataset, found.bucket): found.mean for found in influence.buckets}
    found = {}
    for domain, cells in members.items():
        known = [cell for cell in cells if cell in effects]
        if not known:
            continue
        value = -100 * math.fsum(shares[cell] * effects[cell].value for cell in known)
        error = 100 * math.fsum(shares[cell] * effects[cell].standard_error for cell in known)
        found[domain] = _Alpha(value, error)
    return found


def _resize(
    shares: Mapping[Cell, float], members: Mapping[str, list[Cell]], beta: Mapping[str, float]
) -> dict[Cell, float]:
    """The shares after the step; a domain without an estimate keeps its size."""
    sizes, of_cell = {}, {}
    for domain, cells in members.items():
        for cell in cells:
            sizes[cell] = round(shares[cell] * UNIT)
            of_cell[cell] = beta.get(domain, 0.0)
    moved = resized(sizes, of_cell, total=UNIT)
    return {cell: size / UNIT for cell, size in moved.items()}


def _nested(shares: Mapping[Cell, float]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Ratios, and bucket weights of every data set that has a share."""
    ratios: dict[str, float] = {}
    buckets: dict[str, dict[str, float]] = {}
    for (dataset, bucket), share in shares.items():
        ratios[dataset] = ratios.get(dataset, 0.0) + share
        buckets.setdefault(dataset, {})[bucket] = share
    kept = {dataset: weights for dataset, weights in buckets.items() if ratios[dataset] > 0}
    return ratios, kept


def _left_out(influence: Influence, observation: Observation) -> list[str]:
    """Objectives that have data and no influence that could be estimated: they have no say."""
    return [name for name in influence.unread if name in observation.traded]


def _rationale(beta: Mapping[str, float], left_out: list[str]) -> str:
    """The domains that move furthest, with how far, and the objectives that have no say."""
    furthest = sorted(beta, key=lambda domain: (-abs(beta[domain]), domain))[:MAX_NAMED]
    moves = ", ".join(f"{domain} {100 * beta[domain]:+.1f} %" for domain in furthest)
    without = f" of all but {', '.join(left_out)}" if left_out else ""
    return f"By influence on the mean steering loss{without}: {moves}."
