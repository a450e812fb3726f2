"""IDEAL's rule: from gradients to how much more or less of each domain. Pure.

Let L(D) be the loss of a domain summed over its rows, L_ref the reference loss, and H the Hessian of
the loss of everything that was trained on. A domain that is weighted by 1 + beta moves the optimum,
and with it the reference loss:

    alpha_j = dL_ref / dbeta_j = - grad L_ref^T H^-1 grad L(D_j)
    beta_j  = - m alpha_j / max_k |alpha_k|                        |D_j| <- (1 + beta_j) |D_j|

So the domain that matters most moves by exactly m. A positive beta asks for more. In this sum form
alpha is additive: the alphas of two halves of a domain sum to that of the whole, and with an exact
Hessian at an optimum all alphas sum to zero. In the mean form the gradient of a domain is divided by
its number of rows; then n_j alpha_j sums to zero, and small domains move as far as large ones.

Qu et al. (2025), IDEAL: Data Equilibrium Adaptation for Multi-Capability Language Model Alignment,
arXiv 2505.12762.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from mosaic.core.types.influence import Influence
from training.influence.ekfac import Curvature, Variant
from training.influence.gradients import inner

if TYPE_CHECKING:
    from torch import Tensor

Domain = TypeVar("Domain", bound=Hashable)
# A step whose expected squared cosine with the true direction is less is not taken.
MIN_COSINE_SQUARED = 0.5


def alphas(
    reference: Mapping[str, Tensor],
    domains: Mapping[Domain, Mapping[str, Tensor]],
    curvature: Curvature,
    variant: Variant = "inverse",
) -> dict[Domain, float]:
    """Domain -> alpha, from the gradients of the reference loss and of each domain's.

    The form is that of the domains' gradients: sums give the sum form, means the mean form.
    """
    direction = curvature.apply(reference, variant)
    return {domain: -inner(direction, gradient) for domain, gradient in domains.items()}


def steps(alpha: Mapping[Domain, float], most: float) -> dict[Domain, float]:
    """Domain -> beta: how much more of each domain, as a share of its size.

    `most` (0-1) is how far the domain that matters most moves. All are 0 if no alpha differs
    from 0.

    >>> steps({"a": 2.0, "b": -4.0}, most=0.15)
    {'a': -0.075, 'b': 0.15}
    >>> steps({"a": 0.0}, most=0.15)
    {'a': 0.0}
    """
    largest = max((abs(value) for value in alpha.values()), default=0.0)
    if not math.isfinite(largest):
        raise ValueError(f"an alpha is {largest}; raise the damping of the curvature")
    if largest == 0:
        return dict.fromkeys(alpha, 0.0)
    return {domain: -most * (value / largest) for domain, value in alpha.items()}


def at_equilibrium(alpha: Sequence[float], errors: Sequence[float]) -> bool:
    """Whether no direction can be told from the noise: the rule that ends the adjustment.

    The steps never shrink by themselves, since the largest is always `most`. The sum of squared
    alphas less that of their squared errors estimates the squared length of the true alphas without
    bias, however the errors are correlated; its share of the whole is the squared cosine between the
    step and the true direction that may be expected. Below one half, nothing is worth moving.

    >>> at_equilibrium([0.2, -0.5], [0.2, 0.4]), at_equilibrium([0.2, -0.5], [0.2, 0.1])
    (True, False)
    """
    signal_and_noise = math.fsum(value**2 for value in alpha)
    noise = math.fsum(error**2 for error in errors)
    return signal_and_noise - noise <= MIN_COSINE_SQUARED * signal_and_noise


def settled(influence: Influence) -> bool:
    """Whether the influence of buckets on the mean steering loss is lost in the noise."""
    values = [bucket.share * bucket.mean.value for bucket in influence.buckets]
    errors = [bucket.share * bucket.mean.standard_error for bucket in influence.buckets]
    return at_equilibrium(values, errors)


def resized(
    sizes: Mapping[Domain, int], beta: Mapping[Domain, float], total: int | None = None
) -> dict[Domain, int]:
    """Domain -> its new size: (1 + beta) times the old one, to the nearest whole number.

    With `total` all are scaled to sum to exactly that, the largest remainders rounded up; domains
    are in one order for every caller, so that ties always fall alike. Raises ValueError for a beta
    below -1.

    >>> resized({"a": 100, "b": 60}, {"a": -0.075, "b": 0.15})
    {'a': 92, 'b': 69}
    >>> resized({"a": 100, "b": 60}, {"a": -0.075, "b": 0.15}, total=160)
    {'a': 92, 'b': 68}
    """
    exact = {}
    for domain, size in sizes.items():
        if beta[domain] < -1:
            raise ValueError(f"{domain}: beta is {beta[domain]}, and a size cannot be negative")
        exact[domain] = size * (1 + beta[domain])
    if total is None:
        return {domain: round(size) for domain, size in exact.items()}
    whole = math.fsum(exact.values())
    if not whole > 0:
        raise ValueError("all domains are empty, so none can grow")
    scaled = {domain: size * (total / whole) for domain, size in exact.items()}
    sized = {domain: math.floor(size) for domain, size in scaled.items()}
    by_remainder = sorted(scaled, key=lambda d: (sized[d] - scaled[d], repr(d)))
    for domain in by_remainder[: total - sum(sized.values())]:
        sized[domain] += 1
    return sized
