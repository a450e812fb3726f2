"""BoTorch's qNEHVI over log-ratios of mixtures. Needs BoTorch, of the extra `bench`."""

from __future__ import annotations

import numpy as np
import torch
from botorch import fit_gpytorch_mll
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.models import SingleTaskGP
from botorch.models.transforms.input import InputTransform
from botorch.optim import optimize_acqf
from botorch.sampling.normal import SobolQMCNormalSampler
from botorch.utils.sampling import manual_seed
from gpytorch.mlls import ExactMarginalLogLikelihood

from agent.pareto import REFERENCE
from agent.weights import Floats

# Draws of the posterior, and how the maximum is searched for: starts, the points that they are
# chosen from, and steps of each.
DRAWS, RESTARTS, RAW_SAMPLES, MAX_STEPS = 64, 2, 128, 50


class _OfTheMixture(InputTransform, torch.nn.Module):
    """From what is asked, in a unit cube, to the log-ratios of the mixture that comes of it.

    Weights of a group are normalised: twice of everything is the same mixture, and so the same
    point of the model.
    """

    transform_on_train = transform_on_eval = True
    transform_on_fantasize = False

    def __init__(self, own: Floats, groups: Floats, furthest: float) -> None:
        super().__init__()
        self.register_buffer("own", torch.tensor(own))
        self.register_buffer("groups", torch.tensor(groups))
        self.furthest = furthest

    def transform(self, X: torch.Tensor) -> torch.Tensor:
        asked = (2 * X - 1) * self.furthest
        totals = (torch.exp(asked) * self.own) @ self.groups.T
        ratios = asked - torch.log(totals) @ self.groups
        return (ratios / self.furthest).clip(-1, 1) / 2 + 0.5


def best_by_qnehvi(
    points: Floats, results: Floats, own: Floats, groups: Floats, furthest: float, seed: int
) -> Floats:
    """Where one more mixture is expected to add most: log-ratios, shape (k,).

    `points` are log-ratios of measured mixtures, shape (n, k), each between -`furthest` and
    `furthest`; `results` (n, objectives) their means of 1 to 5. `own` (k,) are the shares that a
    ratio of 1 stands for, and `groups` (g, k) has a row of ones and zeros for each group of shares
    that add up to 1. The acquisition is qLogNEHVI (Daulton and others, 2021; Ament and others,
    2023), with BoTorch's usual Gaussian process for each objective.
    """
    inside = torch.tensor((points / furthest + 1) / 2)
    with manual_seed(seed):
        of_the_mixture = _OfTheMixture(own, groups, furthest)
        model = SingleTaskGP(inside, torch.tensor(results), input_transform=of_the_mixture)
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        acquisition = qLogNoisyExpectedHypervolumeImprovement(
            model,
            ref_point=[REFERENCE] * results.shape[1],
            # A mixture that was repeated is one point of the archive; twice it would be singular.
            X_baseline=inside.unique(dim=0),
            prune_baseline=True,
            sampler=SobolQMCNormalSampler(torch.Size([DRAWS]), seed=seed),
        )
        best, _ = optimize_acqf(
            acquisition,
            torch.tensor([[0.0], [1.0]]).expand(2, points.shape[1]).to(inside),
            q=1,
            num_restarts=RESTARTS,
            raw_samples=RAW_SAMPLES,
            options={"maxiter": MAX_STEPS},
        )
    return np.asarray((2 * best[0].numpy() - 1) * furthest)
